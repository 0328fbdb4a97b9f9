"""What the doctor prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopcoder.backends import Backends
from loopcoder.cli import doctor
from loopcoder.cli import main as cli
from loopcoder.plan import device, table
from tests.cli.conftest import Loop

GIB = 2**30
MACHINE = (int(23.5 * GIB), 20 * GIB)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for the machine of the issue: 23.5 GiB and no GPU."""
    monkeypatch.setattr(device, "machine_memory", lambda: MACHINE)
    monkeypatch.setattr(doctor, "detect", Backends)


def test_doctor_shows_the_machine_and_whether_a_config_fits(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "GiB memory" in output and "plt_tiny" in output and "fits on 1 process" in output
    assert cli.main(["doctor", "parallel.cp=2"]) == 3
    assert "not built yet" in capsys.readouterr().err
    assert loop.called_with == ()


def test_doctor_shows_what_a_run_takes(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "model=plt_1b", "checkpoint.keep=5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = {line[:18].strip(): line[20:] for line in printed if line}
    assert lines["parameters"] == "1,095,260,384, whatever R is"
    assert (lines["embedding"], lines["gates"], lines["head"]) == (
        "33,554,432",
        "487,648",
        "33,554,432",
    )
    assert lines["FLOPs per token"].startswith("13.96G causal")
    assert (lines["weights"], lines["gradients"], lines["optimizer"]) == (
        "4.1 GiB",
        "4.1 GiB",
        "8.2 GiB",
    )
    assert "estimate" in lines["activations"]
    assert lines["checkpoint"] == "16.3 GiB; up to 6 at a time: 97.9 GiB"
    assert "GiB free at runs/plt_1b-r2-" in lines["disk"]
    assert lines["corpora"].startswith("0 B in ")


@pytest.mark.parametrize("size", [0, 3_000, 5_000_000])
def test_doctor_says_how_large_the_cache_is(
    loop: Loop, size: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (cache / ".files-0123456789abcdef.work").mkdir(parents=True)
    (cache / ".files-0123456789abcdef.work" / "part").write_bytes(bytes(size))
    assert cli.main(["doctor", f"data.build.cache_dir={cache}"]) == 0
    said = {0: "0 B", 3_000: "3.0 kB", 5_000_000: "5.0 MB"}[size]
    assert f"{said} in {cache} (loopcoder data list)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["checkpoint.keep=5", "checkpoint.interval=100", "train.max_steps=1000"], 6),
        (["checkpoint.keep=5", "checkpoint.interval=100", "train.max_steps=250"], 3),
        (["checkpoint.keep=null", "checkpoint.interval=100", "train.max_steps=1000"], 10),
        (["checkpoint.interval=null"], 1),
        (["checkpoint.interval=null", "checkpoint.save_at_end=false"], 0),
    ],
)
def test_checkpoints_that_the_disk_cannot_hold_are_said(
    loop: Loop,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    count: int,
) -> None:
    monkeypatch.setattr(table, "free_bytes", lambda folder: count * 20 * 10**6)
    assert cli.main(["doctor", *overrides]) == 0
    output = capsys.readouterr().out
    assert f"up to {count} at a time" in output and "warning" not in output
    monkeypatch.setattr(table, "free_bytes", lambda folder: count * 10**6)
    assert cli.main(["doctor", *overrides]) == 0
    assert ("warning: checkpoints come to" in capsys.readouterr().out) == (count > 0)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=plt_7b", "precision=fp32"],
        ["model=plt_7b", "precision=bf16"],
        ["model=plt_1b", "parallel.nproc_per_node=2", "train.micro_batch_size=1"],
    ],
)
@pytest.mark.dist_full
def test_what_cannot_fit_is_refused_by_doctor_train_and_sweep(
    loop: Loop, capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    for verb in (["doctor"], ["train"], ["train", "-m", "seed=1,2"]):
        assert cli.main([*verb, *overrides]) == 3
        output, error = capsys.readouterr()
        assert "fits" not in output
        assert "for weights, gradients and optimizer" in error and "has 23.5 GiB" in error
        assert "fix: " in error
    assert loop.called_with == ()
    assert loop.verified == ""  # no corpus was asked for


def test_it_says_how_much_the_corpora_take(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPCODER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache" / "large").open("wb") as file:
        file.truncate(3 << 29)
    assert cli.main(["doctor"]) == 0
    assert f"1.6 GB in {tmp_path}/cache (loopcoder data list)\n" in capsys.readouterr().out


def test_what_may_not_fit_is_said_and_runs(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("doctor", "train"):
        assert cli.main([verb, "model=plt_1b"]) == 0
        output = capsys.readouterr().out
        assert "warning: this may not fit: one process needs about" in output
        assert " fits " not in output
    assert loop.called_with != ()


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=files", "path=/nonexistent"],
        ["data=files", "path=/nonexistent/*.jsonl"],
        ["data=corpus", "path=/nonexistent"],
        ["data=files", "path={here}", "data.build.tokenizer=/nonexistent/tokenizer.json"],
        ["data=files", "path={here}", "data.build.language_classifier=/nonexistent"],
    ],
)
def test_input_that_train_would_refuse_is_refused(
    capsys: pytest.CaptureFixture[str], overrides: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.md").write_text("words\n")
    (tmp_path / "code.py").write_text("x = 1\n")
    here = [o.replace("{here}", str(tmp_path)) for o in overrides]
    assert cli.main(["doctor", *here]) == 3
    assert "/nonexistent" in capsys.readouterr().err


@pytest.mark.parametrize("manifest", ["{", "[]", '{"format_version": 2}', '{"tokenizer": {}}', ""])
def test_a_damaged_corpus_is_refused_by_train_too(
    manifest: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    for verb in ("doctor", "train"):
        assert cli.main([verb, "data=corpus", f"path={tmp_path}"]) == 3
        error = capsys.readouterr().err
        assert "manifest.json" in error and "fix:" in error and "Traceback" not in error


def test_a_corpus_without_a_domain_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "code.py").write_text("x = 1\n")
    assert cli.main(["doctor", "data=files", f"path={tmp_path}", "data.mixture={klingon:1}"]) == 3
    assert "klingon" in capsys.readouterr().err


def test_a_validation_length_that_no_memory_holds(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was accepted, and ended the run at its first evaluation."""
    for verb in ("doctor", "train"):
        assert cli.main([verb, "precision=fp32", "eval.lengths=[64,100000]"]) == 3
        error = capsys.readouterr().err
        assert "an evaluation at 100,000 tokens" in error and "fix: eval.lengths=[64]" in error
    assert loop.called_with == () and not Path("runs").exists()
    assert cli.main(["doctor", "precision=fp32", "eval.lengths=[64,20000]"]) == 0
    output = capsys.readouterr().out
    assert "x 20000 tokens at once, when no activations are held" in output
    assert "may not fit: at 20,000 tokens" in output and "eval.lengths=[64]" in output
