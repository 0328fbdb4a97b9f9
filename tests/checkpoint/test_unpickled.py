"""A checkpoint that wants to run something, its manifest being right: it is refused and named."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import loopcoder
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.unpickled import read_metadata
from loopcoder.config.compose import load_config
from loopcoder.data.corpus import Corpus
from loopcoder.errors import EXIT_BAD_INPUT, InputError
from tests.checkpoint.saved import change_metadata, load_small, mend_manifest, save_small


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def instead(folder: Path, ran: Path) -> None:
    change_metadata(folder, lambda _: Evil(ran))


def inside(folder: Path, ran: Path) -> None:
    change_metadata(folder, lambda found: replace(found, planner_data={"a": [Evil(ran)]}))


def in_an_old_protocol(folder: Path, ran: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(ran), protocol=0))
    mend_manifest(folder)


def by_instructions(*instructions: bytes | str) -> Callable[[Path, Path], None]:
    """Write `.metadata` by hand: bytes are instructions of pickle, texts are pushed."""

    def write(folder: Path, ran: Path) -> None:
        code = b"\x80\x04"
        for part in instructions:
            text = str(ran) if part == "RAN" else part
            code += text if isinstance(text, bytes) else b"\x8c%c" % len(text) + text.encode()
        (folder / ".metadata").write_bytes(code + b".")
        mend_manifest(folder)

    return write


MODULE, GET, CALL, BUILD = "torch.distributed.checkpoint.metadata", b"\x93", b"\x85R", b"b"
# torch's module imports os: the module is known, and `os.mkdir` in it must not be
by_a_dotted_name = by_instructions(MODULE, "os.mkdir", GET, "RAN", CALL)
by_changing_a_class = by_instructions(MODULE, "Metadata", GET, b"}", "version", "x", b"s", BUILD)
by_a_known_constructor = by_instructions(MODULE, "StorageMeta", GET, "RAN", CALL)


def among_the_shards(folder: Path, ran: Path) -> None:
    """Append an object to a shard, and let the metadata name it as the optimizer's groups."""
    shard = next(folder.glob("*.distcp"))
    written = io.BytesIO()
    torch.save([Evil(ran)], written)
    offset = shard.stat().st_size
    with open(shard, "ab") as file:
        file.write(written.getvalue())

    def repoint(found: Any) -> Any:
        index = next(i for i in found.storage_data if i.fqn.startswith("common_state"))
        found.storage_data[index].offset = offset
        found.storage_data[index].length = len(written.getvalue())
        return found

    change_metadata(folder, repoint)


def in_a_file_of_its_own(folder: Path, ran: Path) -> None:
    torch.save({"a": Evil(ran)}, folder / "common.pt")
    mend_manifest(folder)


PLANTED: dict[str, tuple[Callable[[Path, Path], None], str, str]] = {
    "instead": (instead, ".metadata", "posix.mkdir"),
    "inside": (inside, ".metadata", "posix.mkdir"),
    "in an old protocol": (in_an_old_protocol, ".metadata", "posix.mkdir"),
    "by a dotted name": (by_a_dotted_name, ".metadata", "os.mkdir"),
    "by changing a class": (by_changing_a_class, ".metadata", "a change of"),
    "by a known constructor": (by_a_known_constructor, ".metadata", "StorageMeta"),
    "among the shards": (among_the_shards, "common_state", "posix.mkdir"),
    "in a file of its own": (in_a_file_of_its_own, "common.pt", "loopcoder writes no such file"),
}


@pytest.fixture(scope="module")
def saved(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("saved")
    save_small(run_dir, 1)
    return layout.step_folder(run_dir, 2)


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / saved.name
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("how", PLANTED)
def test_planted_code_is_refused_and_named(copied: Path, tmp_path: Path, how: str) -> None:
    change, file, wanted = PLANTED[how]
    before = vars(torch.distributed.checkpoint.Metadata).copy()
    change(copied, tmp_path / "it_ran")
    checkpoint = Checkpoint(copied, 2)
    assert not list(layout.faults(checkpoint, "hash"))  # its manifest is right
    for load in (load_small, lambda c: loopcoder.load(c.path)):
        with pytest.raises(InputError) as raised:
            load(checkpoint)
        assert raised.value.exit_code == EXIT_BAD_INPUT
        assert file in str(raised.value) and wanted in str(raised.value)
    assert not (tmp_path / "it_ran").exists()
    assert vars(torch.distributed.checkpoint.Metadata) == before


def test_shards_outside_the_manifest_are_refused(copied: Path) -> None:
    def elsewhere(found: Any) -> Any:
        next(iter(found.storage_data.values())).relative_path = "../other.distcp"
        return found

    change_metadata(copied, elsewhere)
    with pytest.raises(InputError, match=r"names \.\./other\.distcp"):
        load_small(Checkpoint(copied, 2))


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x80\x04N.", b"\x00" * 90])
def test_damaged_metadata_is_named(copied: Path, content: bytes) -> None:
    (copied / ".metadata").write_bytes(content)
    with pytest.raises(InputError, match=r"\.metadata cannot be read"):
        read_metadata(Checkpoint(copied, 2))


def test_a_config_runs_nothing_and_reads_no_environment(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / layout.CONFIG
    monkeypatch.setenv("SECRET", "taken")
    before = path.read_text()
    path.write_text(before.replace("name: test", "name: ${oc.env:SECRET}${env_or:SECRET,a}"))
    assert load_config(path).model.name == "${oc.env:SECRET}${env_or:SECRET,a}"
    evil = f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'it_ran'}']"
    path.write_text(before.replace("name: test", evil))
    mend_manifest(copied)
    with pytest.raises(InputError, match=r"config\.yaml.*python/object/apply"):
        loopcoder.load(copied)
    assert not (tmp_path / "it_ran").exists()


def test_token_bytes_hold_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "token_bytes.npy", np.array([Evil(tmp_path / "it_ran")]), allow_pickle=True)
    corpus = Corpus(tmp_path, (), tmp_path, "", 1, 0, "", (), {})
    with pytest.raises(InputError, match=r"token_bytes\.npy cannot be read"):
        corpus.token_bytes()
    assert not (tmp_path / "it_ran").exists()


def test_what_was_saved_loads(copied: Path) -> None:
    assert read_metadata(Checkpoint(copied, 2)) == pickle.loads((copied / ".metadata").read_bytes())
    load_small(Checkpoint(copied, 2))
