"""What a run starts from, and whether a checkpoint fits it, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.start import (
    Start,
    check_fits,
    find_start,
    ledger_of,
    notes_of_schedules,
)
from loopcoder.config.compose import save_config
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config
from loopcoder.data.ledger import Ledger, LedgerEntry
from loopcoder.errors import InputError
from tests.checkpoint.states import state_at
from tests.configs import small_config

VOCAB = 128
CORPUS: Any = SimpleNamespace(tokenizer_hash="tokenizer", fingerprint="corpus")


def checkpoint(
    run_dir: Path, step: int, config: Config | None = None, ledger: Ledger | None = None
) -> Checkpoint:
    """Write a checkpoint without weights."""
    config = config or small_config()
    folder = layout.step_folder(run_dir, step)
    folder.mkdir(parents=True)
    state = state_at(step, num_loops=config.model.num_loops, vocab_size=VOCAB, ledger=ledger)
    (folder / "state.json").write_text(json.dumps(state.to_json()))
    (folder / "manifest.json").write_text('{"files": {}}')
    save_config(config, folder / "config.yaml")
    return Checkpoint(folder, step)


def asking(**options: Any) -> Config:
    config = small_config()
    return replace(config, checkpoint=replace(config.checkpoint, **options))


def test_a_run_goes_on_before_it_branches(tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other", 50)
    branches = asking(init_from=str(tmp_path / "other"))
    run_dir = tmp_path / "run"
    assert find_start(asking(), run_dir) is None
    assert find_start(branches, run_dir) == Start(other, resumes=False)
    assert find_start(replace(branches, seed=3), run_dir) == Start(other, resumes=False)
    own = [checkpoint(run_dir, step) for step in (3, 7)]
    for config in (asking(), branches, asking(resume="require")):
        assert find_start(config, run_dir) == Start(own[-1], resumes=True)


def test_what_goes_on_keeps_its_ledger(tmp_path: Path) -> None:
    """Weights alone begin one, as a checkpoint does of a version that did not count."""
    counted = Ledger(2, 512, (LedgerEntry("text", None, None, 256),))
    for ledger, expected in ((counted, counted), (None, Ledger(3, 768))):
        found = checkpoint(tmp_path / str(ledger is None), 3, ledger=ledger)
        assert ledger_of(Start(found, resumes=True)) == expected
        assert ledger_of(Start(found, resumes=False, keeps_position=True)) == expected
        assert ledger_of(Start(found, resumes=False)) == ledger_of(None) == Ledger()


def test_modes_of_resuming(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to continue from"):
        find_start(asking(resume="require"), tmp_path)
    assert find_start(asking(resume="never"), tmp_path) is None
    checkpoint(tmp_path, 7)
    with pytest.raises(InputError, match="checkpoints up to step 7"):
        find_start(asking(resume="never"), tmp_path)


@pytest.mark.parametrize("resumes", [True, False])
def test_what_fits_has_no_notes(tmp_path: Path, resumes: bool) -> None:
    start = Start(checkpoint(tmp_path, 7), resumes)
    assert check_fits(start, small_config(), VOCAB, CORPUS) == []


@pytest.mark.parametrize("resumes", [True, False])
def test_every_mismatch_is_named_at_once(tmp_path: Path, resumes: bool) -> None:
    start = Start(checkpoint(tmp_path, 7), resumes)
    config = small_config(dict(hidden_size=64, num_layers=3, gate="query"))
    corpus: Any = SimpleNamespace(tokenizer_hash="another", fingerprint="corpus")
    with pytest.raises(InputError) as error:
        check_fits(start, config, VOCAB + 128, corpus)
    fixes = [p.fix for p in error.value.problems]
    assert [fix.split(",")[0].split(" ")[0] for fix in fixes] == [
        "model.num_layers=2",
        "model.hidden_size=32",
        "model.gate=hidden",
        f"model.vocab_size={VOCAB}",
        "data.build.tokenizer=/corpus/tokenizer.json",
    ]


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize(
    ("branches", "fix"), [(False, "or another run_dir="), (True, "keeps the ids of these weights")]
)
def test_another_tokenizer_is_mended_where_it_stands(
    tmp_path: Path, branches: bool, fix: str, copied: bool
) -> None:
    """A branch has another run_dir already; the tokenizer is the checkpoint's own, if it has it."""
    start = Start(checkpoint(tmp_path, 7), not branches)
    tokenizer = start.checkpoint.path / "tokenizer.json"
    if copied:
        tokenizer.write_text("{}")
    other: Any = SimpleNamespace(tokenizer_hash="another", fingerprint="corpus")
    with pytest.raises(InputError) as error:
        check_fits(start, small_config(), VOCAB, other)
    (problem,) = error.value.problems
    assert fix in problem.fix and ("run_dir" in problem.fix) == (not branches)
    path = tokenizer if copied else "/corpus/tokenizer.json"
    assert problem.fix.startswith(f"data.build.tokenizer={path}")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [(1, 2, "warning"), (2, 1, "dropped"), (2, 3, None), (3, 3, None)],
)
def test_another_number_of_loops_is_another_run(
    tmp_path: Path, before: int, after: int, says: str | None
) -> None:
    found = checkpoint(tmp_path, 7, small_config(dict(num_loops=before)))
    config = small_config(dict(num_loops=after))
    notes = check_fits(Start(found, resumes=False), config, VOCAB, CORPUS)
    assert len(notes) == (says is not None)
    assert all(says in note and "gates" in note for note in notes)
    if before == after:
        return
    with pytest.raises(InputError) as error:
        check_fits(Start(found, resumes=True), config, VOCAB, CORPUS)
    (problem,) = error.value.problems
    assert f"checkpoint.init_from={found.path}" in problem.fix


@pytest.mark.parametrize(
    ("precision", "distributed", "fits"),
    [("bf16", False, False), ("bf16", True, True), ("fp32", False, True)],
)
def test_new_gates_need_an_optimizer_that_can_be_added_to(
    tmp_path: Path, precision: str, distributed: bool, fits: bool
) -> None:
    start = Start(checkpoint(tmp_path, 7, small_config(dict(num_loops=1))), resumes=False)
    config = small_config(precision=precision, distributed_optimizer=distributed)
    asked = replace(config, checkpoint=replace(config.checkpoint, init_optimizer=True))
    assert len(check_fits(start, config, VOCAB, CORPUS)) == 1
    if fits:
        assert len(check_fits(start, asked, VOCAB, CORPUS)) == 1
    else:
        with pytest.raises(InputError, match="plain bf16 optimizer"):
            check_fits(start, asked, VOCAB, CORPUS)


def test_what_changed_is_said(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, 7)
    config = small_config()
    config = replace(config, optim=replace(config.optim, lr=1e-3))
    other: Any = SimpleNamespace(tokenizer_hash="tokenizer", fingerprint="other")
    notes = check_fits(Start(found, resumes=True), config, VOCAB, other)
    assert notes[0].startswith("warning: the corpus is other, steps up to 7 were trained on corpus")
    assert notes[1:] == ["changed since step 7: optim.lr: 0.0003 -> 0.001"]
    # a branch is a run of its own: its config and its corpus are what they are
    assert check_fits(Start(found, resumes=False), config, VOCAB, other) == []


@pytest.mark.parametrize("resumes", [True, False])
def test_other_rates_need_an_optimizer_of_their_own(tmp_path: Path, resumes: bool) -> None:
    """Weights alone may go on at any rate; Adam's state is kept by groups of one rate."""
    start = Start(checkpoint(tmp_path, 7), resumes)
    config = small_config()
    config = replace(config, optim=replace(config.optim, embedding_lr_scale=2.0))
    if not resumes:
        assert check_fits(start, config, VOCAB, CORPUS) == []
        config = replace(config, checkpoint=replace(config.checkpoint, init_optimizer=True))
    with pytest.raises(InputError, match="each embedding learns at 2") as error:
        check_fits(start, config, VOCAB, CORPUS)
    assert len(error.value.problems) == 1


def test_a_longer_warm_up_of_the_vocabulary_is_there_from_the_start_or_never(
    tmp_path: Path,
) -> None:
    start, config = Start(checkpoint(tmp_path, 7), resumes=True), small_config()
    config = replace(config, optim=replace(config.optim, vocabulary_warmup_steps=20))
    with pytest.raises(InputError, match="vocabulary_warmup_steps=0, or checkpoint"):
        check_fits(start, config, VOCAB, CORPUS)


def test_what_it_is_said_to_start_from_and_does_not(tmp_path: Path) -> None:
    """Beside `continues from`, with the notes of a run that goes on."""
    older, newest = (checkpoint(tmp_path / "run", step) for step in (3, 7))
    other = checkpoint(tmp_path / "other", 9)
    start = Start(newest, resumes=True)

    def notes(origin: Path | str) -> list[str]:
        return check_fits(start, asking(init_from=str(origin)), VOCAB, CORPUS)

    for own in (tmp_path / "run", newest.path, newest.path.parent):
        assert ["changes nothing" in note for note in notes(own)] == [True]
    for unused in (older.path, other.path, "/gone"):
        assert ["is not used" in note for note in notes(unused)] == [True]
    save_config(asking(init_from="/gone"), newest.path / "config.yaml")
    assert notes("/gone") == []  # the same command again


def test_an_exit_gate_that_is_new_or_dropped_is_said(tmp_path: Path) -> None:
    plain = small_config()
    with_exit = replace(plain, objective=ObjectiveConfig(exit=True))
    for name, saved, asked, says in (
        ("new", plain, with_exit, "no exit gate"),
        ("dropped", with_exit, plain, "exit gate of"),
        ("one loop", with_exit, small_config(dict(num_loops=1)), "exit gate of"),
        ("same", with_exit, with_exit, None),
    ):
        found = checkpoint(tmp_path / name, 3, saved)
        notes = check_fits(Start(found, resumes=False), asked, VOCAB, CORPUS)
        assert [n for n in notes if "exit gate" in n] == [n for n in notes if says and says in n]
        assert any("exit gate" in n for n in notes) == (says is not None), name
    sharded = replace(with_exit, precision=replace(plain.precision, name="bf16"))
    whole = replace(sharded, parallel=replace(plain.parallel, distributed_optimizer=False))
    found = checkpoint(tmp_path / "branch", 3, plain)
    for config, refused in ((sharded, False), (whole, True)):
        asked = replace(
            config,
            checkpoint=replace(plain.checkpoint, init_from=str(found.path), init_optimizer=True),
        )
        try:
            check_fits(Start(found, resumes=False), asked, VOCAB, CORPUS)
            assert not refused
        except InputError as error:
            assert refused and "exit gate" in str(error)


@pytest.mark.parametrize("norm_per_loop", [True, False])
@pytest.mark.parametrize("objective", [{}, {"exit": True}, {"loop_weights": [1, 1]}], ids=str)
def test_losses_by_loop_without_a_norm_between_loops_are_warned_of(
    norm_per_loop: bool, objective: dict[str, Any]
) -> None:
    config = small_config(dict(norm_per_loop=norm_per_loop))
    config = replace(config, objective=ObjectiveConfig(**objective))
    warned = any("norm_per_loop" in note for note in notes_of_schedules(config, None))
    assert warned == (bool(objective) and not norm_per_loop)
