"""Steps that are captured, with a stand-in for CUDA's graphs: its replays call what was captured.

So what a graph would read is what is tested here: nothing of a step may reach it but through the
memory that it was captured with. That CUDA captures it is tested in tests/gpu/test_graphs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.train.graph_steps import (
    DOMAINS,
    batches_of,
    build,
    config_of,
    rate,
    same_bits,
    train_eagerly,
    trained,
)


class Captures:
    """Stands for CUDA's graphs."""

    def __init__(self, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.made = self.replays = 0
        self._fails_at, self._error = fails_at, error

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        if self.made == self._fails_at:
            assert self._error is not None
            raise self._error
        self.made += 1
        kept: list[torch.Tensor] = []

        def replay() -> Any:
            self.replays += 1
            found = run()
            kept.extend(x.clone() for x in found[len(kept) :])
            for place, x in zip(kept, found, strict=True):  # always the same, as a graph's
                place.copy_(x)
            return tuple(kept)

        return replay


def captured_step(state: Any, config: Any, captures: Any = None, **options: Any) -> Any:
    from loopcoder.train.graph import CapturedStep

    options.setdefault("say", lambda _: None)
    return CapturedStep(state, config, DOMAINS, capture=captures or Captures(), **options)


CASES: dict[str, dict[str, Any]] = {
    "r1": dict(num_loops=1),
    "r2": dict(num_loops=2),
    "r3": dict(num_loops=3, window=4),
    "own_kv": dict(num_loops=2, kv_sharing="own"),
}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "rows"])
@pytest.mark.parametrize(
    ("case", "precision"), [*((case, "fp32") for case in CASES), ("r2", "bf16")]
)
def test_fifty_steps_are_those_of_a_run_without(
    ranks: Any, seed: int, case: str, packed: bool, precision: str
) -> None:
    """Bit for bit, with other tokens, borders, masks, domains and rates in each."""
    config = config_of(CASES[case], precision)
    state, plain = (build(config, ranks) for _ in range(2))
    captures = Captures()
    step_of, found, expected = captured_step(state, config, captures), [], []
    for step in range(1, 51):
        batches = batches_of(seed + step, packed=packed)
        sums, norm, measures = step_of(batches, *rate(step))
        found += [sums, norm]
        expected += train_eagerly(plain, config, batches, step)
        assert measures.by_label is None
    assert same_bits(found, expected)
    assert same_bits(trained(state), trained(plain))
    assert (captures.made, captures.replays) == (1, 47)


class Operators(TorchDispatchMode):
    """Writes down what is run: names, numbers of Python, and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def said(x: Any) -> Any:
            if isinstance(x, torch.Tensor):
                return x.dtype, tuple(x.shape)
            return x if isinstance(x, int | float | str | torch.dtype | None) else type(x)

        name, given = str(func), tree_map(said, (args, kwargs or {}))
        # the kernel for GPUs reads its numbers from the device; see test_adamw_kernel
        self.log.append(name if "_fused_adamw_" in name else f"{name} {given}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("one_row", [True, False], ids=["one_row", "rows"])
@pytest.mark.parametrize("case", ["r1", "r3"])
def test_what_runs_depends_on_no_step(
    ranks: Any, seed: int, case: str, one_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same operators with the same numbers of Python whatever the tokens, borders and rates
    are, none of which asks the device for a number: or a graph would repeat those of one step."""
    config = config_of(CASES[case], "bf16")
    state, logs = build(config, ranks), []

    class Logging(Captures):
        def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
            def replay() -> Any:
                with Operators() as mode:
                    found = run()
                logs.append(mode.log)
                return found

            return replay

    step_of = captured_step(state, config, Logging())
    monkeypatch.setattr(step_of, "_one_row", one_row)
    for step in range(1, 8):
        step_of(batches_of(seed + step, borders=0.02 * step), *rate(step))
    assert len(logs) == 4 and len(logs[0]) > 300
    assert all(log == logs[0] for log in logs)
    asks = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal.default")
    asked = [line for line in logs[0] if any(name in line.split(" ")[0] for name in asks)]
    # megatron-core's norm, which stays on the device where Transformer Engine is installed
    assert asked == ["aten._local_scalar_dense.default (((torch.float32, (1,)),), {})"]


@pytest.mark.parametrize("loops", [1, 2])
def test_rows_end_to_end_train_the_same(
    ranks: Any, seed: int, loops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Transformer Engine's layers get: one row, and borders of as many documents as there is
    room for. Equal to rounding; what is masked shows that the empty ones are."""
    config = config_of(dict(num_loops=loops))
    state, plain = (build(config, ranks) for _ in range(2))
    step_of = captured_step(state, config)
    monkeypatch.setattr(step_of, "_one_row", True)
    seen = []
    forward = state.network.forward
    monkeypatch.setattr(
        state.network,
        "forward",
        lambda tokens, docs, *args, **kwargs: (
            seen.append((tokens.shape, docs.cu_seqlens.tolist(), docs.max_seqlen))
            or forward(tokens, docs, *args, **kwargs)
        ),
    )
    for step in range(1, 9):
        batches = batches_of(seed + step)
        sums, norm, _ = step_of(batches, *rate(step))
        expected_sums, expected_norm = train_eagerly(plain, config, batches, step)
        torch.testing.assert_close(sums, expected_sums, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm, expected_norm, rtol=1e-3, atol=1e-5)
        for batch, (shape, borders, longest) in zip(batches, seen, strict=True):
            assert (shape, longest) == ((1, 64), 32)
            documents = batch.cu_seqlens.tolist()
            assert borders == documents + [64] * (33 - len(documents))
        seen.clear()


def test_a_graph_reads_the_same_memory_in_every_step(ranks: Any, seed: int) -> None:
    config = config_of()
    state = build(config, ranks)
    places = []

    class Watching(Captures):
        def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
            graph = run.args[0]  # type: ignore[attr-defined]

            def replay() -> Any:
                tensors = [x for b in graph.batches for x in vars(b).values()]
                numbers = [adam.numbers for adam in adams_of(state.optimizer)]
                read = [x for x in [*tensors, *numbers, *graph.kept] if isinstance(x, torch.Tensor)]
                places.append([x.data_ptr() for x in read])
                return run()

            return replay

    from loopcoder.optim.optimizer import adams_of

    step_of = captured_step(state, config, Watching())
    for step in range(1, 9):
        step_of(batches_of(seed + step), *rate(step))
    assert len(places) == 5 and all(x == places[0] for x in places)
    given = {
        x.data_ptr() for b in batches_of(seed) for x in vars(b).values() if hasattr(x, "pin_memory")
    }
    assert not given & set(places[0])


def test_other_shapes_have_graphs_of_their_own(ranks: Any, seed: int) -> None:
    """Another number of microbatches, length or base of the positions; the oldest of five goes."""
    config = config_of()
    state, plain = (build(config, ranks) for _ in range(2))
    captures = Captures()
    step_of = captured_step(state, config, captures)
    shapes: list[tuple[dict[str, Any], float]] = [
        (dict(microbatches=2), 1e4),
        (dict(microbatches=3), 1e4),
        (dict(length=16), 1e4),
        (dict(length=16), 5e4),
        (dict(packed=False), 1e4),
    ]
    step = 0
    for shape, theta in [*shapes, shapes[0]]:
        for network in (state.network, plain.network):
            network.set_rope_theta(theta)
        for _ in range(5):
            step += 1
            batches = batches_of(seed + step, **shape)
            sums, norm, _ = step_of(batches, *rate(step))
            assert same_bits([sums, norm], list(train_eagerly(plain, config, batches, step)))
    assert same_bits(trained(state), trained(plain))
    assert captures.made == 6  # the first shape again, after it was dropped
    assert len(step_of.shapes) == 4
    assert step_of.shapes[-1].microbatches == 2 and step_of.shapes[-1].documents > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [2, 6])
def test_a_bad_step_changes_nothing_and_counts(ranks: Any, seed: int, at: int, bad: float) -> None:
    config = config_of()
    state, plain = (build(config, ranks) for _ in range(2))
    step_of = captured_step(state, config)
    for step in range(1, 9):
        batches = batches_of(seed + step)
        before = trained(state)
        if step == at:
            batches[1].loss_mask[0, 5] = bad
        sums, norm, _ = step_of(batches, *rate(step))
        expected = train_eagerly(plain, config, batches, step)
        assert same_bits([sums, norm], list(expected))
        assert norm.isfinite() == (step != at)
        if step == at:
            same = [torch.equal(a, b) for a, b in zip(trained(state), before, strict=True)]
            is_count = [x.dim() == 0 and not x.is_floating_point() for x in before]
            assert [not x for x in same] == is_count
    assert same_bits(trained(state), trained(plain))


def test_eager_steps_and_evaluations_between_replays(ranks: Any, seed: int) -> None:
    """A traced step, one whose loops are measured, and an evaluation."""
    from loopcoder.model.probe import LoopProbe
    from loopcoder.train.measures import Measures
    from loopcoder.train.step import losses

    config = config_of()
    state, plain = (build(config, ranks) for _ in range(2))
    captures = Captures()
    step_of = captured_step(state, config, captures)
    for step in range(1, 13):
        batches = batches_of(seed + step)
        asked = Measures()
        if step == 7:
            asked = Measures(LoopProbe(2, torch.device("cpu"), losses=True, gradients=True))
        sums, norm, taken = step_of(batches, *rate(step), asked, eagerly=step == 9)
        if step == 7:
            assert taken is asked and (taken.probe.sums[0] > 0).all()
        expected = train_eagerly(plain, config, batches, step)
        assert same_bits([sums, norm], list(expected))
        with torch.no_grad():
            ours, theirs = (
                next(iter(losses(s, batches_of(seed, length=48), every_loop=True)))
                for s in (state, plain)
            )
        assert torch.equal(ours, theirs)
    assert captures.replays == 12 - 3 - 2
    assert same_bits(trained(state), trained(plain))


def test_sums_of_logged_steps(ranks: Any, seed: int) -> None:
    """By label and by loop: those of the step alone, in a graph of their own."""
    from loopcoder.config.objective import ObjectiveConfig
    from loopcoder.model.step_objective import step_objective
    from loopcoder.train.labels import LabelLosses
    from loopcoder.train.measures import Measures
    from loopcoder.train.objective_sums import ObjectiveSums
    from tests.dist.layouts import GROUPS

    config = replace(config_of(), objective=ObjectiveConfig(loop_weights=[0.5, 1.0]))
    objective = step_objective(config.objective, 2, 2)
    state, plain = (build(config, ranks) for _ in range(2))
    device = torch.device("cpu")
    mine, theirs = (LabelLosses(GROUPS, device) for _ in range(2))
    captures = Captures()
    step_of = captured_step(state, config, captures, by_label=mine)
    for step in range(1, 21):
        logged = step % 2 == 0
        batches = batches_of(seed + step)
        ask = Measures(by_label=mine, by_loop=ObjectiveSums(objective, device))
        expected = Measures(by_label=theirs, by_loop=ObjectiveSums(objective, device))
        sums, norm, taken = step_of(batches, *rate(step), ask if logged else Measures())
        other = train_eagerly(plain, config, batches, step, expected if logged else None)
        assert same_bits([sums, norm], list(other))
        tokens = float(sums[1].sum())
        assert taken.fields(tokens) == (expected.fields(tokens) if logged else {})
    assert captures.made == 2 and captures.replays == 20 - 2 * 3


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
REFUSED = RuntimeError("CUDA error: operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("error", "said"),
    [(OUT, "no memory for it"), (REFUSED, "it cannot be captured")],
    ids=["memory", "operation"],
)
def test_a_capture_that_fails_is_said_and_the_run_goes_on(
    ranks: Any, seed: int, error: Exception, said: str
) -> None:
    """Also where another shape was captured before: with its graph it would be out of memory
    again."""
    config = config_of()
    state, plain = (build(config, ranks) for _ in range(2))
    captures, lines = Captures(1, error), list[str]()
    step_of = captured_step(state, config, captures, say=lines.append)
    for step in range(1, 15):
        batches = batches_of(seed + step, length=32 if step < 6 else 48)
        sums, norm, _ = step_of(batches, *rate(step))
        assert same_bits([sums, norm], list(train_eagerly(plain, config, batches, step)))
    assert same_bits(trained(state), trained(plain))
    assert len(lines) == 2 and "2 microbatches of 2 sequences of 32 tokens" in lines[0]
    assert said in lines[1] and str(error).split("\n")[0] in lines[1] and "more" not in lines[1]
    assert captures.replays == 2 and not step_of.shapes


def test_a_capture_that_is_insisted_on_and_fails_is_an_error(ranks: Any, seed: int) -> None:
    from loopcoder.errors import OutOfMemory
    from loopcoder.train.graph import NotCapturable

    def end_of_capture() -> Exception:
        try:
            try:
                raise REFUSED
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error")
        except RuntimeError as error:
            return error

    config = config_of()
    for error, kind, cause in (
        (OUT, OutOfMemory, "Tried to allocate"),
        (REFUSED, NotCapturable, "not permitted"),
        (end_of_capture(), NotCapturable, "not permitted"),
    ):
        state = build(config, ranks)
        step_of = captured_step(state, config, Captures(0, error), insists=True)
        for step in range(1, 4):
            step_of(batches_of(seed + step), *rate(step))
        with pytest.raises(kind, match=f"{cause}(.|\n)*fix: train.cuda_graphs=off"):
            step_of(batches_of(seed), *rate(4))


@pytest.mark.parametrize("to_graphs", [True, False])
def test_a_resume_crosses(ranks: Any, seed: int, to_graphs: bool, tmp_path: Any) -> None:
    """From steps that are graphs to steps that are not, and the other way."""
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.load import load
    from loopcoder.checkpoint.save import Saver
    from tests.checkpoint.states import state_at

    config = config_of()
    plain = build(config, ranks)
    for step in range(1, 15):
        train_eagerly(plain, config, batches_of(seed + step), step)

    def go(state: Any, steps: range, graphs: bool) -> None:
        step_of = captured_step(state, config)
        for step in steps:
            if graphs:
                step_of(batches_of(seed + step), *rate(step))
            else:
                train_eagerly(state, config, batches_of(seed + step), step)

    first = build(config, ranks)
    go(first, range(1, 8), not to_graphs)
    Saver(config, tmp_path, lambda *_, **__: None).save(
        first.network, first.ddp, first.optimizer, state_at(7)
    )
    second = build(config, ranks)
    load(find(tmp_path), second.network, second.optimizer, config)
    go(second, range(8, 15), to_graphs)
    assert same_bits(trained(second), trained(plain))


def test_libraries_ask_the_host_for_nothing(ranks: Any) -> None:
    """Transformer Engine's attention keeps a context for dropout, which there is none of; its loss
    is told by megatron-core's config."""
    config = config_of()
    state = build(config, ranks)
    part = state.network.decoder.layers[0].self_attention.core_attention

    def forbidden() -> Any:
        raise AssertionError

    part.attention_dropout_ctx = forbidden
    captured_step(state, config)
    with part.attention_dropout_ctx():
        pass
    assert state.network.config.cuda_graph_impl == "full_iteration"
    assert build(config, ranks).network.config.cuda_graph_impl == "none"
