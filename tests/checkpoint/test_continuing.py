"""What a run that goes on keeps: the meaning of its position, its warm-up, its rate."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.start import Start, check_fits, find_start, warmup_of
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.compose import compose, save_config
from loopcoder.config.data import SkipConfig, StageConfig
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position, Skipped, enter_stage
from loopcoder.errors import InputError
from loopcoder.optim.schedule import learning_rate, warmup_steps
from tests.checkpoint.states import state_at
from tests.configs import small_config

VOCAB = 128
CORPUS: Any = SimpleNamespace(tokenizer_hash="tokenizer", fingerprint="corpus")
BOTH, CODE = {"text": 1.0, "code": 1.0}, {"text": 1.0, "code": 3.0}


def trained(run_dir: Path, config: Config, **changes: Any) -> Start:
    """What a run of `config` that was stopped after step 40 of its second stage goes on from."""
    position = Position(step=40, stage=len(config.stages) - 1, sample=64, samples=320, tokens=10240)
    state = state_at(40, **({"position": position, "vocab_size": VOCAB} | changes))
    folder = layout.step_folder(run_dir, 40)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state.to_json()))
    (folder / "manifest.json").write_text('{"files": {}}')
    save_config(config, folder / "config.yaml")
    return Start(Checkpoint(folder, 40), resumes=True)


def staged(*stages: StageConfig, **data: Any) -> Config:
    config = small_config()
    return replace(config, data=replace(config.data, stages=list(stages), **data))


FIRST = StageConfig(until=8000, mixture=BOTH)
SECOND = StageConfig(mixture=CODE, seq_length=64)
STAGED = staged(FIRST, SECOND)


def refused(start: Start, config: Config) -> list[str]:
    """The facts and fixes of what does not fit."""
    with pytest.raises(InputError) as error:
        check_fits(start, config, VOCAB, CORPUS)
    return [f"{p.fact} | {p.fix}" for p in error.value.problems]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (staged(), "data.stages has 1 of the 2 stages"),
        (staged(FIRST, StageConfig(mixture=BOTH, seq_length=64)), "mixture"),
        (staged(FIRST, StageConfig(mixture=CODE)), "seq_length: 64 -> 32"),
        (staged(StageConfig(until=8000, mixture=CODE), SECOND), "data stage 1"),
        (staged(StageConfig(until=9000, mixture=BOTH), SECOND), "until: 8000 -> 9000"),
        (staged(FIRST, StageConfig(until=8500, mixture=BOTH), SECOND), "data stage 2"),
        (replace(STAGED, seed=5), "seed=5"),
        (staged(FIRST, SECOND, reader="packed"), "data.reader=packed"),
    ],
)
def test_what_would_change_the_position_is_refused_with_what_to_do(tmp_path, changed, names):
    (text,) = refused(trained(tmp_path, STAGED), changed)
    assert names in text and "checkpoint.init_from=" in text


@pytest.mark.parametrize(
    "changed",
    [
        STAGED,
        staged(FIRST, replace(SECOND, mixture={"text": 2.0, "code": 6.0})),  # the same proportions
        staged(FIRST, replace(SECOND, until=20000), StageConfig(mixture=BOTH)),
        staged(FIRST, replace(SECOND, rope_theta=5e5)),
    ],
)
def test_what_comes_later_may_change(tmp_path, changed):
    check_fits(trained(tmp_path, STAGED), changed, VOCAB, CORPUS)


def test_a_mixture_changed_from_here_on_is_the_next_stage(tmp_path):
    """The fix, given as it is written, is accepted and begins the new stage at once."""
    plain = small_config()
    start = trained(tmp_path, plain)
    changed = replace(plain, data=replace(plain.data, mixture=CODE))
    (text,) = refused(start, changed)
    given = text.split("data.stages='")[1].split("'")[0]
    stages = compose([f"data.stages={given}"]).data.stages
    mended = replace(changed, data=replace(changed.data, stages=stages))
    check_fits(start, mended, VOCAB, CORPUS)
    position = enter_stage(mended.stages, start.checkpoint.state().position)
    assert (position.stage, position.sample, position.tokens) == (1, 0, 10240)
    assert mended.stages[1].mixture == CODE


@pytest.mark.parametrize(
    ("asked", "fact", "fix"),
    [
        ((12, 3), None, None),
        ((41, 3), None, None),
        ((40, 3), "nothing was left out before step 40", "data.skip.0.step=41"),
        ((30, 1), "nothing was left out before step 30", "checkpoint.init_from={}/step_00000020 "),
        ((12, 4), "samples of 3 steps were left out before step 12", "data.skip.0.steps=3 as it"),
        ((1, 4), "nothing was left out before step 1", "of which none is kept"),
    ],
)
def test_what_is_left_out_may_change_only_ahead(tmp_path, asked, fact, fix):
    """Given again it is not left out again; what is past cannot be left out."""
    position = Position(step=40, stage=1, sample=64, skipped=(Skipped(12, 3, 0, 88, 24),))
    start = trained(tmp_path, STAGED, position=position)
    folder = start.checkpoint.path.parent
    shutil.copytree(start.checkpoint.path, folder / "step_00000020")
    check_fits(start, staged(FIRST, SECOND), VOCAB, CORPUS)
    changed = staged(FIRST, SECOND, skip=[SkipConfig(*asked)])
    if fact is None:
        check_fits(start, changed, VOCAB, CORPUS)
        return
    (text,) = refused(start, changed)
    assert fact in text and fix.format(folder) in text
    mended = staged(FIRST, SECOND, skip=[SkipConfig(41, asked[1])])
    check_fits(start, mended, VOCAB, CORPUS)


THIRD = StageConfig(mixture=BOTH)
THREE = staged(FIRST, replace(SECOND, until=12000), THIRD)


@pytest.mark.parametrize("position", [1, 2])
@pytest.mark.parametrize(
    "changed",
    [
        staged(replace(FIRST, until=5000), replace(SECOND, until=12000), THIRD),
        staged(replace(FIRST, mixture=CODE), replace(SECOND, until=12000), THIRD),
        staged(FIRST, StageConfig(until=12000, mixture=CODE), THIRD),
        staged(FIRST, StageConfig(until=9000, mixture=BOTH), THIRD),
        staged(FIRST, StageConfig(mixture=BOTH)),
        staged(replace(FIRST, until=7000), SECOND),
        staged(StageConfig(mixture=CODE), seq_length=16),
    ],
)
def test_the_fix_of_changed_stages_can_be_given(tmp_path, changed, position):
    """Whichever stage has changed and whichever the run stands in."""
    stands = Position(
        step=40, stage=position, sample=64, samples=320, tokens=(0, 10240, 15000)[position]
    )
    start = trained(tmp_path, THREE, position=stands)
    (text,) = refused(start, changed)
    given = text.split("data.stages='")[1].split("'")[0]
    stages = compose([f"data.stages={given}"]).data.stages
    mended = replace(changed, data=replace(changed.data, stages=stages))
    check_fits(start, mended, VOCAB, CORPUS)
    untils = [stage.until for stage in stages]
    assert untils[-1] is None and sorted(untils[:-1]) == untils[:-1]
    assert len(set(untils)) == len(untils)


def test_a_branch_has_a_position_of_its_own_unless_it_goes_on(tmp_path):
    start = trained(tmp_path, STAGED)
    check_fits(replace(start, resumes=False), replace(staged(), seed=5), VOCAB, CORPUS)
    goes_on = replace(start, resumes=False, keeps_position=True)
    # the seed, the stages, and max_steps, which counts from the start of the trunk
    found = refused(goes_on, replace(staged(), seed=5))
    assert len(found) == 3 and "train.max_steps=43 for 3 steps more" in found[0]
    longer = replace(staged(), seed=5, train=replace(staged().train, max_steps=41))
    assert len(refused(goes_on, longer)) == 2
    config = small_config()
    options = dict(init_from=str(tmp_path), init_position=True)
    config = replace(config, checkpoint=replace(config.checkpoint, **options))
    assert find_start(config, tmp_path / "branch") == goes_on


def scheduled(max_steps: int, kind: str, **schedule: Any) -> Config:
    config = small_config()
    fields = dict(kind=kind, warmup_fraction=0.05) | schedule
    optim = replace(
        config.optim, lr=6e-3, min_lr=2e-4, schedule=replace(config.optim.schedule, **fields)
    )
    train = replace(config.train, max_steps=max_steps)
    return replace(config, optim=optim, train=train)


def rates(config: Config, start: Start | None, *steps: int) -> list[float]:
    warmup = warmup_of(start, config)
    return [learning_rate(config.optim, s, config.train.max_steps, warmup) for s in steps]


@pytest.mark.parametrize("recorded", [2, None])
def test_a_longer_run_does_not_warm_up_again(tmp_path, recorded):
    """WSD, 40 of 50 steps and then extended to 1000: the peak goes on, and nothing is said. Without
    a record, of version 1, the warm-up is that of its config."""
    before = scheduled(50, "wsd", decay_fraction=0.1)
    start = trained(tmp_path, before, warmup_steps=recorded or warmup_steps(before.optim, 50))
    if recorded is None:
        state = json.loads((start.checkpoint.path / "state.json").read_text())
        state |= {"format_version": 1}
        del state["warmup_steps"], state["corpus_dir"]
        (start.checkpoint.path / "state.json").write_text(json.dumps(state))
        assert start.checkpoint.state().warmup_steps is None
    longer = scheduled(1000, "wsd", decay_fraction=0.1)
    assert warmup_steps(longer.optim, 1000) == 50
    assert rates(longer, start, 40, 41, 60) == [6e-3] * 3
    notes = check_fits(start, longer, VOCAB, CORPUS)
    assert not any("learning rate" in note for note in notes)
    assert warmup_of(start, longer) == (recorded or 3)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize(("trained_for", "asked"), [(50, 1000), (50, 70), (1000, 45)])
def test_the_warmup_is_that_which_was_trained(tmp_path, kind, trained_for, asked):
    """Of any schedule, made longer or shorter; a branch that begins anew has its own."""
    before, after = scheduled(trained_for, kind), scheduled(asked, kind)
    had = warmup_steps(before.optim, trained_for)
    start = trained(tmp_path, before, warmup_steps=had)
    for goes_on in (start, replace(start, resumes=False, keeps_position=True)):
        assert warmup_of(goes_on, after) == had != warmup_steps(after.optim, asked)
    anew = replace(start, resumes=False)
    assert warmup_of(anew, after) == warmup_steps(after.optim, asked)


@pytest.mark.parametrize(
    ("before", "after", "jumps"),
    [
        (scheduled(40, "cosine"), scheduled(80, "cosine"), "0.0002 (step 40)"),
        (scheduled(40, "wsd"), scheduled(80, "wsd"), "0.0002 (step 40)"),
        (scheduled(80, "cosine"), scheduled(60, "cosine"), "(step 41)"),
        (scheduled(80, "cosine"), scheduled(80, "wsd"), "`optim` has changed"),
        (scheduled(80, "cosine"), scheduled(80, "cosine", warmup_steps=60), "`optim` has changed"),
        (scheduled(80, "cosine"), scheduled(80, "cosine"), None),
        (scheduled(1000, "constant"), scheduled(2000, "constant"), None),
        (scheduled(40, "cosine"), scheduled(40, "cosine"), None),  # nothing left to train
        (scheduled(40, "cosine"), scheduled(41, "cosine"), None),  # one step, at the last rate
        (scheduled(40, "wsd"), scheduled(41, "wsd"), None),
    ],
)
def test_a_jump_of_the_rate_is_said_with_both_values(tmp_path, before, after, jumps):
    start = trained(tmp_path, before, warmup_steps=warmup_steps(before.optim, 40))
    said = [n for n in check_fits(start, after, VOCAB, CORPUS) if "learning rate" in n]
    assert len(said) == (jumps is not None)
    if jumps:
        now, following = rates(before, start, 40) + rates(after, start, 41)
        assert jumps in said[0] and f"{now:.3g}" in said[0] and f"{following:.3g}" in said[0]
        assert f"optim.lr={now:.4g}" in said[0]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (200, 1, "from 0.2 of their rate (step 40) to 1, since"),
        (200, 50, "to 0.82, since optim.vocabulary_warmup_steps is 50 and not 200"),
        (20, 100, "from 1 of their rate (step 40) to 0.41"),
        (200, 200, None),
        (20, 30, None),  # both are over
        (20, 1, None),
        (2, 2, None),
    ],
)
def test_a_jump_of_embedding_and_head_is_said(tmp_path, old, new, says):
    """Where the recipe gives a longer run of one loop another warm-up of them: a share of its own,
    which optim.lr does not show."""
    before, after = (scheduled(steps, "constant") for steps in (40, 80))
    before = replace(before, optim=replace(before.optim, vocabulary_warmup_steps=old))
    after = replace(after, optim=replace(after.optim, vocabulary_warmup_steps=new))
    start = trained(tmp_path, before)
    said = [n for n in check_fits(start, after, VOCAB, CORPUS) if "embedding and head" in n]
    assert len(said) == (says is not None)
    if says:
        assert says in said[0]
        assert f"optim.vocabulary_warmup_steps={old} goes on without a jump" in said[0]


def test_a_run_that_has_decayed_is_told_where_it_can_go_on(tmp_path):
    """The checkpoint before the decay is there (`Saver` spares it) and branches without a jump."""
    before = scheduled(40, "wsd", decay_steps=10)
    start = trained(tmp_path, before)
    folder = start.checkpoint.path.parent
    stable = folder / "step_00000030"
    shutil.copytree(start.checkpoint.path, stable)
    said = [n for n in check_fits(start, scheduled(80, "wsd"), VOCAB, CORPUS) if "jumps" in n]
    assert "from step 30, before the decay (not kept by a run that goes on past it)" in said[0]
    assert f"run_dir=ANOTHER_FOLDER checkpoint.init_from={stable} " in said[0]
    (stable / "manifest.json").unlink()
    said = [n for n in check_fits(start, scheduled(80, "wsd"), VOCAB, CORPUS) if "jumps" in n]
    assert "before the decay (" not in said[0] and "init_from" not in said[0]


def test_a_decay_in_absolute_steps_from_a_branch_of_the_stable_part(tmp_path):
    trunk = scheduled(1000, "wsd", warmup_steps=5)
    start = replace(trained(tmp_path, trunk), resumes=False, keeps_position=True)
    branch = scheduled(60, "wsd", warmup_steps=5, decay_steps=20, decay_shape="linear")
    assert rates(branch, start, 40, 41, 50, 60) == pytest.approx(
        [6e-3, 6e-3 - 5.8e-3 / 20, 3.1e-3, 2e-4]
    )
    assert rates(scheduled(1000, "wsd", decay_steps=20), None, 980, 1000) == [6e-3, 2e-4]
    # the decay that was asked for begins where the trunk stood: no jump
    assert not any("jumps" in note for note in check_fits(start, branch, VOCAB, CORPUS))
    elsewhere = scheduled(60, "wsd", warmup_steps=5, decay_steps=40, decay_shape="linear")
    assert any("jumps" in note for note in check_fits(start, elsewhere, VOCAB, CORPUS))


@pytest.mark.parametrize(
    ("last", "asked", "fixes"),
    [
        (60, dict(decay_steps=30), ["decay_steps=20", "max_steps=70"]),
        (41, dict(decay_steps=2), ["decay_steps=1", "max_steps=42"]),
        (60, dict(decay_fraction=0.5), ["decay_steps=20"]),
        (60, dict(decay_steps=50, decay_shape="linear"), ["decay_steps=20", "max_steps=90"]),
    ],
)
@pytest.mark.parametrize("resumes", [True, False])
def test_a_decay_that_is_longer_than_what_is_left_is_named(tmp_path, resumes, last, asked, fixes):
    """It was said that `optim` has changed, which a branch that decays always does."""
    trunk = scheduled(1000, "wsd", warmup_steps=5)
    start = replace(trained(tmp_path, trunk), resumes=resumes, keeps_position=not resumes)
    (said,) = jumps(start, scheduled(last, "wsd", warmup_steps=5, **asked))
    assert f"({'optim.schedule.'}{next(iter(asked))}={next(iter(asked.values()))}" in said
    assert f"{last - 40} step" in said and "`optim` has changed" not in said
    offered = said.partition("Without a jump: ")[2]
    assert [f.rpartition(".")[2] for f in offered.split(", or ")] == fixes
    for fix in fixes:
        name, _, value = fix.partition("=")
        end = int(value) if name == "max_steps" else last
        steps = int(value) if name == "decay_steps" else asked["decay_steps"]
        mended = asked | {"decay_steps": steps}
        assert jumps(start, scheduled(end, "wsd", warmup_steps=5, **mended)) == []


def jumps(start: Start, config: Config) -> list[str]:
    return [note for note in check_fits(start, config, VOCAB, CORPUS) if "rate jumps" in note]


def test_a_decay_that_no_length_mends_keeps_its_cause(tmp_path):
    """Where the rate had fallen already, or has another peak, a shorter decay jumps as well."""
    start = trained(tmp_path, scheduled(45, "wsd", warmup_steps=5, decay_steps=10))
    (said,) = jumps(start, scheduled(60, "wsd", warmup_steps=5, decay_steps=30))
    assert "`optim` has changed" in said and "optim.schedule.kind=constant" in said


def test_state_of_version_1_knows_its_corpus_and_no_warmup():
    content = state_at(3).to_json() | {"format_version": 1}
    del content["warmup_steps"], content["corpus_dir"]
    state = CheckpointState.from_json(content)
    assert (state.corpus_dir, state.warmup_steps) == ("/corpus", None)
