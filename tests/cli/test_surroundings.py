"""Folders and streams that cannot be used: an error of three parts, or it works all the same.

Root may write anywhere, so what stands in the way is a file, or /proc, where nobody makes folders.
"""

from __future__ import annotations

import errno
import getpass
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import loopcoder
from loopcoder.cli import main as cli
from loopcoder.config.compose import load_config
from loopcoder.errors import DiskFull, InputError
from loopcoder.storage.disk import DISK_FULL
from loopcoder.storage.folders import make_folder
from loopcoder.storage.run_lock import only_run_in
from tests.cli.conftest import Loop


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that ends for its input, without a traceback."""
    assert cli.main(arguments) == 3
    error = capsys.readouterr().err
    assert "why:" in error and "fix:" in error and "Traceback" not in error
    return error


@pytest.mark.parametrize("key", ["run_dir", "data.build.cache_dir"])
@pytest.mark.parametrize("folder", ["/proc/nope", "/proc/a/b", "file", "file/below/it"])
def test_a_folder_that_cannot_be(
    loop: Loop, key: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    error = refused(["train", f"{key}={folder}"], capsys)
    assert f"{key}={folder}" in error and f"fix: {key}=ANOTHER" in error
    assert ("is a file" in error) == folder.startswith("file")
    assert loop.called_with == () and not loop.verified


LONG = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        ["train", f"run_dir={LONG}"],
        ["train", f"data.build.cache_dir={LONG}"],
        ["train", f"checkpoint.init_from={LONG}"],
        ["train", "--config-dir", LONG],
        ["train", "-m", "seed=1,2", f"run_dir={LONG}"],
        ["doctor", f"run_dir={LONG}"],
        ["data", "show", LONG],
        ["evaluate", f"checkpoint={LONG}"],
        ["runs", LONG],
    ],
)
def test_a_name_that_is_too_long_for_a_file_system(
    loop: Loop, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert LONG[:80] in refused(command, capsys)


@pytest.mark.parametrize("verb", ["train", "data"])
def test_the_current_folder_is_no_cache(
    loop: Loop, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "data.build.cache_dir="]) == 3
    assert "data.build.cache_dir=\n    why: it is empty" in capsys.readouterr().err


def test_the_other_verbs_refuse_it_too(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.build.cache_dir" in refused(["data", "data.build.cache_dir=/proc/x"], capsys)
    assert "run_dir=/proc/x" in refused(["train", "-m", "seed=1,2", "run_dir=/proc/x"], capsys)


@pytest.mark.parametrize("folder", ["/proc/x", "file"])
def test_a_classifier_that_cannot_be_written_is_refused_before_anything_is_read(
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    asked = ["data", "train-langid", str(tmp_path), "--out", f"{folder}/langid.bin"]
    assert f"--out={folder}" in refused(asked, capsys)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EACCES, "this user may not write there"),
        (errno.EPERM, "this user may not write there"),
        (errno.EROFS, "read-only"),
    ],
)
def test_a_folder_that_may_not_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, why: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=why):
        make_folder(tmp_path, "run_dir")


@pytest.mark.parametrize("number", sorted(DISK_FULL))
@pytest.mark.parametrize("called", ["tempfile.TemporaryFile", "pathlib.Path.mkdir"])
@pytest.mark.parametrize("verb", [["train"], ["data"], ["train", "-m", "seed=1,2"]], ids=" ".join)
def test_a_full_disk_before_the_start(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    called: str,
    verb: list[str],
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(called, refuse)
    assert cli.main(verb) == 76
    error = capsys.readouterr().err
    assert os.strerror(number) in error and "why: there must be room" in error
    assert "fix: free space there" in error and "Traceback" not in error


def test_a_full_disk_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("loopcoder.storage.run_lock.hold", refuse)
    with pytest.raises(DiskFull, match="No space left") as error, only_run_in(tmp_path):
        pass
    assert "rm -r" not in str(error.value)


@pytest.mark.parametrize("verb", ["train", "data"])
def test_a_full_disk_elsewhere(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """Such as that of TMPDIR."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")

    monkeypatch.setattr(loop, "prepare", refuse)
    monkeypatch.setattr(sys.modules["data_pipeline.driver"], "prepare", refuse)
    assert cli.main([verb]) == 76
    error = capsys.readouterr().err
    assert "'/tmp/x'" in error and "fix:" in error and "Traceback" not in error


def test_a_cache_that_is_there_may_be_read_only(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("loopcoder.cli.arguments.folder_for", lambda *_: pytest.fail("written"))
    assert cli.main(["data", f"data.build.cache_dir={tmp_path}"]) == 0


@pytest.mark.parametrize("kind", ["folder", "fifo", "unreadable"])
def test_a_foreign_lock(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".lock"
    if kind == "folder":
        lock.mkdir()
    elif kind == "fifo":
        os.mkfifo(lock)
    else:

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(lock))

        monkeypatch.setattr("loopcoder.storage.lock.open", refuse, raising=False)
    with pytest.raises(InputError, match=f"cannot lock {lock}"), only_run_in(tmp_path):
        pass


def test_what_another_program_wrote_into_a_lock_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\xe4\xff" * 1000)
    with only_run_in(tmp_path):
        with pytest.raises(InputError, match="another process"), only_run_in(tmp_path):
            pass
        raised = None
    assert raised is None


def test_errors_of_the_run_are_not_those_of_its_lock(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), only_run_in(tmp_path):
        raise PermissionError(errno.EACCES, "elsewhere")


def test_no_home_directory(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    for verb in ("train", "data"):
        assert "HOME" in refused([verb], capsys)
    assert cli.main(["data", "data.build.cache_dir=cache"]) == 0


def test_a_user_without_a_name_trains(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is started with any user's number."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that monkeypatch removes what the command sets
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    assert cli.main(["train"]) == 0
    assert getpass.getuser() == str(os.getuid())


def test_a_home_that_cannot_be_written(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/proc/nobody")
    assert "data.build.cache_dir=/proc/nobody/.cache/loopcoder" in refused(["data"], capsys)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_umlaut_is_printed_as_well_as_can_be(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["train", "run_dir=läufe-→-\U0001f642", "--print-config"]) == 0
    assert "seed: 1234" in out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert cli.main(["train", "run_dir=läufe-→"]) == 0
    assert "\\u2192" in out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_of_other_bytes_is_printed_as_it_is(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    name = os.fsdecode(b"l\xfcufe-\xff")
    Path("runs", name).mkdir(parents=True)
    Path("runs", name, "metrics.jsonl").touch()
    for errors in ("strict", "surrogateescape"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["runs"]) == 0
        assert b"l\xfcufe-\xff" in out.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "verb", [["train"], ["data"], ["doctor"], ["evaluate"], ["train", "--print-config"]]
)
@pytest.mark.parametrize("key", ["run_dir", "path", "checkpoint"])
def test_a_name_of_other_bytes_is_refused(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, verb: list[str], key: str
) -> None:
    given = key.encode() + b"=l\xfcufe"
    error = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", error)
    assert cli.main([*verb, os.fsdecode(given)]) == 3
    text = error.buffer.getvalue()  # type: ignore[attr-defined]
    assert given in text and b"why: it is not UTF-8" in text and not loop.called_with


def test_an_umlaut_in_a_locale_without(tmp_path: Path) -> None:
    root = str(Path(loopcoder.__file__).parents[1])
    environ = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": root}
    command = [sys.executable, "-m", "loopcoder", "train", "--print-config", "run_dir=läufe"]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, check=False)
    (tmp_path / "config.yaml").write_bytes(done.stdout)
    assert load_config(tmp_path / "config.yaml").run_dir == "läufe"


PRINTING = [["--version"], ["help"], ["doctor"], ["runs"], ["data", "list"]]
PRINTING += [["train", "--help"], ["train", "--print-config"]]


@pytest.fixture
def a_run() -> None:
    """A folder that `loopcoder runs` lists."""
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/metrics.jsonl").touch()


def printed_to(
    descriptor: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch, **how: Any
) -> int:
    with os.fdopen(descriptor, "w", **how) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        return cli.main(arguments)


@pytest.mark.parametrize("verb", [*PRINTING, ["train"]], ids=" ".join)
@pytest.mark.parametrize("buffering", [-1, 1])
def test_a_reader_that_is_gone(
    loop: Loop,
    a_run: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    verb: list[str],
    buffering: int,
) -> None:
    """As `loopcoder ... | head -1`: it has what it wanted."""
    reader, writer = os.pipe()
    os.close(reader)
    assert printed_to(writer, verb, monkeypatch, buffering=buffering) == 0
    assert capfd.readouterr().err == ""
    assert bool(loop.called_with) == (verb == ["train"])


@pytest.mark.parametrize("verb", PRINTING, ids=" ".join)
def test_a_full_disk_that_takes_the_output_away(
    loop: Loop,
    a_run: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    verb: list[str],
) -> None:
    assert printed_to(os.open("/dev/full", os.O_WRONLY), verb, monkeypatch) == 76
    assert capfd.readouterr().err == "loopcoder: no space left for what is printed\n"


@pytest.mark.parametrize("mode", [os.O_WRONLY, os.O_RDONLY])
def test_training_goes_on_without_its_output(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mode: int
) -> None:
    assert printed_to(os.open("/dev/full", mode), ["train"], monkeypatch) == 0
    loop.outcome = 75
    assert printed_to(os.open("/dev/full", mode), ["train"], monkeypatch) == 75
    assert loop.called_with and capfd.readouterr().err == ""


@pytest.mark.parametrize("verb", [*PRINTING, ["train"]], ids=" ".join)
def test_streams_that_are_closed(
    loop: Loop, a_run: None, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    """As `>&- 2>&-`."""
    loop.outcome = 0
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(verb) == 0
    assert cli.main(["nope"]) == 3


def test_other_broken_pipes_are_faults(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.outcome = BrokenPipeError(errno.EPIPE, "a socket")
    assert cli.main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err
