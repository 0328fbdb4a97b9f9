"""Validation: weighted by the mixture, over all domains of any data stage, as the stage trains."""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_pipeline.driver import prepare
from loopcoder.config.build import SourceConfig
from loopcoder.config.data import DataConfig, StageConfig
from loopcoder.config.evaluation import EvalConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.metrics.goodput import account_of, read_marks
from loopcoder.metrics.writer import read_metrics
from tests.configs import small_config
from tests.data.conftest import corpus, data
from tests.train.conftest import Start, finish

__all__ = ["corpus", "data"]  # fixtures

LOOPS = 2
MIXTURES = [{"text": 1, "code": 1}, {"text": 1, "code": 3}, {"text": 5, "code": 0.5}, {"code": 2}]


def loss_of(labels: torch.Tensor, loop: int, theta: float) -> torch.Tensor:
    """A loss that differs from token to token, by loop and by the base of RoPE."""
    return 2 + torch.sin(labels.double()) - 0.25 * loop + theta / 1e5


class Network:
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        self.theta = math.nan
        self.lengths: list[int] = []

    def set_rope_theta(self, theta: float) -> None:
        self.theta = theta

    def eval(self) -> None: ...

    def train(self) -> None: ...


@pytest.fixture
def state(ranks: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose loss is `loss_of`."""
    from loopcoder.train import validation

    network = Network()

    def losses(state: Any, batches: list[Any], *, every_loop: bool) -> Iterator[torch.Tensor]:
        network.lengths.append(batches[0].tokens.shape[1])
        for batch in batches:
            loops = range(LOOPS) if every_loop else [LOOPS - 1]
            yield torch.stack([loss_of(batch.labels, r, network.theta) for r in loops])

    monkeypatch.setattr(validation, "losses", losses)
    return SimpleNamespace(ranks=ranks, network=network)


def configured(sequences: int = 1000, **fields: Any) -> Config:
    """A config of few or all held-out sequences; keywords are fields of `data` or `eval`."""
    own = {k: fields.pop(k) for k in list(fields) if k in EvalConfig.__dataclass_fields__}
    config = small_config()
    evaluation = replace(config.eval, sequences_per_domain=sequences, **own)
    return replace(config, data=replace(config.data, **fields), eval=evaluation)


def means(evaluator: Any, stage: int = -1, theta: float = 1e4) -> dict[str, list[float]]:
    """Loss of every domain after each loop, label by label."""
    found = {}
    for held in evaluator.sets(stage):
        counts = held.valid & (held.rows[:, :-1] != held.eod)
        labels = held.rows[:, 1:][counts]
        found[held.domain] = [loss_of(labels, r, theta).mean().item() for r in range(LOOPS)]
    return found


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_domains_count_by_the_mixture(
    corpus: Corpus, state: Any, mixture: dict[str, float]
) -> None:
    """Whatever there is to be held out: in a mixture of 1:1 code once counted 5%."""
    from loopcoder.train.validation import Evaluator

    evaluator = Evaluator(configured(mixture=mixture), corpus)
    found, by_domain = evaluator(state), means(evaluator)
    total = sum(mixture.values())
    assert set(by_domain) == set(mixture)
    for domain, by_loop in by_domain.items():
        assert found[f"val/loss/{domain}"] == pytest.approx(by_loop[-1], rel=1e-6)
    for loop in range(LOOPS):
        mean = sum(weight * by_domain[d][loop] for d, weight in mixture.items()) / total
        assert found[f"val/loss/loop{loop}"] == pytest.approx(mean, rel=1e-6)
    assert found["val/loss"] == found[f"val/loss/loop{LOOPS - 1}"]


def test_languages_and_sources_have_a_loss_of_their_own(
    data: Callable[..., DataConfig], state: Any, tmp_path: Path
) -> None:
    """Over the held-out tokens of all domains, as many as the stage's own length has of each."""
    from loopcoder.train.validation import Evaluator

    for i in range(60):
        (tmp_path / "input" / f"other{i}.js").write_text(f"let a{i} = {i};\n" * 9)
    more = tmp_path / "more"
    more.mkdir()
    for i in range(60):
        (more / f"module{i}.py").write_text(f"value_{i} = {i}\n" * 9)
    folders = [SourceConfig(kind="files", path=str(f)) for f in (tmp_path / "input", more)]
    corpus = prepare(data(sources=folders), report=lambda _: None)
    mixture = {"text": 1.0, "code": 3.0}
    evaluator = Evaluator(configured(mixture=mixture, lengths=[20]), corpus)
    found, losses = evaluator(state), defaultdict[str, list[float]](list)
    for held in evaluator.sets():
        for batch in held.batches(0, 1, 2):
            of_token = loss_of(batch.labels, LOOPS - 1, 1e4)
            for label, loss, counts in zip(
                *(x.flatten().tolist() for x in (batch.label_ids, of_token, batch.loss_mask)),
                strict=True,
            ):
                if counts:
                    losses[f"language/{corpus.labels[label].language}"].append(loss)
                    losses[f"source/{corpus.labels[label].source}"].append(loss)
    assert losses.keys() == {
        *("language/Text", "language/Python", "language/JavaScript"),
        *("source/0-files", "source/1-files"),
    }
    for name, of_name in losses.items():
        assert found.pop(f"val/loss/{name}") == pytest.approx(sum(of_name) / len(of_name), rel=1e-6)
    assert not [name for name in found if "language" in name or "source" in name]
    for kind in ("language", "source"):
        of_kind = [of_name for name, of_name in losses.items() if name.startswith(kind)]
        whole = [batch.loss_mask.sum() for h in evaluator.sets() for batch in h.batches(0, 1, 2)]
        assert sum(map(len, of_kind)) == sum(whole)


@pytest.mark.parametrize("few", ["code", "text"])
def test_a_domain_with_few_tokens_counts_as_much(corpus: Corpus, state: Any, few: str) -> None:
    from loopcoder.train.validation import Evaluator

    evaluator = Evaluator(configured(mixture={"text": 1, "code": 1}), corpus)
    for held in evaluator.sets():
        if held.domain == few:
            held.rows, held.valid = held.rows[:1, :], held.valid[:1, :]
    sizes = {held.domain: len(held.rows) for held in evaluator.sets()}
    assert sizes[few] == 1 < min(size for domain, size in sizes.items() if domain != few)
    by_domain = means(evaluator)
    mean = sum(by_loop[-1] for by_loop in by_domain.values()) / 2
    assert evaluator(state)["val/loss"] == pytest.approx(mean, rel=1e-6)


def test_three_domains(corpus: Corpus, state: Any) -> None:
    from loopcoder.train.validation import Evaluator

    mixture = {"text": 1, "code": 2, "maths": 5}
    evaluator = Evaluator(configured(mixture=mixture), corpus)
    maths = copy.copy(evaluator.sets()[0])
    maths.domain, maths.rows, maths.valid = "maths", maths.rows[:2], maths.valid[:2]
    evaluator.sets().append(maths)
    found, by_domain = evaluator(state), means(evaluator)
    for loop in range(LOOPS):
        mean = sum(weight * by_domain[d][loop] for d, weight in mixture.items()) / 8
        assert found[f"val/loss/loop{loop}"] == pytest.approx(mean, rel=1e-6)


def test_a_domain_without_a_loss_counts_nothing(corpus: Corpus, state: Any) -> None:
    from loopcoder.train.validation import Evaluator

    evaluator = Evaluator(configured(per_loop=False), corpus)
    evaluator.sets()[0].valid[:] = False
    found = evaluator(state)
    assert set(found) == {
        "val/loss",
        "val/loss/code",
        "val/bpb/code",
        "val/loss/language/Python",
    }
    assert found["val/loss"] == found["val/loss/code"]
    evaluator.sets()[1].valid[:] = False
    assert math.isnan(evaluator(state)["val/loss"])


@pytest.mark.parametrize("lengths", [[12, 7, 40], [2, 48], [1000]], ids=str)
def test_every_length_covers_the_same_tokens(corpus: Corpus, lengths: list[int]) -> None:
    """Once as many sequences as of the stage's length, so of other text."""
    from loopcoder.train.validation import Evaluator

    config = configured(5, lengths=lengths)
    evaluator = Evaluator(config, corpus)
    for plain, own in zip(Evaluator(configured(5), corpus).sets(), evaluator.sets(), strict=True):
        assert torch.equal(plain.rows, own.rows) and torch.equal(plain.valid, own.valid)
    for length in lengths:
        for own, held in zip(evaluator.sets(), evaluator.sets(-1, length), strict=True):
            assert held.rows.shape[1] == length + 1
            assert len(held.rows) == -(-own.num_tokens // length)
            for tokens in (slice(None, -1), slice(1, None)):
                assert torch.equal(held.rows[:, tokens][held.valid], own.rows[:, tokens][own.valid])


def test_a_loss_that_needs_no_context_is_the_same_at_every_length(
    corpus: Corpus, state: Any
) -> None:
    from loopcoder.train.validation import Evaluator

    found = Evaluator(configured(5, lengths=[3, 17, 90, 2000]), corpus)(state)
    for length in (3, 17, 90, 2000):
        for name in ("", "/text", "/code"):
            further = found[f"val/loss/len{length}{name}"]
            assert further == pytest.approx(found[f"val/loss{name}"], rel=1e-6)


def test_a_length_of_which_there_is_no_whole_sequence_is_said(corpus: Corpus) -> None:
    from loopcoder.train.validation import Evaluator

    evaluator = Evaluator(configured(2, lengths=[64, 65, 32]), corpus)
    (line,) = evaluator.shortages()
    assert "validation at 65 tokens (eval.lengths) has no whole sequence" in line
    assert "2 sequences of 32" in line and "64 of text" in line and "64 of code" in line


@pytest.mark.parametrize("asked", [2, 1000])
def test_what_is_short_is_said(corpus: Corpus, asked: int) -> None:
    from loopcoder.train.validation import Evaluator

    stages = [StageConfig(until=500, seq_length=8), StageConfig(seq_length=16)]
    evaluator = Evaluator(configured(asked, stages=stages), corpus)
    said = list(evaluator.shortages())
    if asked == 2:
        assert said == []
        return
    assert len(said) == 2
    for index, line in enumerate(said):
        assert "eval.sequences_per_domain=1000" in line
        assert f"sequences of {[8, 16][index]} tokens" in line
        for held in evaluator.sets(index):
            assert f"{len(held.rows)} of {held.domain}" in line


def test_one_domain_alone_may_be_short(corpus: Corpus) -> None:
    from loopcoder.train.validation import Evaluator

    evaluator = Evaluator(configured(2), corpus)
    evaluator.sets()[1].rows = evaluator.sets()[1].rows[:1]
    (line,) = evaluator.shortages()
    assert "1 of code" in line and "text" not in line


STAGES = [
    StageConfig(until=500, mixture={"text": 3, "code": 1}, seq_length=8, rope_theta=2e4),
    StageConfig(until=900, mixture={"text": 1, "code": 1}, seq_length=24, rope_theta=3e4),
    StageConfig(mixture={"code": 1}, seq_length=16, rope_theta=4e4),
]


@pytest.mark.parametrize("index", range(3))
def test_each_stage_is_evaluated_as_it_trains(corpus: Corpus, state: Any, index: int) -> None:
    """All domains of any stage, at the length and base of the current one; text is evaluated while
    the last stage, code alone, is trained."""
    from loopcoder.train.validation import Evaluator

    stage = STAGES[index]
    assert stage.mixture and stage.seq_length and stage.rope_theta
    evaluator = Evaluator(configured(stages=STAGES), corpus)
    found = evaluator(state, index)
    by_domain = means(evaluator, index, stage.rope_theta)
    assert set(by_domain) == {"text", "code"}
    assert state.network.theta == stage.rope_theta
    assert set(state.network.lengths) == {stage.seq_length}
    for domain, by_loop in by_domain.items():
        assert found[f"val/loss/{domain}"] == pytest.approx(by_loop[-1], rel=1e-6)
        assert f"val/bpb/{domain}" in found
    total = sum(stage.mixture.values())
    mean = sum(weight * by_domain[d][-1] for d, weight in stage.mixture.items()) / total
    assert found["val/loss"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("only", ["text", "code"])
def test_a_domain_of_the_first_stage_only(corpus: Corpus, state: Any, only: str) -> None:
    from loopcoder.train.validation import Evaluator

    other = "code" if only == "text" else "text"
    stages = [StageConfig(until=500, mixture={only: 1.0}), StageConfig(mixture={other: 1.0})]
    evaluator = Evaluator(configured(stages=stages), corpus)
    for index, domain in enumerate([only, other]):
        found = evaluator(state, index)
        assert found["val/loss"] == found[f"val/loss/{domain}"]
        assert found["val/loss/text"] != found["val/loss/code"]


def test_a_domain_of_no_stage_is_not_evaluated(corpus: Corpus, state: Any) -> None:
    from loopcoder.train.validation import Evaluator

    stages = [StageConfig(until=500, mixture={"code": 1.0}), StageConfig(mixture={"code": 2.0})]
    found = Evaluator(configured(stages=stages), corpus)(state)
    assert not [name for name in found if "text" in name]


def test_further_lengths(corpus: Corpus, state: Any) -> None:
    """Each under its own name, that of the stage as well, and none is computed twice."""
    from loopcoder.train.validation import Evaluator

    evaluator = Evaluator(configured(2, stages=STAGES, lengths=[24, 12]), corpus)
    plain = Evaluator(configured(2, stages=STAGES), corpus)(state, 1)
    state.network.lengths.clear()
    found = evaluator(state, 1)
    assert sorted(state.network.lengths) == [12, 12, 24, 24]
    assert {k: v for k, v in found.items() if "len" not in k} == plain
    by_label = {name for name in plain if "/language/" in name or "/source/" in name}
    assert by_label  # at the stage's own length only
    for name in plain.keys() - by_label:
        kind, *rest = name.removeprefix("val/").split("/")
        assert found["/".join(["val", kind, "len24", *rest])] == plain[name]
        assert "/".join(["val", kind, "len12", *rest]) in found
    # the same tokens, and this model does not read the tokens before
    assert found["val/loss/len12"] == pytest.approx(found["val/loss"], rel=1e-6)
    # in another stage the same lengths, with its mixture
    found = evaluator(state, 2)
    assert found["val/loss/len12"] == found["val/loss/len12/code"]
    assert {name for name in found if name.startswith("val/loss/len")} >= {
        "val/loss/len24",
        "val/loss/len12/loop0",
        "val/loss/len24/text",
    }


def test_without_stages_the_sequences_are_those_of_the_config(
    corpus: Corpus, data: Callable[..., Any]
) -> None:
    from loopcoder.data.heldout import HeldOut
    from loopcoder.train.validation import Evaluator

    config = configured(3)
    for held in Evaluator(config, corpus).sets():
        length = config.data.seq_length
        plain = HeldOut(corpus, held.domain, config.data, length, 3 * length)
        assert torch.equal(held.rows, plain.rows) and torch.equal(held.valid, plain.valid)


@pytest.mark.parametrize("sequences", [8, 128])
@pytest.mark.parametrize("mixture", [{"text": 1, "code": 1}, {"text": 1, "code": 3}], ids=str)
def test_the_unigram_entropy_is_of_the_corpus(
    corpus: Corpus, mixture: dict[str, float], sequences: int
) -> None:
    """It was that of the evaluated tokens: 6.40 with 128 sequences, 5.74 with 8."""
    from loopcoder.train.evaluation import Evaluation
    from loopcoder.train.validation import Evaluator

    config = configured(sequences, mixture=mixture)
    noted: list[str] = []
    evaluation = Evaluation(config, corpus)
    evaluation.prepare(0, noted.append, lambda _: None, is_main=True)
    assert noted == list(Evaluator(config, corpus).shortages())
    entropy = corpus.manifest["unigram_entropy"]
    mean = sum(weight * entropy[d] for d, weight in mixture.items()) / sum(mixture.values())
    assert evaluation.loss is None
    found = evaluation.fields(0)
    assert found.pop("val/unigram_entropy") == pytest.approx(mean, rel=1e-12)
    assert evaluation.unigram_entropy == pytest.approx(mean, rel=1e-12)
    assert found == {"val/weighting": "mixture"}


@pytest.mark.parametrize("evaluates", [dict(interval=5, at_end=False), dict(interval=None)])
def test_a_run_without_validation_counts_nothing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, evaluates: dict[str, Any]
) -> None:
    from loopcoder.train import evaluation

    counted: list[Corpus] = []
    monkeypatch.setattr(evaluation, "entropies_of", lambda corpus, *_: counted.append(corpus))
    for fields in (evaluates, dict(interval=None, at_end=False)):
        config = configured(**fields)
        found = evaluation.Evaluation(config, corpus)
        found.prepare(0, lambda _: None, lambda _: None, is_main=True)
    assert counted == [corpus]


@pytest.mark.dist_full
def test_a_run_records_what_its_validation_means(
    start: Start, environment: dict[str, str], tmp_path: Path
) -> None:
    """Two stages of two steps each, evaluated after every step; text is in the first alone."""
    run_dir = tmp_path / "run"
    output = finish(
        start(
            run_dir,
            "train.max_steps=4",
            "data.stages=[{until:512,mixture:{text:1,code:1}},{mixture:{code:1},seq_length:32}]",
            *("eval.interval=1", "eval.lengths=[48]", "eval.sequences_per_domain=100000"),
        )
    )
    records = read_metrics(run_dir / "metrics.jsonl")
    assert [r["stage"] for r in records] == [0, 0, 1, 1]
    for record in records:
        text, code = record["val/loss/text"], record["val/loss/code"]
        mean = (text + code) / 2 if record["stage"] == 0 else code
        assert record["val/loss"] == pytest.approx(mean, rel=1e-12)
        assert record["val/weighting"] == "mixture"
        assert {"val/loss/len48", "val/loss/len48/text"} <= record.keys()
    first, last = records[0]["val/unigram_entropy"], records[-1]["val/unigram_entropy"]
    state = json.loads((run_dir / "checkpoints" / "step_00000004" / "state.json").read_text())
    (folder,) = Path(environment["LOOPCODER_CACHE"]).glob(f"files-{state['corpus']}")
    entropy = json.loads((folder / "manifest.json").read_text())["unigram_entropy"]
    assert first == pytest.approx((entropy["text"] + entropy["code"]) / 2, rel=1e-12)
    assert last == entropy["code"]
    assert f"the unigram entropy {last:.2f}" in output
    # at the length of each stage, once; the further length cuts the same tokens
    assert output.count("\nvalidation has fewer sequences") == 2
    events = read_metrics(run_dir / "events.jsonl")
    notes = [e["text"] for e in events if e["kind"] == "note" and "fewer" in e["text"]]
    began = events[0]
    assert began["kind"] == "run_started" and f"run_dir={run_dir}" in began["command"]
    assert {"commit", "host", "python", "torch", "megatron_core", "processes"} <= began.keys()
    assert all(0 < record["compute_s"] < record["step_time_s"] for record in records)
    assert all(0 < record["goodput"] < 1 for record in records)
    account = account_of(read_marks(run_dir))
    assert account.seconds["lost"] + account.seconds["down"] < 0.05 * account.total
    (where,) = [line for line in output.splitlines() if line.startswith("time: ")]
    assert " in steps that count; " in where and "start " in where and "evaluation" in where
    times = [datetime.fromisoformat(record["time"]) for record in records]
    assert sorted(times) == times and times[0].tzinfo is not None
    assert [line.split(" tokens")[0].split()[-1] for line in notes] == ["32", "64"]
