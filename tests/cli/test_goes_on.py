"""The same command again asks for nothing that the run has already: sources, tokenizer, weights."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from loopcoder.cli import doctor, train
from loopcoder.cli import main as cli
from loopcoder.config.compose import compose, save_config
from loopcoder.config.identity import corpus_fields
from tests.cli.conftest import Loop
from tests.cli.run_dirs import checkpoint, run_dir


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The finished corpus of the runs."""
    folder = tmp_path / "cache" / "corpus"
    folder.mkdir(parents=True)
    domains = {"text": {"train": {"tokens": 9}}, "code": {"train": {"tokens": 9}}}
    manifest = {"format_version": 2, "fingerprint": "recorded", "domains": domains}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def sources_changed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand for sources that are gone or others: reading them would be another corpus."""
    read: list[str] = []

    def refuse(data: Any, **_: Any) -> Any:
        read.append(data.name)
        return loop.prepare(data, None, "hash")

    driver = sys.modules["data_pipeline.driver"]
    monkeypatch.setattr(driver, "prepare", refuse)
    monkeypatch.setattr(driver, "check_input", refuse)
    for verb in (train, doctor):
        monkeypatch.setattr(verb, "load_corpus", lambda folder, verify: folder)
    for check in ("check_start", "check_packed"):  # which read the corpus
        monkeypatch.setattr(train, check, lambda *_: None)
    return read


def stopped(corpus: Path, *overrides: str) -> list[str]:
    """Leave a run that was stopped at step 3; return the command that continues it."""
    folder = run_dir(Path("run"), *overrides, losses=3)
    checkpoint(folder, 3, "recorded", corpus_dir=str(corpus))
    return [*overrides, f"run_dir={folder}"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=sample"],  # whose documents are what is installed: `make kernels` changed it
        ["data=packages"],
        ["data=files", "path=/gone"],
        ["data=files", "path=/gone/*.jsonl", "data.build.tokenizer=/gone/tokenizer.json"],
        ["data=hf", "path=/gone", "data.build.language_classifier=/gone"],
        ["checkpoint.init_from=/gone"],
        ["checkpoint.init_from=/gone", "checkpoint.init_optimizer=true"],
        ["checkpoint.init_from=/gone", "checkpoint.init_position=true"],
    ],
)
@pytest.mark.parametrize("more", [[], ["train.max_steps=2010"]])
def test_the_same_command_and_more_steps_continue(
    loop: Loop,
    corpus: Path,
    sources_changed: list[str],
    overrides: list[str],
    more: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*stopped(corpus, *overrides), *more]
    assert cli.main(["train", *command]) == 0
    assert loop.called_with[1] == corpus and sources_changed == []
    assert f"keeps its corpus {corpus}" in capsys.readouterr().out
    assert cli.main(["doctor", *command]) == 0
    assert sources_changed == []
    # what is asked for is what is new
    assert cli.main(["train", *command, "data.rebuild=true"]) == 0
    assert len(sources_changed) == 1


@pytest.mark.parametrize(
    "asked",
    [
        ["data.build.val_fraction=0.1"],
        ["data.build.tokenizer_vocab_size=640"],
        ["path=/other", "data.rebuild=true"],
    ],
)
def test_another_corpus_is_built(
    loop: Loop, corpus: Path, sources_changed: list[str], asked: list[str]
) -> None:
    command = [*stopped(corpus, "data=files", "path=/gone"), *asked]
    assert cli.main(["train", *command]) == 0
    assert len(sources_changed) == 1 and loop.called_with[1] != corpus


@pytest.mark.parametrize(
    ("before", "asked"),
    [
        (["data=files", "path=~/src"], []),
        (["data=files", "path=~/my src"], ["data=files", "path=/other"]),
        (["data=hf", "path=me/code", "data.mixture={code:1}"], ["optim.lr=1e-3"]),
        (["data=packages", "data.seq_length=64"], ["data.seq_length=64"]),
        (["data=corpus", "path=/finished"], []),
        (["data=sample", "data.build.val_fraction=0.1"], ["data=files", "path=/x"]),
        (
            ["data=files", "path=[/a,/b]", "data.build.sources.0.domain=code", "data.stages=[{}]"],
            ["data=files", "path=/a"],
        ),
    ],
)
def test_overrides_that_were_left_out_are_named_before_anything_is_built(
    loop: Loop,
    corpus: Path,
    sources_changed: list[str],
    before: list[str],
    asked: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The sample would be built, and its tokenizer refused with a fix that goes on with it."""
    run = stopped(corpus, *before)[-1]
    for verb in ("train", "doctor"):
        assert cli.main([verb, *asked, run, "train.max_steps=7"]) == 3
        error = capsys.readouterr().err
        assert sources_changed == [] and loop.called_with == ()
        assert f"this run was started with {before[0]}" in error and "problems" not in error
    fix = shlex.split(error.partition("fix: ")[2])
    then, now = compose(before).data, compose(fix).data
    assert corpus_fields(now) == corpus_fields(then) and now.stages == then.stages
    assert all("=" in override for override in fix)
    if before[0] != "data=corpus":
        assert cli.main(["train", *fix, run, "train.max_steps=7"]) == 0
        assert sources_changed == [] and loop.called_with[1] == corpus


def test_a_finished_corpus_or_a_new_start_may_be_asked_for(
    loop: Loop, corpus: Path, sources_changed: list[str]
) -> None:
    run = stopped(corpus, "data=files", "path=/gone")[-1]
    assert cli.main(["train", "data=corpus", f"path={corpus}", run]) == 0
    assert cli.main(["train", "data.rebuild=true", run]) == 0
    # a wrong path is corrected while nothing is trained
    Path("run/checkpoints/step_00000003/manifest.json").unlink()
    assert cli.main(["train", "data=files", "path=/right", run]) == 0
    assert len(sources_changed) == 3


def test_an_interrupted_first_save_still_needs_the_weights(
    loop: Loop, corpus: Path, sources_changed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = stopped(corpus, "checkpoint.init_from=/gone")
    Path("run/checkpoints/step_00000003/manifest.json").unlink()
    assert cli.main(["train", *command]) == 3
    assert "checkpoint.init_from=/gone" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["train.max_steps=2"]])
@pytest.mark.parametrize("launched", [False, True])
def test_a_finished_run_says_so_before_anything_is_loaded(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    launched: bool,
) -> None:
    """Of several ranks that a launcher started rank 0 decides it, once they have met."""
    checkpoint(run_dir(Path("run"), losses=10), 10)
    if launched:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
    command = ["train", "run_dir=run", "train.max_steps=10", "train.micro_batch_size=2", *more]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert out.count("already finished: 10 steps") == 1
    assert not loop.verified and not loop.called_with


@pytest.mark.parametrize(
    ("step", "asked", "said"),
    [
        (7, 2, "stands at step 7 of 10, which is past train.max_steps=2"),
        (7, 7, "stands at step 7 of 10, validation"),
        (12, 5, "already finished: 12 steps, which is past train.max_steps=5"),
    ],
)
def test_a_run_that_is_asked_for_fewer_steps_than_it_has_says_where_it_stands(
    loop: Loop, capsys: pytest.CaptureFixture[str], step: int, asked: int, said: str
) -> None:
    checkpoint(run_dir(Path("run"), losses=step), step)
    command = ["train", "run_dir=run", "train.micro_batch_size=2", f"train.max_steps={asked}"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert said in out
    assert ("already finished" in out) == (step >= 10)
    assert f"train.max_steps={10 if step < 10 else 24}" in out and not loop.called_with


def test_a_run_that_is_not_finished_goes_on(loop: Loop, sources_changed: list[str]) -> None:
    checkpoint(run_dir(Path("run"), losses=10), 10)
    assert cli.main(["train", "run_dir=run", "train.max_steps=11"]) == 0
    assert loop.called_with


@pytest.mark.parametrize(
    ("before", "more", "says"),
    [
        ([], ["train.max_steps=20"], "the schedule now ends at step 20 and not at 10"),
        ([], ["optim.lr=0.1"], "since `optim` has changed"),
        (["optim=adam_wsd"], ["optim.schedule.decay_steps=9"], "the decay takes 9 steps ("),
        (["optim=adam_wsd"], ["optim.schedule.decay_fraction=0.8"], "the decay takes 8 steps ("),
        (["optim=adam_wsd"], ["optim.schedule.decay_steps=7"], None),
        ([], ["optim.lr=0.1", "train.max_steps=3"], None),  # nothing is left to train
    ],
)
def test_a_jump_of_the_rate_is_said_before_the_corpus_is_opened(
    loop: Loop,
    corpus: Path,
    sources_changed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
    more: list[str],
    says: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was said once the model was built and training went on."""
    said: list[str] = []

    def opened(folder: Path, verify: str) -> Path:
        said.append(capsys.readouterr().out)
        return folder

    monkeypatch.setattr(train, "load_corpus", opened)
    folder = Path("run")
    before = [*before, "data=sample", "train.max_steps=10", "optim.schedule.warmup_steps=0"]
    run_dir(folder, *before, losses=3)
    checkpoint(folder, 3, "recorded", corpus_dir=str(corpus), warmup_steps=0)
    command = [*before, f"run_dir={folder}", *more]
    assert cli.main(["train", *command]) == 0
    text = says or "jumps from"
    said.append(capsys.readouterr().out if says is None else "")
    assert "".join(said).count(text) == (says is not None)
    capsys.readouterr()
    assert cli.main(["doctor", *command]) == 0
    assert capsys.readouterr().out.count(text) == (says is not None)
    assert cli.main(["train", "--print-config", *command]) == 0
    printed = capsys.readouterr()
    assert printed.err.count(text) == (says is not None) and "jumps" not in printed.out


def test_a_jump_of_the_rate_is_that_of_the_checkpoint_that_is_used(
    loop: Loop, corpus: Path, sources_changed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard of the newest is cut off: it was said of that one, which is then passed over."""
    command = stopped(corpus, "data=sample")
    checkpoint(Path("run"), 7, "recorded", corpus_dir=str(corpus))
    newest = Path("run/checkpoints/step_00000007")
    entry = {"bytes": 5001, "xxh3_128": ""}
    (newest / "manifest.json").write_text(json.dumps({"files": {"weights.distcp": entry}}))
    for verb in (["train"], ["doctor"], ["train", "--print-config"]):
        assert cli.main([*verb, *command, "optim.lr=0.1"]) == 0
        printed = "".join(capsys.readouterr())
        assert "(step 3) to" in printed and "(step 7) to" not in printed


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("optim.vocabulary_warmup_steps=200", "=200 is more than train.max_steps=5"),
        ("train.batch_ramp={start:8,increment:8,samples:64}", "warning: the batch ends at "),
        ("data.stages=[{until:9000000},{}]", "warning: data stage 2 of 2 does not begin"),
        ("data.skip=[{step:6,steps:2}]", "warning: data.skip.0 leaves nothing out: its step 6"),
    ],
)
def test_what_a_run_does_not_come_to_is_said(
    loop: Loop, asked: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [asked, "train.max_steps=5", "train.global_batch_size=32"]
    for verb in (["train"], ["doctor"], ["train", "--print-config"]):
        assert cli.main([*verb, *short]) == 0
        printed = capsys.readouterr()
        assert (printed.err if "--print-config" in verb else printed.out).count(says) == 1
    assert cli.main(["train", "-m", "--print-config", "seed=1,2", *short]) == 0
    printed = capsys.readouterr()
    assert printed.err.count(says) == 2 and "\nseed=2: " in printed.err
    assert cli.main(["train", *short, "train.max_steps=100000"]) == 0
    assert says not in capsys.readouterr().out


def test_a_run_that_begins_again_as_another_says_so(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed before its first checkpoint."""
    command = ["train", f"run_dir={run_dir(Path('run'), losses=2)}", "train.max_steps=10"]
    assert cli.main(command) == 0
    save_config(loop.called_with[0], Path("run/config.yaml"))
    capsys.readouterr()
    for verb in ([], ["--print-config"]):
        assert cli.main([*command, *verb]) == 0
        assert "begins anew" not in "".join(capsys.readouterr())
        assert cli.main([*command, *verb, "objective.loop_weights=[0.5,0.5]"]) == 0
        said = "".join(capsys.readouterr())
        assert "run has no checkpoint of its own, and begins anew" in said
        assert "objective.loop_weights: its default -> [0.5, 0.5]" in said
    assert cli.main([*command, "seed=3", "checkpoint.resume=never"]) == 0
    assert "begins anew" not in "".join(capsys.readouterr())


OWN = ["run", "run/", "run/checkpoints", "./run/checkpoints/step_00000003", "link"]


@pytest.mark.parametrize("origin", OWN)
def test_a_run_that_is_to_start_from_itself_says_that_it_goes_on(
    loop: Loop,
    corpus: Path,
    sources_changed: list[str],
    origin: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*stopped(corpus), f"checkpoint.init_from={origin}"]
    Path("link").symlink_to("run")
    says = f"checkpoint.init_from={origin} changes nothing: this run goes on from its own newest"
    assert cli.main(["doctor", *command]) == 0
    assert says in capsys.readouterr().out
    assert cli.main(["train", *command]) == 0
    assert "weights from" not in capsys.readouterr().out
    assert cli.main(["train", *command, "train.max_steps=3"]) == 0  # finished
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("origin", ["run/checkpoints/step_00000002", "other", "gone"])
def test_a_start_that_is_not_used_is_said(
    loop: Loop,
    corpus: Path,
    sources_changed: list[str],
    origin: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An older checkpoint of its own; another run, from which it did not begin."""
    command = stopped(corpus)
    checkpoint(run_dir(Path("other"), losses=7), 7, "recorded", corpus_dir=str(corpus))
    checkpoint(Path("run"), 2, "recorded", corpus_dir=str(corpus))
    assert cli.main(["doctor", *command, f"checkpoint.init_from={origin}"]) == 0
    said = capsys.readouterr().out
    assert f"warning: checkpoint.init_from={origin} is not used" in said
    assert "newest checkpoint, step 3; run_dir=ANOTHER_FOLDER branches from there" in said


@pytest.mark.parametrize("origin", ["run", "run/checkpoints", "run/checkpoints/step_00000003"])
@pytest.mark.parametrize("verb", ["train", "train --print-config", "doctor"])
def test_a_run_without_checkpoints_cannot_start_from_itself(
    loop: Loop, verb: str, origin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir(Path("run"), losses=3)
    command = ["run_dir=run", f"checkpoint.init_from={origin}"]
    assert cli.main([*verb.split(), *command, "train.global_batch_size=7"]) == 3
    error = capsys.readouterr().err
    assert "2 problems" in error  # beside what else is wrong
    assert f"checkpoint.init_from={origin} is of this run itself" in error
    assert "fix: checkpoint.init_from=null, or the folder of another run" in error


@pytest.mark.parametrize(("saved", "reader"), [(True, "megatron"), (False, "shuffled")])
def test_the_reader_is_that_of_the_run(
    loop: Loop, corpus: Path, sources_changed: list[str], saved: bool, reader: str
) -> None:
    """A checkpoint of an earlier version does not say it."""
    command = stopped(corpus, "data=sample") if saved else ["data=sample", "run_dir=new"]
    assert cli.main(["train", *command]) == 0
    assert loop.called_with[0].data.reader == reader
