"""prepare(): one complete corpus or none, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import sealing
from data_pipeline.driver import prepare
from data_pipeline.shuffle import stages as shuffle
from data_pipeline.tasks.work import write_sealed
from data_pipeline.tokenizer import train as vocabulary
from loopcoder.errors import DiskFull, InputError, LoopcoderError
from tests.data_pipeline.builds import Config, child, documents, hashes, left

FAILURES = [
    (vocabulary, "train_tokenizer"),
    (shuffle, "to_buckets"),
    (shuffle, "assemble"),
    (sealing, "write_report"),
]


@pytest.mark.data_full
@pytest.mark.parametrize(("module", "name"), FAILURES, ids=[name for _, name in FAILURES])
@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")]
)
def test_a_failed_build_continues(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: Any,
    name: str,
    error: BaseException,
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        wanted = {OSError: DiskFull, RuntimeError: (LoopcoderError, RuntimeError)}
        kind = wanted.get(type(error), type(error))
        with pytest.raises(kind, match="no space left" if kind is DiskFull else None):
            prepare(config())
    assert [p.name[-5:] for p in left(config(), ".work")] == [".work"]
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    assert lines[0].startswith("data: continuing")
    assert not any("ingest" in line for line in lines), "what was done was done again"
    assert not left(config(), ".work")
    other = prepare(config(cache_dir=str(tmp_path / "other")))
    assert hashes(corpus) == hashes(other)


@pytest.mark.data_full
def test_a_build_continues_with_other_memory(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With `shards`, memory is no part of a corpus; what is in buckets already stays there."""

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    small = config(shards=2, seq_length=8, worker_bytes=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shuffle, "write_index", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(small, report=lambda _: None)
    (work,) = left(small, ".work")
    assert len([p for p in (work / "held_out").iterdir() if p.is_dir()]) > 1
    fields = {"shards": 2, "seq_length": 8}
    continued = prepare(config(**fields), report=lambda _: None)
    assert not left(small, ".work")
    whole = prepare(config(**fields, cache_dir=str(tmp_path / "other")), report=lambda _: None)
    for domain in whole.domains:
        assert Counter(documents(continued, domain, "val")) == Counter(
            documents(whole, domain, "val")
        )


@pytest.mark.data_full
def test_a_build_that_an_older_version_began_is_refused(config: Config) -> None:
    corpus = prepare(config(keep_work=True), report=lambda _: None)
    (work,) = left(config(), ".work")
    name, made_of = corpus.dir.name, corpus.fingerprint
    shutil.rmtree(corpus.dir)
    shutil.rmtree(work / "done" / "parts")
    (work / "parts.json").write_text(json.dumps({"fingerprint": made_of, "parts": 1, "bytes": 9}))
    with pytest.raises(InputError) as error:
        prepare(config())
    problem = error.value.problems[0]
    assert "another version" in problem.why
    assert problem.fix == f"delete {work} and start the same command again"
    shutil.rmtree(work)
    assert prepare(config(), report=lambda _: None).dir.name == name


def test_a_corpus_that_is_gone_while_its_work_is_there(config: Config) -> None:
    corpus = prepare(config(keep_work=True), report=lambda _: None)
    shutil.rmtree(corpus.dir)
    (work,) = left(config(), ".work")
    with pytest.raises(InputError, match=rf"(?s)manifest.json is missing.*delete {work} and start"):
        prepare(config(), report=lambda _: None)


def test_a_part_of_the_input_that_cannot_be_read_is_no_traceback(config: Config) -> None:
    corpus = prepare(config(keep_work=True), report=lambda _: None)
    shutil.rmtree(corpus.dir)
    (work,) = left(config(), ".work")
    shutil.rmtree(work / "done" / "read")
    part = work / "parts" / "00000"
    good = part.read_bytes()
    part.write_bytes(good[:-3])
    with pytest.raises(InputError, match=rf"(?s)parts/00000 .* other content.*delete {work} and"):
        prepare(config(), report=lambda _: None)
    # whole, but its class is no longer there
    write_sealed(part, good[16:].replace(b"readers.files", b"readers.fyles"))
    with pytest.raises(InputError, match=r"(?s)parts/00000 cannot be read: .*readers.fyles"):
        prepare(config(), report=lambda _: None)


@pytest.mark.data_full
def test_killed_builder(config: Config, tmp_path: Path) -> None:
    # a builder that opens a pipe without writer in the middle of its work waits there to be killed
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stop = f"""
from data_pipeline.tokenizer import train as vocabulary
vocabulary.train_tokenizer = lambda *args: open({str(pipe)!r})
"""
    process = child(config(), before=stop)
    assert process.stdout is not None
    with process:
        while "draw text" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert left(config(), ".work")
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    assert lines[0].startswith("data: continuing")
    assert [p.name for p in Path(config().build.cache_dir).iterdir() if "lock" not in p.name] == [
        corpus.dir.name
    ]


@pytest.mark.data_full
def test_several_processes_build_once(config: Config) -> None:
    processes = [child(config()) for _ in range(3)]
    results = [p.communicate(timeout=300) for p in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors
    outputs = [output for output, _ in results]
    assert sum("data: building" in o for o in outputs) == 1
    assert len({o.splitlines()[-1] for o in outputs}) == 1


def test_unwritable_cache(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data\.build\.cache_dir=FOLDER"):
        prepare(config(cache_dir=str(tmp_path / "file")))
