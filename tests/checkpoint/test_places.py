"""A checkpoint is taken by the URL of its copy as by its folder."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies import places
from loopcoder.checkpoint.copies.places import all_at, find_at
from loopcoder.checkpoint.start import find_start
from loopcoder.config.check_secrets import check_secrets
from loopcoder.config.check_store import check_store
from loopcoder.errors import InputError
from tests.checkpoint.saved import load_small, save_small
from tests.checkpoint.test_choice import flipped
from tests.checkpoint.test_format import write
from tests.checkpoint.test_sending import sent
from tests.configs import small_config
from tests.data.stores import files_of, in_memory


@pytest.fixture(autouse=True)
def forgotten() -> None:
    places._fetched.cache_clear()
    places._newest.cache_clear()


@pytest.fixture
def run_dir(tmp_path: Path, seed: int) -> Path:
    for step in (1, 2):
        write(tmp_path / "run", step, seed)
    return tmp_path / "run"


@pytest.mark.parametrize("of", ["", "/checkpoints", "/checkpoints/step_00000002"])
def test_the_newest_of_a_url_is_fetched_once(
    run_dir: Path, tmp_path: Path, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_memory(run_dir, tmp_path.name) + of
    found = find_at(url, tmp_path / "cache")
    assert found.step == 2 and files_of(found.path) == files_of(layout.find(run_dir).path)
    places._fetched.cache_clear()
    monkeypatch.setattr(places, "fetch_file", None)
    assert find_at(url, tmp_path / "cache") == found
    assert find_at(str(run_dir), tmp_path / "cache") == layout.find(run_dir)


def test_another_process_that_was_first_keeps_its_copy(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be locked nothing else keeps the two apart."""
    url, theirs = in_memory(run_dir, tmp_path.name), places.put

    def put(path: Path, content: bytes) -> None:
        theirs(path, content)
        if not path.parent.with_suffix("").exists():
            shutil.copytree(path.parent, path.parent.with_suffix(""))
            (path.parent.with_suffix("") / "theirs").touch()

    monkeypatch.setattr(places, "put", put)
    found = find_at(url, tmp_path / "cache")
    assert (found.path / "theirs").exists() and not list(found.path.parent.glob("*.part"))


def test_every_one_of_a_url(run_dir: Path, tmp_path: Path) -> None:
    (layout.step_folder(run_dir, 1) / layout.MANIFEST).rename(run_dir / "manifest")
    url = in_memory(run_dir, tmp_path.name)
    assert [c.step for c in all_at(url, tmp_path / "cache")] == [2]


def test_what_is_damaged_or_not_there_is_named(
    run_dir: Path, tmp_path: Path, rng: random.Random
) -> None:
    name = rng.choice(["__1_0.distcp", "state.json"])
    flipped(layout.step_folder(run_dir, 2) / name)
    url = in_memory(run_dir, tmp_path.name)
    with pytest.raises(InputError, match=f"step_00000002/{name} .* has other content"):
        find_at(url, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(layout.MANIFEST))
    assert find_at(f"{url}/checkpoints/step_00000001", tmp_path / "cache").step == 1
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        find_at(f"{url}/nothing", tmp_path / "cache")
    with pytest.raises(InputError, match="pip install s3fs"):
        find_at("unknown://bucket/run", tmp_path / "cache")


def test_a_run_branches_from_a_url(ranks: Any, tmp_path: Path, seed: int) -> None:
    save_small(tmp_path / "run", seed, 2)
    url = f"file://{tmp_path}/store"
    sent(tmp_path / "run", url, 2)
    shutil.rmtree(tmp_path / "run")
    config = small_config()
    config = replace(config, checkpoint=replace(config.checkpoint, init_from=url))
    build = replace(config.data.build, cache_dir=str(tmp_path / "cache"))
    config = replace(config, data=replace(config.data, build=build))
    looked = find_start(config, tmp_path / "new")
    assert looked is not None and not looked.resumes and looked.checkpoint.step == 2
    assert looked.checkpoint.state().step == 2 and looked.checkpoint.config() is not None
    assert not list((tmp_path / "cache").rglob("*.distcp"))  # to look needs no shards
    assert looked.checkpoint.place == f"{url}/checkpoints/step_00000002"
    start = find_start(config, tmp_path / "new", loads=True)
    assert start is not None
    load_small(start.checkpoint)  # compares its digest
    places._fetched.cache_clear()
    assert find_start(config, tmp_path / "new") == start  # what is whole is there to look at too


@pytest.mark.parametrize(
    ("asked", "fact"),
    [
        ({"store": "copies"}, "checkpoint.store=file:///"),
        ({"store": "file:///a/run/copies"}, "is in run_dir="),
        ({"store": "local:///a/run/copies"}, "is in run_dir="),
        ({"store": "file:///a"}, "run_dir=/a/run is in checkpoint.store="),
        ({"store": "sftp://user:hunter2@host/a"}, "checkpoint.store=sftp://user:***@host/a has a"),
        ({"store": "s3://user@bucket/run"}, None),
        ({"store_keep": 2}, "checkpoint.store=null"),
        ({"store": "s3://bucket/run", "store_keep": 2}, None),
    ],
)
def test_a_store_that_cannot_be_one_is_refused(asked: dict[str, Any], fact: str | None) -> None:
    config = small_config()
    config = replace(config, run_dir="/a/run", checkpoint=replace(config.checkpoint, **asked))
    found = [str(problem) for problem in [*check_store(config), *check_secrets(config)]]
    assert len(found) == (fact is not None) and (fact is None or fact in found[0])
    assert "hunter2" not in "".join(found)
