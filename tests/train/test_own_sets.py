"""Validation sets of one's own: their loss, which documents, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.driver import prepare
from loopcoder.config.build import SourceConfig
from loopcoder.config.compose import compose
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import Corpus
from loopcoder.data.heldout import HeldOut
from loopcoder.errors import InputError
from loopcoder.metrics.writer import read_metrics
from tests.data.conftest import corpus, data
from tests.train.conftest import Start, finish
from tests.train.test_validation import configured, loss_of, state

__all__ = ["corpus", "data", "state"]  # fixtures


def build_set(data: DataConfig, folder: Path, tokenizer: Path | None) -> Corpus:
    """Build a corpus of some other documents, of code alone, most of them held out."""
    folder.mkdir()
    for i in range(30):
        (folder / f"own{i}.py").write_text(
            f"n = {i}\n" + "".join(f"m{j} = {i * j}\n" for j in range(9))
        )
    build = replace(
        data.build,
        sources=[SourceConfig(kind="files", path=str(folder))],
        tokenizer="train" if tokenizer is None else str(tokenizer),
        val_fraction=0.8,
    )
    mixed = replace(data, mixture={"code": 1.0}, build=build)
    return prepare(mixed, report=lambda _: None)


@pytest.fixture
def own(data: Callable[..., DataConfig], corpus: Corpus, tmp_path: Path) -> Corpus:
    return build_set(data(), tmp_path / "own", corpus.tokenizer_path)


def test_a_set_is_evaluated_whole_and_changes_nothing_else(
    corpus: Corpus, own: Corpus, state: Any
) -> None:
    from loopcoder.train.own_sets import OwnSets
    from loopcoder.train.validation import Evaluator

    config = configured(sequences=2, corpora={"exam": str(own.dir), "again": str(corpus.dir)})
    found = OwnSets(config, corpus)(state)
    held = HeldOut(own, "code", config.data, config.data.seq_length, own.tokens("code", "val"))
    counts = held.valid & (held.rows[:, :-1] != held.eod)
    assert held.num_tokens == own.tokens("code", "val") - 1 > 2 * config.data.seq_length
    mean = loss_of(held.rows[:, 1:][counts], 1, 1e4).mean().item()
    assert found["val/exam/loss"] == pytest.approx(found["val/exam/loss/code"], rel=1e-12)
    assert found["val/exam/loss"] == pytest.approx(mean, rel=1e-6)
    tokens = {d: corpus.tokens(d, "val") for d in corpus.domains}
    both = sum(found[f"val/again/loss/{d}"] * n for d, n in tokens.items()) / sum(tokens.values())
    assert found["val/again/loss"] == pytest.approx(both, rel=1e-6)
    assert {"val/exam/loss/loop0", "val/exam/bpb/code"} < found.keys()
    without = Evaluator(configured(sequences=2), corpus)(state)
    assert Evaluator(config, corpus)(state) == without
    assert not found.keys() & without.keys()


def test_fewer_sequences_and_further_lengths(corpus: Corpus, own: Corpus, state: Any) -> None:
    from loopcoder.train.own_sets import OwnSets

    config = configured(corpora={"exam": str(own.dir)}, corpora_sequences=2, lengths=[8])
    sets = OwnSets(config, corpus)
    assert list(sets.sizes()) == ["eval.corpora.exam: 64 tokens of code in 2 sequences"]
    found = sets(state)
    at_8 = [found[f"val/exam/loss/len8{of}"] for of in ("", "/code")]  # of the same labels
    assert at_8 == pytest.approx([found["val/exam/loss"]] * 2, rel=1e-6)


def test_few_microbatches_are_on_the_device_at_once(
    corpus: Corpus, own: Corpus, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopcoder.train import validation
    from loopcoder.train.own_sets import OwnSets

    config = configured(corpora={"exam": str(own.dir)})
    whole = OwnSets(config, corpus)(state)
    asked, losses = [], validation.losses

    def counting(state: Any, batches: list[Any], **options: Any) -> Any:
        asked.append(len(batches))
        return losses(state, batches, **options)

    monkeypatch.setattr(validation, "losses", counting)
    monkeypatch.setattr(validation, "_AT_ONCE", 2)
    assert OwnSets(config, corpus)(state) == whole
    assert max(asked) == 2 < sum(asked)


def refused(corpus: Corpus, **fields: Any) -> InputError:
    from loopcoder.train.own_sets import OwnSets

    with pytest.raises(InputError) as error:
        OwnSets(configured(**fields), corpus)
    return error.value


def test_other_tokens_are_refused(
    data: Callable[..., DataConfig], corpus: Corpus, tmp_path: Path
) -> None:
    other = build_set(data(), tmp_path / "other", None)
    (problem,) = refused(corpus, corpora={"exam": str(other.dir)}).problems
    assert f"{other.dir} has another tokenizer than {corpus.dir}" in problem.fact
    assert f"data.build.tokenizer={corpus.tokenizer_path}" in problem.fix
    assert "eval.corpora={}" in problem.fix


def test_what_is_no_corpus_or_damaged_is_refused_all_at_once(
    corpus: Corpus, own: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "documents").mkdir()
    (own.dir / "val" / "code.bin").write_bytes(b"ab")
    sets = {"a": str(tmp_path / "nothing"), "b": str(tmp_path / "documents")}
    first, second = refused(corpus, corpora=sets).problems
    assert "eval.corpora.a" in first.fact and "val_fraction=0.9" in first.fix
    assert "eval.corpora.b" in second.fact and f"eval.corpora={{a:{sets['a']}}}" in second.fix
    (damaged,) = refused(corpus, corpora={"exam": str(own.dir)}).problems
    assert "code.bin" in damaged.fact


def test_a_set_that_is_too_large_is_refused_unless_a_part_is_asked_for(
    corpus: Corpus, own: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopcoder.data import own_sets

    monkeypatch.setattr(own_sets, "_MOST_TOKENS", 50)
    (problem,) = refused(corpus, corpora={"exam": str(own.dir)}).problems
    assert problem.fix == "eval.corpora_sequences=1000"
    part = configured(corpora={"exam": str(own.dir)}, corpora_sequences=1)
    assert own_sets.open_own_sets(part, corpus, "size").keys() == {"exam"}


@pytest.mark.parametrize("name", ["loss", "bpb", "weighting", "unigram_entropy", "a/b", ""])
def test_a_name_that_would_be_another_field_is_refused(name: str) -> None:
    from loopcoder.config.check_corpora import check_own_sets

    (problem,) = check_own_sets(configured(corpora={name: "DIR"}))
    assert problem.fix == "'eval.corpora={own:DIR}'"
    assert not list(check_own_sets(configured(corpora={"exam_2": "DIR"})))


def test_a_config_without_sets_keeps_its_name() -> None:
    from loopcoder.config.identity import config_hash

    asked = compose([])
    assert asked.eval.corpora == {}
    assert config_hash(compose(["eval.corpora={a:DIR}"])) != config_hash(asked)
    assert compose(["eval.corpora.a=DIR"]).eval.corpora == {"a": "DIR"}


@pytest.mark.data_full
def test_train_and_evaluate_know_the_sets(
    start: Start, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is given the corpus of another one as a set; its own validation stays bit for bit."""
    from loopcoder.cli import main as cli

    plain, own = tmp_path / "plain", tmp_path / "own"
    output = finish(start(plain, "train.max_steps=2"))
    folder = json.loads((plain / "corpus.json").read_text())["dir"]
    assert "eval.corpora" not in output
    output = finish(start(own, "train.max_steps=2", f"eval.corpora={{exam:{folder}}}"))
    assert "eval.corpora.exam:" in output
    before, after = (read_metrics(run / "metrics.jsonl")[-1] for run in (plain, own))
    same = [key for key in before if key.startswith(("loss", "val/"))]
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
    assert {"val/exam/loss", "val/exam/loss/text", "val/exam/bpb/code"} < after.keys()
    assert cli.main(["evaluate", f"checkpoint={own}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val/exam/loss"] == pytest.approx(after["val/exam/loss"], rel=1e-5)
