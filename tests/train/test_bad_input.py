"""What cannot work ends with code 3 and says what mends it, before any training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as checkpoints
from loopcoder.metrics.writer import read_metrics
from loopcoder.storage.lock import is_held
from loopcoder.storage.run_lock import only_run_in
from tests.train.conftest import Start, finish


@pytest.fixture(scope="module")
def finished(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with a checkpoint of each."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    finish(start(run_dir, "train.max_steps=2", "checkpoint.interval=1"))
    return run_dir


def test_a_mistake_ends_the_process(start: Start, tmp_path: Path) -> None:
    """End to end; the mistakes of a config are tested in tests/cli and tests/config."""
    output = finish(start(tmp_path / "run", "path=/nowhere/at/all"), code=3)
    assert "Traceback" not in output
    assert "fix:" in output and "why:" in output
    assert "/nowhere/at/all" in output and "data.path=" in output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_empty_folder_and_invalid_utf8(start: Start, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in finish(start(tmp_path / "run", f"path={tmp_path / 'empty'}"), code=3)
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(20):
        (broken / f"a{i}.py").write_text(f"x{i} = {i}\n" * 50)
        (broken / f"a{i}.txt").write_text(f"number {i} and more words\n" * 50)
    (broken / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 50)
    output = finish(start(tmp_path / "run", f"path={broken}"), code=3)
    assert "latin.txt" in output and "data.build.invalid_utf8=replace" in output


@pytest.mark.dist_full
def test_truncated_bin(start: Start, finished: Path, tmp_path: Path) -> None:
    corpus = Path(checkpoints.find(finished).state().tokenizer_path).parent
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    bin_file = next(copy.glob("train/code*.bin"))
    bin_file.write_bytes(bin_file.read_bytes()[:-10])
    output = finish(start(tmp_path / "run", "data=corpus", f"path={copy}"), code=3)
    assert bin_file.name in output and "bytes" in output


def test_another_tokenizer_on_resume(start: Start, finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    output = finish(
        start(finished, "data.build.tokenizer_vocab_size=380", "train.max_steps=4"), code=3
    )
    assert "tokenizer_vocab_size=380, that of the weights had" in output
    assert "data.build.tokenizer=" in output and "data=corpus" in output
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_another_shape_on_resume(start: Start, finished: Path) -> None:
    changes = ["model.hidden_size=96", "model.num_layers=3", "train.max_steps=4"]
    output = finish(start(finished, *changes), code=3)
    assert "model.hidden_size=64" in output and "model.num_layers=2" in output
    assert "init_from" in finish(start(finished, "model.num_loops=3", "train.max_steps=4"), code=3)


@pytest.mark.chaos
def test_damaged_checkpoint(start: Start, finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    older, newest = checkpoints.complete(run_dir / "checkpoints")
    aside = older.path.rename(run_dir / "aside")
    shard = max(newest.path.glob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    output = finish(start(run_dir, "train.max_steps=4"), code=3)
    assert shard.name in output and "no checkpoint of the run is whole" in output
    shard.write_bytes(content[:-1])
    assert "bytes" in finish(start(run_dir, "train.max_steps=4"), code=3)
    # an older one that is whole is gone on from
    aside.rename(older.path)
    shard.write_bytes(content)
    output = finish(start(run_dir, "train.max_steps=4", "optim.lr=0.001"))
    assert f"warning: {newest.path.name} is damaged and not used" in output
    assert f"continues from {older.path}" in output
    # the command line has said the jump of the one whose damage was not known yet
    assert output.index("is damaged and not used") < output.index("(step 1) to")
    events = (run_dir / "events.jsonl").read_text()
    assert "(step 1) to" in events and "(step 2) to" not in events
    assert newest.path.with_name(f"{newest.path.name}.damaged").is_dir()


@pytest.mark.chaos
def test_resume_modes(start: Start, finished: Path, tmp_path: Path) -> None:
    output = finish(start(finished, "checkpoint.resume=never"), code=3)
    assert "run_dir=" in output
    output = finish(start(tmp_path / "new", "checkpoint.resume=require"), code=3)
    assert "checkpoint.resume=auto" in output
    # a longer run continues the finished one
    longer = tmp_path / "longer"
    shutil.copytree(finished, longer)
    finish(start(longer, "train.max_steps=3", "checkpoint.resume=require"))
    assert [r["step"] for r in read_metrics(longer / "metrics.jsonl")] == [1, 2, 3]
    # what changed is said, not hidden
    tokenizer = f"data.build.tokenizer={checkpoints.find(longer).state().tokenizer_path}"
    other = [tokenizer, "data.rebuild=true"]
    output = finish(start(longer, "train.max_steps=4", "optim.lr=1e-3", "optim.beta2=0.9", *other))
    assert "changed since step 3: optim.lr: 0.006 -> 0.001" in output
    assert "warning: the corpus is" in output and "other data" in output


@pytest.mark.dist_full
@pytest.mark.parametrize("ahead", [4, 0])
def test_a_corpus_that_is_taken_away_is_a_checkpoint_and_an_error(
    start: Start, tmp_path: Path, ahead: int
) -> None:
    """It is missed when the second stage opens its shards, which the loader does `ahead` steps
    before: after 80 of them, so that there is time to take it away on a loaded machine."""
    cache, run_dir = tmp_path / "cache", tmp_path / "run"
    stages = "data.stages=[{until:20480,mixture:{text:1}},{mixture:{code:1}}]"
    asked = [stages, "train.max_steps=90", f"data.build.cache_dir={cache}"]
    asked.append(f"data.prefetch_steps={ahead}")
    process = start(run_dir, *asked)
    assert process.stdout is not None
    printed = ""
    while "step 1" not in printed and (line := process.stdout.readline()):
        printed += line
    (folder,) = cache.glob("files-*[0-9a-f]")
    assert is_held(folder / "manifest.json", also_shared=True)
    folder.rename(tmp_path / "moved")
    output = printed + finish(process, code=76)
    assert f"the corpus {folder} was taken away" in output and "fix: " in output
    assert "AssertionError" not in output and "Traceback" not in output
    (saved,) = checkpoints.complete(run_dir / "checkpoints")
    assert saved.step == 80 if ahead == 0 else 70 < saved.step < 80
    assert (saved.path / "tokenizer.json").is_file()
    # where it is now, it is the run's corpus
    output = finish(start(run_dir, *asked, "data=corpus", f"path={tmp_path / 'moved'}"))
    assert f"continues from {saved.path}" in output and "other data" not in output


def test_two_runs_in_one_folder(start: Start, finished: Path) -> None:
    with only_run_in(finished):
        output = finish(start(finished, "train.max_steps=4"), code=3)
    assert "another process is training" in output and "run_dir=" in output


def test_what_is_checked_is_what_is_saved(finished: Path) -> None:
    checkpoint = checkpoints.find(finished)
    assert checkpoint == replace(checkpoint, step=2)
    assert checkpoint.state().position.step == 2
