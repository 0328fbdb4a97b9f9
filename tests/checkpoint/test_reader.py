"""A run keeps the reader that it began with; one that begins takes what suits its corpus."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.history import stand_before
from loopcoder.checkpoint.start import Start, check_fits, check_start, with_kept_reader
from loopcoder.config.compose import save_config
from loopcoder.config.data import StageConfig
from loopcoder.config.fields import FieldAt, part_that_changes
from loopcoder.config.identity import config_hash
from loopcoder.config.schema import Config
from loopcoder.data.corpus import with_reader
from loopcoder.errors import InputError
from tests.checkpoint.states import state_at
from tests.configs import small_config

CORPUS: Any = SimpleNamespace(tokenizer_hash="tokenizer", fingerprint="corpus")


def asking(reader: Any) -> Config:
    config = small_config()
    train = replace(config.train, max_steps=10)
    return replace(config, train=train, data=replace(config.data, reader=reader))


def saved(run_dir: Path, written: str | None, recorded: str | None) -> Checkpoint:
    """A checkpoint whose config and whose state name a reader, or are of a version without one."""
    folder = layout.step_folder(run_dir, 7)
    folder.mkdir(parents=True)
    state = state_at(7, vocab_size=128, reader=recorded).to_json()
    if recorded is None:
        del state["reader"]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "manifest.json").write_text('{"files": {}}')
    for path in (folder / "config.yaml", run_dir / "config.yaml"):
        save_config(asking(written or "auto"), path)
        if written is None:
            content = yaml.safe_load(path.read_text())
            del content["data"]["reader"]
            path.write_text(yaml.safe_dump(content))
    return Checkpoint(folder, 7)


KEPT = [
    (None, None, "megatron"),  # of the version before there was a choice
    ("megatron", None, "megatron"),  # of one that had it and kept no record
    ("packed", None, "packed"),
    ("packed", "packed", "packed"),
    ("megatron", "megatron", "megatron"),
    ("shuffled", None, "shuffled"),
    ("shuffled", "shuffled", "shuffled"),
]


@pytest.mark.parametrize(("written", "recorded", "kept"), KEPT)
def test_a_run_that_goes_on_keeps_its_reader(
    tmp_path: Path, written: str | None, recorded: str | None, kept: str
) -> None:
    checkpoint = saved(tmp_path, written, recorded)
    assert checkpoint.config().data.reader == kept
    for start in (Start(checkpoint, True), Start(checkpoint, False, keeps_position=True)):
        assert with_kept_reader(asking("auto"), start).data.reader == kept
        assert check_fits(start, asking("auto"), 128, CORPUS) == []
        other = "packed" if kept == "megatron" else "megatron"
        with pytest.raises(InputError, match=f"data.reader={other}, steps up to 7") as error:
            check_fits(start, asking(other), 128, CORPUS)
        assert f"data.reader={kept}" in error.value.problems[0].fix
    check_start(asking("auto"), tmp_path)  # before there is a corpus
    for step in (5, 9):
        assert stand_before(tmp_path, step).config.data.reader == kept


def of_two_lengths(config: Config) -> Config:
    stages = [StageConfig(until=1000), StageConfig(seq_length=2 * config.data.seq_length)]
    return replace(config, data=replace(config.data, stages=stages))


def test_a_run_that_begins_takes_what_suits_its_corpus(tmp_path: Path) -> None:
    branch = Start(saved(tmp_path, "packed", "packed"), resumes=False)

    def corpus_of(has_digests: bool, *urls: str | None) -> Any:
        members = tuple(SimpleNamespace(url=url) for url in urls)
        return SimpleNamespace(has_digests=has_digests, is_packed=False, members=members)

    with_digests, without = corpus_of(True, None), corpus_of(False, None)
    stored = "s3://bucket/corpus"
    for start in (None, branch):
        asked = with_kept_reader(asking("auto"), start)
        assert with_reader(asked, with_digests).data.reader == "shuffled"
        assert with_reader(of_two_lengths(asked), with_digests).data.reader == "packed"
        assert with_reader(asked, without).data.reader == "megatron"
        for in_store in (corpus_of(False, stored), corpus_of(False, stored, None)):
            assert with_reader(asked, in_store).data.reader == "shuffled"
    for named in ("shuffled", "packed", "megatron"):
        for corpus in (with_digests, without):
            assert with_reader(asking(named), corpus).data.reader == named


def test_a_point_of_a_sweep_takes_the_order_of_the_first(tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert with_kept_reader(asking("auto"), None, first).data.reader == "auto"
    saved(first, None, None)
    assert with_kept_reader(asking("auto"), None, first).data.reader == "megatron"
    assert with_kept_reader(asking("packed"), None, first).data.reader == "packed"


def test_a_choice_renames_no_run() -> None:
    """Runs that named none keep their names."""
    named = config_hash(asking("auto"))
    assert named not in {
        config_hash(asking(reader)) for reader in ("packed", "megatron", "shuffled")
    }
    plain = asdict(asking("auto"))
    assert "reader" not in part_that_changes(plain, FieldAt(Config), {"numbers"})["data"]
