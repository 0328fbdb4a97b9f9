"""A step as one CUDA graph: one launch in place of thousands, for models that a GPU computes faster
than a host can launch them (`train.cuda_graphs`).

Captured are all microbatches of a step, forward and backward, its norm and its update. A graph
reads and writes the same memory each time, so what changes from step to step is copied there before
it runs: the microbatches, and what Adam has to know of rates and counts. Shapes are those that it
was made of; there is a graph for each that comes, and packed documents have few, since as many
empty ones are added as Transformer Engine plans for anyway.

A step runs eagerly first in every shape, so that libraries, compilers and caches have what they
make at their first use. Steps in which loops are measured, or that are traced, are always eager.
Weights, gradients and moments are the same memory in both.
"""

from __future__ import annotations

import gc
import traceback
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from loopcoder.config.schema import Config
from loopcoder.data.batch import Batch
from loopcoder.errors import LoopcoderError, OutOfMemory, counted
from loopcoder.model.documents import room_for
from loopcoder.model.step_objective import step_objective
from loopcoder.optim.optimizer import adams_of, set_rates, update_at_rates
from loopcoder.train.labels import LabelLosses
from loopcoder.train.measures import NOTHING, Measures
from loopcoder.train.objective_sums import ObjectiveSums
from loopcoder.train.out_of_memory import is_out_of_memory
from loopcoder.train.state import TrainState
from loopcoder.train.step import forward_backward

WARM_UPS = 3
"""Eager steps of a shape before it is captured."""
MOST = 4
"""Shapes that are kept; the one that was not used for longest is dropped."""

Sums = tuple[Tensor, Tensor]
"""Sums of the loss by domain [2, domains], and the norm of the gradient []."""
Replay = Callable[[], Sums]
Capture = Callable[[Callable[[], Sums]], Replay]
"""Makes of a call another one that does the same on the device, and nothing on the host."""


class NotCapturable(LoopcoderError):
    """A step that was to be a CUDA graph cannot be one; the same command would end the same way."""


@dataclass(frozen=True)
class Shape:
    """What a graph is made for, and cannot change."""

    microbatches: int
    rows: int
    length: int
    documents: int
    """Places for documents in a microbatch; 0: a row is one document."""
    rope_theta: float
    is_measured: bool
    """The losses by label and by loop are summed as well."""

    def __str__(self) -> str:
        each = f"{counted(self.rows, 'sequence')} of {counted(self.length, 'token')}"
        packed = f", up to {counted(self.documents, 'document')}" if self.documents else ""
        return f"{counted(self.microbatches, 'microbatch')} of {each}{packed}"


@dataclass
class _Graph:
    """The memory that steps of a shape read, and what runs them."""

    batches: list[Batch]
    """On the device, rows as the loader makes them."""
    warm_ups: int = 0
    """Eager steps so far."""
    replay: Replay | None = None
    kept: list[Tensor] = field(default_factory=list)
    """What is read and made outside of the graph: a cache might drop it."""


class CapturedStep:
    """Runs the steps of a run on one process, most of them as graphs."""

    def __init__(
        self,
        state: TrainState,
        config: Config,
        domains: int,
        by_label: LabelLosses | None = None,
        *,
        insists: bool = False,
        say: Callable[[str], None] = print,
        out_of_memory_fix: str = "train.cuda_graphs=off",
        capture: Capture | None = None,
    ):
        """
        Args:
            domains: Of the corpus.
            by_label: Sums of the loss by language and source in logged steps; None: there are none.
            insists: Raise where a step cannot be captured; otherwise say it, and go on eagerly.
            say: Tells the user what was captured.
            out_of_memory_fix: Overrides with which a step takes less memory.
            capture: Makes a graph; None: of CUDA, of what runs on the current stream, which may
                not be the default one (`use_own_stream`).
        """
        self._state, self._config, self._domains = state, config, domains
        self._insists, self._say, self._fix = insists, say, out_of_memory_fix
        device = state.ranks.device
        self._capture = CudaCapture(device) if capture is None else capture
        self._one_row = config.model.layer_spec == "te"
        self._graphs: OrderedDict[Shape, _Graph] = OrderedDict()
        self._gave_up = False
        loops = config.model.num_loops
        objective = step_objective(config.objective, loops, loops)
        by_loop = ObjectiveSums(objective, device) if objective.sums_loops else None
        self._measures = Measures(by_label=by_label, by_loop=by_loop)
        _make_capturable(state.network)

    @property
    def shapes(self) -> list[Shape]:
        """The shapes that have a graph, the one that was used last at the end."""
        return [shape for shape, graph in self._graphs.items() if graph.replay is not None]

    def __call__(
        self,
        microbatches: list[Batch],
        lr: float,
        vocabulary: float = 1.0,
        measures: Measures = NOTHING,
        *,
        eagerly: bool = False,
    ) -> tuple[Tensor, Tensor, Measures]:
        """Run a step and its update, without waiting for the device.

        Args:
            microbatches: In pinned memory, so that nothing waits.
            lr, vocabulary: As of `optim.optimizer.update`.
            measures: What is asked for in this step.
            eagerly: Launch kernel by kernel, as for a trace.

        Returns:
            sums of the loss [2, domains] and the gradient's norm [], as `forward_backward` and
            `update` return them; and the measures that were taken, whose sums the next step
            overwrites.

        Raises:
            OutOfMemory: a graph has no memory, and it was insisted on.
            NotCapturable: something of a step cannot be captured, and it was insisted on.
        """
        set_rates(self._state.optimizer, self._config.optim, lr, vocabulary)
        for adam in adams_of(self._state.optimizer):
            adam.begin_step()
        observes = measures.probe is not None or measures.diagnostics is not None
        if eagerly or self._gave_up or observes:
            return *self._eagerly(microbatches, measures), measures
        is_measured = measures.by_label is not None or measures.by_loop is not None
        taken = self._measures if is_measured else NOTHING
        shape = self._shape_of(microbatches, is_measured=is_measured)
        graph = self._graph_of(shape, microbatches)
        self._fill(graph, microbatches)
        if graph.replay is None and graph.warm_ups == WARM_UPS:
            self._make(shape, graph, taken)
        if graph.replay is None:
            graph.warm_ups += 1
            return *self._eagerly(self._laid_out(graph.batches), taken), taken
        with self._state.compute.step():
            timer = self._state.compute("forward-compute")
            timer.start()
            sums, norm = graph.replay()
            timer.stop()
        return sums.clone(), norm.clone(), taken  # the next replay writes over them

    def _shape_of(self, microbatches: list[Batch], *, is_measured: bool) -> Shape:
        rows, length = microbatches[0].tokens.shape
        borders = [b.cu_seqlens for b in microbatches if b.cu_seqlens is not None]
        documents = room_for(max(len(b) - 1 for b in borders)) if borders else 0
        if documents and not self._one_row:
            documents = rows * length  # masks do not read how many there are
        theta = self._state.network.rope_theta
        assert theta is not None
        return Shape(len(microbatches), rows, length, documents, theta, is_measured)

    def _graph_of(self, shape: Shape, microbatches: list[Batch]) -> _Graph:
        if shape not in self._graphs:
            while len(self._graphs) >= MOST:
                if self._state.ranks.device.type == "cuda":  # its last replay may still run
                    torch.cuda.current_stream().synchronize()
                self._graphs.popitem(last=False)
            batches = [self._room(batch, shape.documents) for batch in microbatches]
            self._graphs[shape] = _Graph(batches)
        self._graphs.move_to_end(shape)
        return self._graphs[shape]

    def _room(self, batch: Batch, documents: int) -> Batch:
        """Return memory on the device for microbatches like this one."""
        device = self._state.ranks.device
        batch = batch.copied_to(device)
        if batch.cu_seqlens is None:
            return batch
        return replace(batch, cu_seqlens=batch.cu_seqlens.new_zeros(documents + 1))

    def _fill(self, graph: _Graph, microbatches: list[Batch]) -> None:
        """Copy what the step reads to the memory of a graph."""
        names = ["tokens", "labels", "loss_mask", "domain_ids"]
        if self._measures.by_label is not None:
            names.append("label_ids")
        if microbatches[0].cu_seqlens is not None:
            names += ["position_ids", "document_start"]
        for room, batch in zip(graph.batches, microbatches, strict=True):
            if room.cu_seqlens is not None and batch.cu_seqlens is not None:
                count = len(batch.cu_seqlens)
                room.cu_seqlens[:count].copy_(batch.cu_seqlens, non_blocking=True)
                room.cu_seqlens[count:] = batch.tokens.numel()  # documents without tokens
            for name in names:
                getattr(room, name).copy_(getattr(batch, name), non_blocking=True)

    def _laid_out(self, batches: list[Batch]) -> list[Batch]:
        if not self._one_row or batches[0].cu_seqlens is None:
            return batches
        return [batch.as_one_row() for batch in batches]

    def _eagerly(self, batches: list[Batch], measures: Measures) -> Sums:
        return self._run(batches, measures, self._state.compute.step())

    def _run(
        self, batches: list[Batch], measures: Measures, timed: AbstractContextManager[None]
    ) -> Sums:
        """Launch a step; the rates are set, and the step is counted."""
        state = self._state
        with timed:
            sums = forward_backward(state, batches, self._domains, measures)
        tokens, loss = sums[1].sum(), sums[0].sum()
        return sums, update_at_rates(state.optimizer, self._config.optim, tokens, loss=loss)

    def _run_laid_out(self, graph: _Graph, measures: Measures) -> Sums:
        # timers would record events, which a graph cannot be asked for
        return self._run(self._laid_out(graph.batches), measures, nullcontext())

    def _make(self, shape: Shape, graph: _Graph, measures: Measures) -> None:
        """Capture a step, which runs nothing of it; or give up."""
        graph.kept = [self._state.network.rotary_pos_emb(shape.length)]
        try:
            graph.replay = self._capture(partial(self._run_laid_out, graph, measures))
        except RuntimeError as error:
            self._give_up(shape, error)
        else:
            self._say(f"CUDA graph of a step: {shape}")

    def _give_up(self, shape: Shape, error: BaseException) -> None:
        """Go on without graphs, or raise where they are insisted on."""
        cause = _cause_of(error)
        said = str(cause).partition("\n")[0] or type(cause).__name__
        no_memory = is_out_of_memory(cause)
        frames = traceback.extract_tb(cause.__traceback__)
        if frames and not no_memory:
            said += f" (in {frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno})"
        for one in (error, cause):  # what was computed is let go
            traceback.clear_frames(one.__traceback__)
        self._graphs.clear()
        self._gave_up = True
        if not self._insists:
            what = "no memory for it" if no_memory else "it cannot be captured"
            self._say(f"no CUDA graphs from here on: {what} ({shape}): {said}")
            return
        fact = f"train.cuda_graphs=on: a step of {shape}"
        if no_memory:
            raise OutOfMemory.of(
                f"{fact} ran out of memory when it was captured",
                f"a graph keeps the memory of a step's activations ({said})",
                self._fix,
            )
        raise NotCapturable.of(f"{fact} cannot be captured", said, "train.cuda_graphs=off")


class CudaCapture:
    """Captures as CUDA graphs what runs on the current stream. They share their memory: one runs at
    a time, and its results are read before the next."""

    def __init__(self, device: torch.device):
        if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
            raise RuntimeError("the default stream cannot be captured: call use_own_stream first")
        self._pool: Any = None
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, run: Callable[[], Sums]) -> Replay:
        gc.collect()  # what is freed while a graph is captured stays in its memory
        if not self._alive:  # memory that no graph has any more cannot be shared again
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Gradients are added up on the stream that was current when the model was built: this one.
        # The loader pins memory meanwhile, in a thread of its own.
        with torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        ):
            out = run()
        self._alive.add(graph)

        def replay() -> Sums:
            graph.replay()
            return out

        return replay


def use_own_stream(device: torch.device) -> None:
    """Make another stream than the default one current, from now on, in this thread: only such a
    one can be captured. Call it before the model is built."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    torch.cuda.set_stream(stream)


def _make_capturable(network: Any) -> None:
    """Keep libraries from asking, in the middle of a step, for what only the host has.

    Transformer Engine's attention forks the state of random numbers although it draws none without
    dropout, and its cross-entropy compares gradients with a number from the host unless
    megatron-core's config says that whole steps are captured. Neither changes a number.
    """
    network.config.cuda_graph_impl = "full_iteration"
    for module in network.modules():
        if hasattr(module, "attention_dropout_ctx"):
            module.attention_dropout_ctx = nullcontext


def _cause_of(error: BaseException) -> BaseException:
    """Return what made a capture fail: its end, which fails as well, may have come after it."""
    before = error.__context__
    return error if before is None or is_out_of_memory(error) else before
