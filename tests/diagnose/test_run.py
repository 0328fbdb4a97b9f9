"""A whole diagnosis of a small model equals a direct computation on what the model computes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from loopcoder.data.corpus import Corpus
from loopcoder.diagnose.reading import by_loop
from loopcoder.diagnose.results import Diagnosis
from loopcoder.errors import InputError
from tests.data.conftest import corpus, data
from tests.diagnose import naive
from tests.diagnose.models import SETTINGS, config_for, loaded

__all__ = ["corpus", "data"]  # fixtures

MODELS = {
    "r3": dict(num_loops=3),
    "r2 more loops": dict(num_loops=2),
    "own": dict(num_loops=2, kv_sharing="own", norm_per_loop=False),
    "r1": dict(num_loops=1),
}


def direct(run: Any, config: Any, corpus: Corpus, loops: int) -> list[tuple[int, list[int], Any]]:
    """Return domain, labels' languages and all values of each sequence."""
    from loopcoder.diagnose.passing import run_loops
    from loopcoder.diagnose.sequences import HeldOutData

    data = HeldOutData.of(config, corpus, SETTINGS, 0)
    found = []
    more = 0 if config.model.num_loops == 1 else 1
    for domain, batch in data.batches(run.state.ranks, 1):
        (subset,) = data.subsets(domain, batch, torch.device("cpu"))
        seen: Any = naive.Recorder()
        run_loops(run.model, batch, loops + more, seen, run.state.ranks)
        values = naive.measure(
            seen,
            batch.labels[0],
            batch.loss_mask[0],
            batch.document_start[0],
            config.model.window,
            loops,
            subset,
        )
        found.append((domain, data.language_of[batch.label_ids[0]].tolist(), values))
    return found


def mean(values: list[float]) -> float:
    there = [v for v in values if not math.isnan(v)]
    return sum(there) / len(there) if there else math.nan


def expected(found: Any, group: str, key: Any, corpus: Corpus, languages: list[str]) -> float:
    """The mean of a group; that of all domains weighs text 1 and code 3."""
    name = group.partition("/")[2]
    by_domain = defaultdict(list)
    for domain, language, values in found:
        of_sequence = values.get(key, [])
        if of_sequence and group.startswith("language/"):
            pairs = zip(of_sequence, language, strict=True)
            of_sequence = [v for v, i in pairs if languages[i] == name]
        by_domain[corpus.domains[domain]] += of_sequence
    if group.startswith("domain/"):
        return mean(by_domain[name])
    if group.startswith("language/"):
        return mean([v for values in by_domain.values() for v in values])
    weights = {"text": 1, "code": 3}
    means = {d: m for d, v in by_domain.items() if not math.isnan(m := mean(v))}
    if not means:
        return math.nan
    return sum(weights[d] * m for d, m in means.items()) / sum(weights[d] for d in means)


def close(got: Any, wanted: float) -> bool:
    if math.isnan(wanted):
        return got is None
    return got is not None and abs(got - wanted) <= 1e-6 * abs(wanted) + 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_it_equals_a_direct_computation(
    ranks: Any, corpus: Corpus, data: Callable[..., Any], seed: int, name: str
) -> None:
    from loopcoder.diagnose.run import measure
    from loopcoder.diagnose.sequences import HeldOutData

    config = config_for(corpus, data().seq_length, MODELS[name])
    settings = replace(SETTINGS, loops=3) if name == "r2 more loops" else SETTINGS
    loops = settings.loops or config.model.num_loops
    run = loaded(config, loops, ranks, seed)
    config = replace(config, train=replace(config.train, micro_batch_size=3))
    diagnosis = measure(run, config, corpus, settings, "tiny", lambda _: None)
    assert isinstance(diagnosis, Diagnosis)
    found = direct(run, config, corpus, loops)
    languages = HeldOutData.of(config, corpus, settings, 0).languages
    checked = set()
    for series in diagnosis.series:
        assert series.loops == list(range(1, loops + 1))
        if series.measure in ("rank", "concentration"):
            continue
        for i, loop in enumerate(series.loops):
            at = series.layers if series.layers is not None else [None]
            by_layer = series.values[i] if series.layers is not None else [series.values[i]]
            for layer, got in zip(at, by_layer, strict=True):
                key = (series.measure, series.variant, loop, layer)
                wanted = expected(found, series.group, key, corpus, languages)
                if layer is None and all(key not in values for _, _, values in found):
                    of_layers = [
                        expected(found, series.group, (*key[:3], n), corpus, languages)
                        for n in range(config.model.num_layers)
                    ]
                    wanted = sum(of_layers) / len(of_layers)
                assert close(got, wanted), (series.group, key, got, wanted)
                if not math.isnan(wanted):
                    checked.add((series.measure, series.variant, series.group))
    groups = {"all", "domain/text", "domain/code"}
    measures = {key[:2] for _, _, values in found for key in values if key[0][0] != "_"}
    for measured in measures - {("rank", "")}:
        assert {group for m, v, group in checked if (m, v) == measured} >= groups, measured
    check_ranks_and_shares(diagnosis, found, loops)
    check_exits(diagnosis, found, loops)


def check_exits(diagnosis: Diagnosis, found: Any, loops: int) -> None:
    """Let every token leave by the rules, one by one."""
    assert bool(diagnosis.exits) == (loops > 1)
    for rule in diagnosis.exits:
        left: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
        for domain, _, values in found:
            for t, loss in enumerate(values["loss", "", 1, None]):
                if math.isnan(loss):
                    continue
                at = loops
                for r in range(loops, 0, -1):
                    if rule.rule == "confidence":
                        leaves = values["_confidence", "", r, None][t] >= rule.threshold
                    else:
                        leaves = r > 1 and values["output_shift", "", r, None][t] <= rule.threshold
                    at = r if leaves else at
                predicted = [values["_prediction", "", r, None][t] for r in (at, loops)]
                same = float(predicted[0] == predicted[1])
                left[domain].append((at, values["loss", "", at, None][t], same))
        weights = [{"text": 1, "code": 3}[name] for name in diagnosis.data["domains"]]
        for i, got in enumerate((rule.mean_loops, rule.loss, rule.agreement)):
            means = [sum(x[i] for x in left[d]) / len(left[d]) for d in range(len(weights))]
            wanted = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
            assert close(got, wanted), (rule, i, wanted)


def check_ranks_and_shares(diagnosis: Diagnosis, found: Any, loops: int) -> None:
    for domain, group in enumerate(("text", "code")):
        medians = by_loop(diagnosis, "rank", "", f"domain/{group}")
        assert len(medians) == loops
        for loop, got in medians.items():
            ranks = sorted(
                v
                for d, _, values in found
                if diagnosis.data["domains"][d] == group
                for v in values["rank", "", loop, None]
                if not math.isnan(v)
            )
            assert got.value == ranks[(len(ranks) - 1) // 2], (domain, loop)
    if loops < 3:
        return
    for group in ("text", "code"):
        of = [v for d, _, v in found if diagnosis.data["domains"][d] == group]
        shifts = [
            [x for v in of for x in v["output_shift", "", r, None] if not math.isnan(x)]
            for r in range(2, loops + 1)
        ]
        total = sum(map(sum, shifts))
        shares, largest = (
            by_loop(diagnosis, "concentration", variant, f"domain/{group}")
            for variant in ("output_shift", "largest_shift")
        )
        tokens = list(zip(*shifts, strict=True))
        for i in range(loops - 1):
            assert close(shares[i + 2].value, sum(shifts[i]) / total)
            share = sum(max(range(loops - 1), key=t.__getitem__) == i for t in tokens) / len(tokens)
            assert close(largest[i + 2].value, share)


def test_one_loop_has_no_others(
    ranks: Any, corpus: Corpus, data: Callable[..., Any], seed: int
) -> None:
    from loopcoder.diagnose.measurable import loops_to_measure
    from loopcoder.diagnose.run import measure

    config = config_for(corpus, data().seq_length, dict(num_loops=1))
    diagnosis = measure(loaded(config, 1, ranks, seed), config, corpus, SETTINGS, "x", print)
    assert diagnosis is not None and diagnosis.loops == 1 and diagnosis.exits == []
    for measure_name in ("gate", "fixed_point_gap", "offset_cost", "output_shift"):
        assert all(s.measure != measure_name for s in diagnosis.series)
    assert any("R = 1" in note for note in diagnosis.notes)
    with pytest.raises(InputError, match="one loop"):
        loops_to_measure(config.model, replace(SETTINGS, loops=2))


def test_too_few_sequences_are_said(
    ranks: Any, corpus: Corpus, data: Callable[..., Any], seed: int
) -> None:
    from loopcoder.diagnose.run import measure

    config = config_for(corpus, data().seq_length, dict(num_loops=1))
    run = loaded(config, 1, ranks, seed)
    with pytest.raises(InputError, match="2 domains"):
        measure(run, config, corpus, replace(SETTINGS, sequences=1), "x", print)
    diagnosis = measure(run, config, corpus, replace(SETTINGS, sequences=100000), "x", print)
    assert diagnosis is not None
    assert any("diagnose.sequences=100000" in note for note in diagnosis.notes)
    assert not any("no 95% intervals" in note for note in diagnosis.notes)
    diagnosis = measure(run, config, corpus, replace(SETTINGS, sequences=3), "x", print)
    assert diagnosis is not None
    (note,) = (note for note in diagnosis.notes if "no 95% intervals" in note)
    single = [d for d, n in diagnosis.data["sequences"].items() if n == 1]
    assert len(single) == 1 and f"fewer of {single[0]} (" in note
