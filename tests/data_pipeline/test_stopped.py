"""`loopcoder data` that is stopped, or is given nothing or damage: exit codes and words."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.readers import open_source
from data_pipeline.readers.verdict import judge
from data_pipeline.schema import Tally
from data_pipeline.tokenizer import train as vocabulary
from data_pipeline.tokenizer.count import ENTRY
from loopcoder.cli import main as cli
from loopcoder.config.build import SourceConfig
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY, InputError
from loopcoder.storage.signals import ASKS

SMALL = ["data.build.filters.enabled=false", "data.build.near_dedup.enabled=false"]
SMALL += ["data.build.decontaminate.benchmarks=[]", "data.build.tokenizer_vocab_size=600"]
SMALL += ["data.seq_length=16", "data.build.val_fraction=0.2"]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ASKS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def data(folder: Path, cache: Path, *more: str) -> int:
    paths = ["data=files", f"path={folder}", f"data.build.cache_dir={cache}"]
    return cli.main(["data", *paths, *SMALL, *more])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_build_with_75_and_the_same_command_continues(
    source_folder: Path,
    tmp_path: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)  # the signal ends it

    with monkeypatch.context() as patch:
        # it may not hear of the terminal's signals where the tests run
        signal.signal(number, signal.SIG_DFL)
        patch.setattr(vocabulary, "train_tokenizer", stopped)
        assert data(source_folder, tmp_path / "cache") == EXIT_RETRY
    assert "the same command continues" in capsys.readouterr().err
    if number != signal.SIGTERM:
        return
    assert data(source_folder, tmp_path / "cache") == EXIT_DONE
    assert "data: continuing" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["path=", "path=' '", "path=['']", "path=[/x,'']"])
@pytest.mark.parametrize("preset", ["data=files", "data=hf", "data=corpus"])
def test_an_empty_path_is_an_error(
    preset: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for i in range(30):  # enough for a corpus
        (tmp_path / f"a{i}.txt").write_text(f"not to be read {i}")
        (tmp_path / f"a{i}.py").write_text(f"not_to_be_read = {i}")
    monkeypatch.chdir(tmp_path)
    cache = f"data.build.cache_dir={tmp_path}/cache"
    assert cli.main(["data", preset, path, cache, *SMALL]) == EXIT_BAD_INPUT
    err = capsys.readouterr().err
    assert "why: " in err and "fix: " in err and "Traceback" not in err
    assert "path" in err.partition("why: ")[0]
    assert not (tmp_path / "cache").exists()


def test_faults_of_the_input_are_named_on_the_terminal(
    source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source_folder / "linked").symlink_to(tmp_path)
    (source_folder / "x.json").write_bytes(b"[" * 100_000)
    (source_folder / "x.jsonl").write_text("nonsense\n" * 7)
    (source_folder / "x.zip").write_bytes(b"no zip")
    assert data(source_folder, tmp_path / "cache") == EXIT_DONE
    err = capsys.readouterr().err
    assert f"data:   linked_folder: {source_folder}/linked/\n" in err
    assert f"data:   corrupt_zip: {source_folder}/x.zip\n" in err
    assert f"data:   broken_json: {source_folder}/x.jsonl (7)\n" in err


@pytest.mark.parametrize("name", ["a", "z"])
def test_parts_are_judged_together(source_folder: Path, name: str) -> None:
    """Each part alone has 100% damage or none."""
    for i in range(16):
        (source_folder / f"{name}{i}.zip").write_bytes(b"no zip " * 100)

    def judged() -> None:
        source = open_source(SourceConfig(kind="files", path=str(source_folder)), 0)
        whole = Tally("ingest")
        for part in source.parts(500):
            tally = Tally("ingest")
            list(part.documents(tally))
            whole.add(tally)
        judge(whole, source.name)

    with pytest.raises(InputError, match="16 of the 76 files of source 0-files are damaged"):
        judged()
    (source_folder / f"{name}0.zip").unlink()
    judged()


def test_more_languages_than_16_bits_hold() -> None:
    assert np.array([(1, 2, 3, 65_536, 0)], dtype=ENTRY)["kind"][0] == 65_536
