"""Parts of the input in a work folder: a planted one is refused and named, and runs nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import open_source
from data_pipeline.readers.files import FilesSource
from data_pipeline.readers.http import HttpFile, _Copies
from data_pipeline.readers.ingest import _load_part, _part_path
from data_pipeline.readers.packages import PackagesSource
from data_pipeline.readers.pickled import unpickle_part
from data_pipeline.tasks.work import Work, write_sealed
from loopcoder.config.build import SourceConfig
from loopcoder.errors import EXIT_BAD_INPUT, InputError
from loopcoder.storage.unpickle import RefusedPickle
from tests.data_pipeline.works import work_of


class Calls:
    """Calls a function where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def planted(work: Work, content: bytes) -> str:
    """Read these bytes as the first part of a build; return the error."""
    path = _part_path(work, 0)
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, content)
    with pytest.raises(InputError) as raised:
        _load_part(work, 0)
    assert raised.value.exit_code == EXIT_BAD_INPUT
    return str(raised.value)


def test_planted_code_is_refused_and_named(tmp_path: Path) -> None:
    work, ran = work_of(tmp_path / "work"), tmp_path / "it_ran"
    (tmp_path / "a.txt").write_text("a")
    source: Any = open_source(SourceConfig(kind="files", path=str(tmp_path / "a.txt")), 0)
    evil = Calls(os.mkdir, str(ran))
    for protocol in (0, 4):
        assert "posix.mkdir" in planted(work, pickle.dumps(evil, protocol=protocol))
    source.name = evil
    assert f"{_part_path(work, 0)} wants to run posix.mkdir" in planted(work, pickle.dumps(source))
    # a constructor may do more than reading: that of packages starts npm
    packages = Calls(PackagesSource, "x", SourceConfig(kind="npm", packages=["x"], path=str(ran)))
    assert "PackagesSource" in planted(work, pickle.dumps(packages))
    dotted = b"\x80\x04\x8c\x1bdata_pipeline.readers.fetch\x8c\x0esubprocess.run\x93."
    assert "subprocess.run" in planted(work, dotted)
    function = b"\x80\x04\x8c\x1bdata_pipeline.readers.fetch\x8c\x04_run\x93."
    assert "fetch._run" in planted(work, function)
    assert not ran.exists()


def test_stores_are_those_of_the_sources(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/pickled/a.txt", b"text")
    config = SourceConfig(kind="files", path="memory://pickled")
    source: Any = open_source(config, 0)
    part: Any = unpickle_part(pickle.dumps(source), [config])
    assert part._files == source._files
    local = SourceConfig(kind="files", path=str(tmp_path))
    with pytest.raises(RefusedPickle, match="MemoryFileSystem"):
        unpickle_part(pickle.dumps(source), [local])
    opens = Calls(fsspec.spec.make_instance, FilesSource, ("x", local), {})
    with pytest.raises(RefusedPickle, match="FilesSource"):
        unpickle_part(pickle.dumps(opens), [config])


def test_what_parts_hold_is_read(tmp_path: Path) -> None:
    """A listing of a server, and paths, of every kind of source that needs no network."""
    file: Any = HttpFile("http://host/a.txt", "a.txt", 3, "tag", _Copies())
    assert unpickle_part(pickle.dumps(file), []) == file
    sample: Any = open_source(SourceConfig(kind="sample"), 0)
    assert vars(unpickle_part(pickle.dumps(sample), [])).keys() == vars(sample).keys()
