"""`loopcoder checkpoint list` and `verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.stored import copy_of, open_store
from loopcoder.cli.main import main
from loopcoder.config.compose import save_config
from loopcoder.storage.files import in_words
from tests.checkpoint.saved import save_small
from tests.checkpoint.test_choice import flipped, truncated
from tests.checkpoint.test_sending import sent
from tests.configs import small_config


@pytest.fixture(scope="module")
def original(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("original")
    save_small(run_dir, 1, 1, 2, 3)
    config = small_config()
    checkpoint = replace(config.checkpoint, keep=1, keep_every=2)
    save_config(replace(config, checkpoint=checkpoint), run_dir / "config.yaml")
    return run_dir


@pytest.fixture
def run_dir(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "run")


def shown(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    assert main(["checkpoint", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_list_says_what_each_is(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_dir / "checkpoints"
    (folder / "step_00000003" / layout.MANIFEST).unlink()
    shutil.copytree(folder / "step_00000002", folder / "step_00000002.later")
    found = shown(capsys, "list", str(run_dir))
    assert [(one["step"], one["state"], one["kept"]) for one in found] == [
        (1, "complete", ""),
        (2, "complete", "every 2"),
        (2, "set aside", ""),
        (3, "incomplete", ""),
    ]
    assert found[0]["layout"] == "1 rank" and found[0]["bytes"] > 100_000
    assert shown(capsys, "list", str(folder)) == found
    assert shown(capsys, "list", str(folder / "step_00000001")) == [found[0]]
    assert main(["checkpoint", "list", str(run_dir)]) == 0
    text = capsys.readouterr().out
    assert "step_00000002.later" in text and "every 2" in text and len(text.splitlines()) == 5


def test_verify_names_what_is_damaged(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run_dir)]) == 0
    capsys.readouterr()
    flipped(layout.step_folder(run_dir, 1) / "__0_0.distcp")
    truncated(layout.step_folder(run_dir, 2) / "state.json")
    found = shown(capsys, "verify", str(run_dir), code=3)
    assert [one["state"] for one in found] == ["damaged", "damaged", "complete"]
    assert "__0_0.distcp" in found[0]["faults"][0] and "; in it " in found[0]["faults"][0]
    assert "state.json" in found[1]["faults"][0]
    # a list reads no shards
    found = shown(capsys, "list", str(run_dir), code=3)
    assert [one["state"] for one in found] == ["complete", "damaged", "complete"]
    (layout.step_folder(run_dir, 3) / layout.MANIFEST).write_bytes(b"{")
    assert shown(capsys, "verify", str(run_dir), code=3)[2]["state"] == "damaged"


def test_nothing_to_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["list", str(tmp_path)], ["list", str(tmp_path / "no")], ["lst", "x"], ["list"]):
        assert main(["checkpoint", *argv]) == 3
        assert "fix:" in capsys.readouterr().err
    assert main(["checkpoint", "--help"]) == 0


def test_what_cannot_be_deleted_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of those that are to go: the column was empty, as for one that goes next."""
    folder = layout.step_folder(run_dir, 1)
    folder.rename(run_dir / "moved")
    folder.symlink_to(run_dir / "moved")
    layout.step_folder(run_dir, 2).chmod(0o555)  # stays by its step
    found = shown(capsys, "list", str(run_dir))
    assert ["it is a link" in one["stuck"] for one in found] == [True, False, False]
    assert [one["stuck"] == "" for one in found] == [False, True, True]
    assert main(["checkpoint", "list", str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("stuck") and lines[-1].startswith("step_00000001 is not deleted: it")
    layout.step_folder(run_dir, 2).chmod(0o755)


def test_verify_says_what_was_compared(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_dir / "checkpoints"
    (folder / "step_00000003" / layout.MANIFEST).unlink()
    (folder / "step_00000002").rename(folder / "step_00000002.damaged")
    files = [p for p in (folder / "step_00000001").iterdir() if p.name != layout.MANIFEST]
    size = sum(p.stat().st_size for p in files)
    one, *others = shown(capsys, "verify", str(run_dir))
    assert (one["files"], one["hashed_bytes"]) == (len(files), size)
    assert all((other["files"], other["hashed_bytes"]) == (0, 0) for other in others)
    assert shown(capsys, "list", str(run_dir))[0]["hashed_bytes"] == 0
    assert main(["checkpoint", "verify", str(run_dir)]) == 0
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["checkpoint", "files", "hashed", "result"]
    assert lines[0][1:] == [str(len(files)), *in_words(size).split(), "whole"]
    assert [line[1:] for line in lines[1:]] == [
        ["set", "aside,", "not", "compared"],
        ["incomplete,", "not", "compared"],
    ]


@pytest.mark.parametrize("verb", ["list", "verify"])
@pytest.mark.parametrize("file", ["state.json", "config.yaml", layout.MANIFEST])
@pytest.mark.parametrize("damage", [truncated, Path.unlink])
def test_a_fault_is_named_once(
    run_dir: Path,
    verb: str,
    file: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if file == layout.MANIFEST and damage is Path.unlink:
        return  # incomplete
    damage(layout.step_folder(run_dir, 2) / file)
    (fault,) = shown(capsys, verb, str(run_dir), code=3)[1]["faults"]
    assert file in fault


def test_copies_in_a_store(run_dir: Path, tmp_path: Path, capsys: Any) -> None:
    """What is said of each, and the digest of all that is there; nothing is kept here."""
    url = f"file://{tmp_path}/store"
    sent(run_dir, url, 1, 2, 3)
    copy_of(open_store(url), 1).set_aside("undone")
    found = shown(capsys, "list", url)
    assert [(one["step"], one["state"]) for one in found] == [
        (1, "set aside"),
        (2, "complete"),
        (3, "complete"),
    ]
    assert found[1]["layout"] == "1 rank" and found[1]["bytes"] > 100_000
    for one, name in zip(found, ["manifest.json.undone", *2 * [layout.MANIFEST]], strict=True):
        file = tmp_path / f"store/checkpoints/step_{one['step']:08d}" / name
        assert one["time"] == f"{datetime.fromtimestamp(file.stat().st_mtime):%Y-%m-%d %H:%M}"
    (one,) = shown(capsys, "verify", f"{url}/checkpoints/step_00000003")
    assert one == found[2] | {"hashed_bytes": one["hashed_bytes"]}
    assert one["files"] > 5 and one["hashed_bytes"] > 100_000
    flipped(tmp_path / "store/checkpoints/step_00000003/__0_0.distcp")
    truncated(tmp_path / "store/checkpoints/step_00000002/metadata.json")
    assert shown(capsys, "list", url, code=3)[2]["state"] == "complete"
    _, two, three = shown(capsys, "verify", url, code=3)
    assert two["state"] == three["state"] == "damaged"
    assert "metadata.json has" in two["faults"][0] and "other content" in three["faults"][0]
