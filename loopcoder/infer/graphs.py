"""Steps of a decoder as CUDA graphs: one launch in place of hundreds.

A graph has fixed shapes. There is one for each number of rows (1, 2, 4, ... places) and of tokens
that attention looks at (a power of two), made when it is first needed. Rows that are too many
repeat the last place with its token: they compute and write the same once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopcoder.infer.cache import Cache

Run = Callable[[Tensor, Tensor, int], Tensor]
"""A step on the device: places [B], tokens [B], tokens seen -> logits [B, vocabulary]."""
Capture = Callable[[Callable[[], Tensor], Callable[[], None]], Callable[[], Tensor]]
"""Makes of a call, and of what undoes its effects, another call that does the same."""

_WARM_UPS = 2
_LEAST_SEEN = 256


@dataclass(frozen=True)
class _Graph:
    places: Tensor
    tokens: Tensor
    replay: Callable[[], Tensor]


class StepGraphs:
    """Runs steps as graphs, with what is kept in the cache as inputs and outputs."""

    def __init__(self, cache: Cache, *, sees_all: bool = False, capture: Capture | None = None):
        """
        Args:
            sees_all: A step does the same however many tokens it is said to look at, so that one
                graph is for all lengths.
            capture: Makes a graph; None: of CUDA.
        """
        self._cache = cache
        self._capture = CudaCapture() if capture is None else capture
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self.sizes = [*_powers_below(1, cache.num_places), cache.num_places]
        shorter = [] if sees_all else _powers_below(_LEAST_SEEN, cache.max_length)
        self.seen = [*shorter, cache.max_length]

    def __call__(self, run: Run, places: Tensor, tokens: Tensor, seen: int) -> Tensor:
        """Run a step; arguments as of `Run`.

        Args:
            run: The same at each call. It is not kept: a decoder that is dropped is to be gone.
        """
        key = _first_from(self.sizes, len(places)), _first_from(self.seen, seen)
        if key not in self._graphs:
            self._graphs[key] = self._make(run, places, tokens, *key)
        graph = self._graphs[key]
        _fill(graph.places, places)
        _fill(graph.tokens, tokens)
        return graph.replay()[: len(places)].clone()  # the next replay writes over it

    def _make(self, step: Run, places: Tensor, tokens: Tensor, rows: int, seen: int) -> _Graph:
        rows_of_places, rows_of_tokens = (_filled(rows, x) for x in (places, tokens))
        lengths, carry = self._cache.lengths, self._cache.carry
        before = lengths[places], carry[places]

        def undo() -> None:
            """Let the step come again: keys and values it writes where it has written them."""
            lengths[places], carry[places] = before

        def run() -> Tensor:
            return step(rows_of_places, rows_of_tokens, seen)

        return _Graph(rows_of_places, rows_of_tokens, self._capture(run, undo))


class CudaCapture:
    """Captures calls as CUDA graphs, which share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor], undo: Callable[[], None]) -> Callable[[], Tensor]:
        # libraries make their handles and workspaces in the first calls
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
                undo()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads, as of a server, may use CUDA meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def _filled(rows: int, source: Tensor) -> Tensor:
    target = source.new_empty(rows)
    _fill(target, source)
    return target


def _fill(target: Tensor, source: Tensor) -> None:
    target[: len(source)] = source
    target[len(source) :] = source[-1]


def _powers_below(first: int, end: int) -> list[int]:
    return [first * 2**i for i in range(32) if first * 2**i < end]


def _first_from(sizes: Sequence[int], least: int) -> int:
    return next(size for size in sizes if size >= least)
