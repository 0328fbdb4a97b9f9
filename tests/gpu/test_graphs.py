"""Steps as CUDA graphs against the same steps launched kernel by kernel.

Where two eager runs have the same bits, a run of graphs has them too; where sums have no fixed
order it may differ from one of them by a few times what the other does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.test_transformer_engine import VOCAB, WIDE
from tests.train.conftest import Start, documents, environment, finish, start
from tests.train.graph_steps import (
    DOMAINS,
    batches_of,
    build,
    config_of,
    rate,
    same_bits,
    trained,
)
from tests.train.test_graph_runs import losses

__all__ = ["documents", "environment", "start"]  # fixtures

pytestmark = pytest.mark.gpu

LENGTH = 192
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "torch r2 fp32": (dict(num_loops=2, layer_spec="torch", window=16), "fp32"),
    "torch r1 bf16": (dict(num_loops=1, layer_spec="torch"), "bf16"),
    "te r1": (dict(num_loops=1, layer_spec="te"), "bf16"),
    "te r2": (dict(num_loops=2, layer_spec="te", window=16), "bf16"),
    "te r2 kernels": (dict(num_loops=2, layer_spec="te", window=16, kernels="cuda"), "bf16"),
    "te r3 kernels": (dict(num_loops=3, layer_spec="te", window=16, kernels="cuda"), "bf16"),
}


@pytest.fixture(autouse=True)
def own_stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run with graphs has from its beginning; and kernels whose sums have an order, where
    there are such."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), sdpa_kernel(SDPBackend.MATH):
        yield
    torch.cuda.synchronize()


def slow(step: int) -> tuple[float, float]:
    """Return rates at which rounding grows slowly."""
    lr, share = rate(step)
    return lr / 10, share


def case_config(name: str) -> Any:
    from loopcoder.backends import kernels_fault

    model, precision = CASES[name]
    if model.get("kernels") == "cuda" and kernels_fault() is not None:
        pytest.skip("the CUDA extension is not built")
    return config_of(WIDE | {"kernels": "stock"} | model, precision)


def captured_step(state: Any, config: Any, *, eager: bool = False, **options: Any) -> Any:
    """Steps as graphs; `eager`: the same calls, launched kernel by kernel."""
    from loopcoder.train.graph import CapturedStep

    if eager:
        options["capture"] = lambda run: run
    return CapturedStep(state, config, DOMAINS, insists=True, **options)


def follow(
    config: Any, ranks: Any, step_batches: Callable[[int], list[Any]], steps: int, *, eager: bool
) -> tuple[list[Tensor], list[Tensor], Any]:
    """Train from the start; return sums and norm of each step, what was trained, and the steps."""
    state = build(config, ranks, VOCAB)
    step_of, found = captured_step(state, config, eager=eager), []
    for step in range(1, steps + 1):
        sums, norm, _ = step_of(step_batches(step), *slow(step))
        found.append(torch.cat([sums.flatten(), norm[None]]))
    return found, trained(state), step_of


def check_against_eager(
    config: Any, ranks: Any, step_batches: Callable[[int], list[Any]], steps: int
) -> Any:
    first, first_end, _ = follow(config, ranks, step_batches, steps, eager=True)
    again, again_end, _ = follow(config, ranks, step_batches, steps, eager=True)
    ours, our_end, step_of = follow(config, ranks, step_batches, steps, eager=False)
    noise = (torch.stack(first) - torch.stack(again)).abs().amax(0)
    if same_bits([*first, *first_end], [*again, *again_end]):
        at = [i + 1 for i, (a, b) in enumerate(zip(ours, first, strict=True)) if not a.equal(b)]
        assert not at, f"steps {at[:5]} differ, eager ones never do"
        assert same_bits(our_end, first_end)
    else:
        print(f"two eager runs differ by up to {noise.tolist()}")
        apart = (torch.stack(first) - torch.stack(ours)).abs().amax(0)
        assert (apart <= 4 * noise).all(), (apart, noise)
    return step_of


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "rows"])
@pytest.mark.parametrize("name", CASES)
def test_fifty_steps(ranks: Any, seed: int, name: str, packed: bool) -> None:
    def batches(step: int) -> list[Any]:
        shape = dict(length=LENGTH, vocab=VOCAB, borders=0.02)
        return batches_of(seed + step, packed=packed, **shape)  # type: ignore[arg-type]

    step_of = check_against_eager(case_config(name), ranks, batches, 50)
    assert len(step_of.shapes) == 1


@pytest.mark.parametrize("name", ["te r1", "te r2 kernels"])
def test_rows_end_to_end_are_the_rows(ranks: Any, seed: int, name: str) -> None:
    """A graph has one row of fixed shapes, an eager run rows: the losses of the first steps are
    equal but for rounding to bf16."""
    config = case_config(name)
    state, plain = (build(config, ranks, VOCAB) for _ in range(2))
    step_of = captured_step(state, config)
    for step in range(1, 9):
        batches = batches_of(seed + step, rows=4, length=LENGTH, vocab=VOCAB, borders=0.05)
        lr, share = slow(step)
        sums, norm, _ = step_of(batches, lr / 10, share)
        expected, expected_norm = train_at(plain, config, batches, lr / 10, share)
        torch.testing.assert_close(sums, expected, rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(norm, expected_norm, rtol=5e-2, atol=1e-3)


def train_at(state: Any, config: Any, batches: list[Any], lr: float, share: float) -> Any:
    from loopcoder.optim.optimizer import update
    from loopcoder.train.step import forward_backward

    sums = forward_backward(state, batches, DOMAINS)
    loss, tokens = sums.sum(1)
    return sums, update(state.optimizer, config.optim, lr, tokens, share, loss=loss)


@pytest.mark.parametrize("name", ["torch r2 fp32", "te r2 kernels"])
def test_other_shapes_are_captured_anew(ranks: Any, seed: int, name: str) -> None:
    """Lengths, numbers of microbatches, and documents beyond the room for 32 and for 64; more
    shapes than are kept, and the first ones again."""
    shapes = [
        dict(length=LENGTH, borders=0.01),
        dict(length=128, borders=0.01),
        dict(length=128, borders=0.35),
        dict(length=LENGTH, borders=0.01, microbatches=3),
        dict(length=LENGTH, borders=0.01, packed=False),
        dict(length=LENGTH, borders=0.01),
    ]

    def batches(step: int) -> list[Any]:
        shape: dict[str, Any] = shapes[(step - 1) // 6 % len(shapes)]
        return batches_of(seed + step, vocab=VOCAB, **shape)

    step_of = check_against_eager(case_config(name), ranks, batches, 6 * len(shapes))
    assert len(step_of.shapes) == 4


def test_a_step_is_captured_after_all_graphs_were_dropped(ranks: Any, seed: int) -> None:
    """By shapes that were not seen often enough to be captured themselves."""
    lengths = [LENGTH] * 6 + [64, 96, 128, 160] + [160] * 6

    def batches(step: int) -> list[Any]:
        return batches_of(seed + step, length=lengths[step - 1], vocab=VOCAB)

    step_of = check_against_eager(case_config("te r2"), ranks, batches, len(lengths))
    assert [shape.length for shape in step_of.shapes] == [160]


@pytest.mark.parametrize("name", ["torch r2 fp32", "te r2 kernels"])
def test_a_bad_step_is_refused_inside_a_replay(ranks: Any, seed: int, name: str) -> None:
    config = case_config(name)
    state = build(config, ranks, VOCAB)
    step_of = captured_step(state, config)
    for step in range(1, 10):
        batches = batches_of(seed + step, length=LENGTH, vocab=VOCAB)
        if step == 7:
            batches[1].loss_mask[0, 5] = float("nan")
        before = trained(state)
        _, norm, _ = step_of(batches, *slow(step))
        after = trained(state)
        assert bool(norm.isfinite()) == (step != 7)
        if step > 1:  # before it there are no moments
            same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            counts = [x.dim() == 0 and not x.is_floating_point() for x in before]
            if step == 7:
                assert [not x for x in same] == counts
            else:
                assert sum(same) < len(same) / 2
    assert len(step_of.shapes) == 1


@pytest.mark.parametrize("name", ["torch r2 fp32", "te r2 kernels"])
def test_evaluations_and_eager_steps_between_replays(ranks: Any, seed: int, name: str) -> None:
    """Evaluations of another length change nothing, see what the graphs have trained, and give the
    bits that they give without graphs."""
    from loopcoder.train.step import losses as losses_of

    config = case_config(name)
    found = []
    for eager, evaluates in ((True, True), (False, True), (False, False)):
        state = build(config, ranks, VOCAB)
        step_of = captured_step(state, config, eager=eager)
        seen = []
        for step in range(1, 13):
            batches = batches_of(seed + step, length=LENGTH, vocab=VOCAB)
            sums, norm, _ = step_of(batches, *slow(step), eagerly=step in (6, 9))
            seen += [sums, norm]
            if evaluates:
                held_out = [b.to(state.ranks.device) for b in batches_of(seed, length=320)]
                with torch.no_grad():
                    seen.append(next(iter(losses_of(state, held_out, every_loop=True))))
        kept = [x for i, x in enumerate(seen) if i % 3 < 2] if evaluates else seen
        found.append((seen, [*kept, *trained(state)]))
    (plain, _), (ours, trained_with), (_, trained_without) = found
    if name.startswith("torch"):
        assert same_bits(trained_with, trained_without)
    for one, other in zip(trained_with, trained_without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_replays_never_wait_for_the_gpu(ranks: Any, seed: int, name: str) -> None:
    from loopcoder.train.health import Health
    from tests.train.test_health import step_data

    config = case_config(name)
    state = build(config, ranks, VOCAB)
    step_of, health = captured_step(state, config), Health(config.faults, state.ranks.device)
    prepared = [batches_of(seed + step, length=LENGTH, vocab=VOCAB) for step in range(10)]

    def train(step: int) -> None:
        sums, norm, _ = step_of(prepared[step], *slow(step + 1))
        health.note(step_data(step), sums, norm)

    for step in range(5):
        train(step)
    assert len(step_of.shapes) == 1
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # a synchronising call raises
    try:
        for step in range(5, 10):
            train(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    health.check()


def test_no_memory_for_a_graph(ranks: Any, seed: int) -> None:
    """The step is trained without one, and so are all later ones."""
    from loopcoder.errors import OutOfMemory
    from loopcoder.train.graph import CapturedStep, CudaCapture

    class Tight(CudaCapture):
        """Leaves 8 MiB to a graph."""

        def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            most = torch.cuda.memory_reserved() + 8 * 2**20
            torch.cuda.set_per_process_memory_fraction(most / total)
            try:
                return super().__call__(run)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)

    config = case_config("te r2")
    state, plain = (build(config, ranks, VOCAB) for _ in range(2))
    lines: list[str] = []
    options: dict[str, Any] = dict(capture=Tight(state.ranks.device), say=lines.append)
    step_of = CapturedStep(state, config, DOMAINS, **options)
    reference = captured_step(plain, config, eager=True)
    shape: dict[str, Any] = dict(rows=8, length=512, vocab=VOCAB)
    for step in range(1, 8):
        batches = batches_of(seed + step, **shape)
        sums, norm, _ = step_of(batches, *slow(step))
        expected, expected_norm, _ = reference(batches, *slow(step))
        torch.testing.assert_close(sums, expected, rtol=2e-2, atol=1e-1)
        torch.testing.assert_close(norm, expected_norm, rtol=0.2, atol=1e-2)
    assert len(lines) == 1 and "no memory for it" in lines[0], lines
    insisting = CapturedStep(state, config, DOMAINS, insists=True, **options)
    for step in range(3):
        insisting(batches_of(seed + step, **shape), *slow(step + 1))
    with pytest.raises(OutOfMemory, match=r"fix: train\.cuda_graphs=off"):
        insisting(batches_of(seed, **shape), *slow(4))


@pytest.mark.parametrize("to_graphs", [True, False])
def test_a_resume_crosses(ranks: Any, seed: int, to_graphs: bool, tmp_path: Path) -> None:
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.load import load
    from loopcoder.checkpoint.save import Saver
    from tests.checkpoint.states import state_at

    config = case_config("torch r2 fp32")

    def go(state: Any, steps: range, graphs: bool) -> None:
        step_of = captured_step(state, config)
        for step in steps:
            batches = batches_of(seed + step, length=LENGTH, vocab=VOCAB)
            if graphs:
                step_of(batches, *slow(step))
            else:
                train_at(state, config, batches, *slow(step))

    ends = []
    for stops in (False, True):
        state = build(config, ranks, VOCAB)
        go(state, range(1, 9), stops and not to_graphs)
        if stops:
            Saver(config, tmp_path, lambda *_, **__: None).save(
                state.network, state.ddp, state.optimizer, state_at(8)
            )
            state = build(config, ranks, VOCAB)
            load(find(tmp_path), state.network, state.optimizer, config)
        go(state, range(9, 17), stops and to_graphs)
        ends.append(trained(state))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_thread_pins_memory_while_a_step_is_captured(ranks: Any, seed: int) -> None:
    """As the loader's does."""
    config = case_config("te r2 kernels")
    state = build(config, ranks, VOCAB)
    step_of, stop, failed = captured_step(state, config), threading.Event(), []

    def pin() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                batches_of(number, rows=2, length=64 + number % 512)
            except Exception as error:  # told by the assertion below
                failed.append(error)
                return

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        for length in (LENGTH, 128, 64):
            for step in range(1, 7):
                step_of(batches_of(seed + step, length=length, vocab=VOCAB), *slow(step))
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert len(step_of.shapes) == 3


def test_the_default_stream_is_refused(ranks: Any) -> None:
    config = case_config("te r1")
    state = build(config, ranks, VOCAB)
    with (
        torch.cuda.stream(torch.cuda.default_stream()),
        pytest.raises(RuntimeError, match="use_own_stream"),
    ):
        captured_step(state, config)


def test_whole_runs(start: Start, tmp_path: Path) -> None:
    """`loopcoder train` with graphs: the losses of one without, stages and a ramp on the way."""
    options = [
        "data.stages=[{until:20000,seq_length:64},{until:60000,rope_theta:20000},{}]",
        "train.batch_ramp={start:4,increment:4,samples:60}",
        *("train.micro_batch_size=2", "train.global_batch_size=8", "data.seq_length=128"),
        *("model.hidden_size=128", "model.head_dim=64", "model.num_attention_heads=2"),
        *("model.num_kv_heads=1", "train.max_steps=80", "eval.interval=40"),
        *("precision=bf16", "train.deterministic=false", "optim.lr=1e-3", "optim.min_lr=1e-4"),
        *("logging.interval=5", "checkpoint.interval=50"),
    ]
    said = finish(start(tmp_path / "graphs", *options, "train.cuda_graphs=on"))
    assert "steps are CUDA graphs" in said
    assert said.count("CUDA graph of a step") >= 3, said
    assert "CUDA graph" not in finish(start(tmp_path / "eager", *options))
    pairs = zip(losses(tmp_path / "graphs"), losses(tmp_path / "eager"), strict=True)
    for ours, plain in pairs:
        assert ours["lr"] == plain["lr"] and ours["step"] == plain["step"]
        assert ours["loss"] == pytest.approx(plain["loss"], rel=2e-2), plain["step"]
