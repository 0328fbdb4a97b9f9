"""A cheap part of `loopcoder diagnose` in logged steps, from the step's own forward pass.

States are taken of a few tokens of each sequence and measured after the step: then those of the
first and the last pipeline stage, and of the parts of a split sequence, are brought together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import linear

from loopcoder.config.schema import Config
from loopcoder.data.batch import Batch
from loopcoder.diagnose.measures.outputs import read_outputs
from loopcoder.diagnose.measures.states import alignment, offset_cost, step_size
from loopcoder.model.probe import Probe, ReadOut
from loopcoder.parallel.joined import joined
from loopcoder.parallel.mcore import Ranks
from loopcoder.train.due import diagnoses_after

TOKENS = 32
"""Of each sequence, from its middle on."""
_MEASURES = ("step_size", "alignment", "offset_cost", "output_entropy", "output_shift", "gate")


def diagnostics_of(config: Config, ranks: Ranks, step: int) -> LoopDiagnostics | None:
    """Return what measures the loops of a logged step; None: it is not asked for."""
    return LoopDiagnostics(config, ranks) if diagnoses_after(config, step) else None


class LoopDiagnostics(Probe):
    """Sums of one step, by measure and loop; the model calls it, `train.step` finishes it."""

    def __init__(self, config: Config, ranks: Ranks):
        self._ranks, self._is_split = ranks, config.parallel.sp
        self._loops = config.model.num_loops
        shape = 2, len(_MEASURES), self._loops
        self.sums = torch.zeros(shape, dtype=torch.float64, device=ranks.device)
        """Sums and counts. [2, measures, R]"""
        self._states: dict[tuple[int, int], Tensor] = {}
        self._batches: dict[int, tuple[Tensor, Tensor]] = {}

    def at_batch(self, microbatch: int, batch: Batch) -> None:
        """Begin, or go on with, a microbatch that is on the device."""
        length = batch.tokens.shape[1]
        begin = length // 2
        self._block = range(begin, min(begin + TOKENS, length))
        block = slice(begin, self._block.stop)
        self._microbatch, self._length = microbatch, length
        counts = batch.loss_mask.transpose(0, 1)[block] > 0
        self._batches[microbatch] = counts, batch.documents.first_token[block]

    def at_input(self, loop_idx: int, hidden: Tensor) -> None:
        if loop_idx == 0:
            self._keep(0, hidden)

    @torch.no_grad()
    def at_attention(
        self,
        loop_idx: int,
        layer: int,
        q: Tensor,
        k: Tensor,
        shared_k: Tensor | None,
        gate: Tensor | None,
    ) -> None:
        if gate is not None:
            self.sums[0, _MEASURES.index("gate"), loop_idx] += gate.sum(dtype=torch.float64)
            self.sums[1, _MEASURES.index("gate"), loop_idx] += gate.numel()

    def at_output(
        self,
        loop_idx: int,
        raw: Tensor,
        normed: Tensor,
        labels: Tensor | None,
        read_out: ReadOut,
        read: Tensor | None,
    ) -> None:
        self._keep(loop_idx + 1, normed)

    def _keep(self, number: int, state: Tensor) -> None:
        """Keep the block of a state, of which the rank may have a part. [S or S/tp, B, D]"""
        block, shape = self._block, (len(self._block), *state.shape[1:])
        first = self._ranks.tp_rank * len(state) if self._is_split else 0
        begin, end = max(block.start, first), min(block.stop, first + len(state))
        kept = state.new_zeros(shape)
        if begin < end:
            kept[begin - block.start : end - block.start] = state.detach()[
                begin - first : end - first
            ]
        self._states[self._microbatch, number] = kept

    @torch.no_grad()
    def finish(self, network: Any) -> None:
        """Measure, and add up over ranks. All ranks must call it, before the weights change."""
        groups = self._ranks.groups
        for microbatch, (counts, first_token) in sorted(self._batches.items()):
            states = self._together(microbatch, counts, network)
            if self._ranks.tp_rank == 0 and network.post_process:
                self._measure(states, counts, first_token)
            if network.post_process:
                self._read(states, counts, network)
        self._states, self._batches = {}, {}
        dist.all_reduce(self.sums, group=groups.tp)
        dist.all_reduce(self.sums, group=groups.dp_cp)
        dist.all_reduce(self.sums, group=groups.pp)

    def _together(self, microbatch: int, counts: Tensor, network: Any) -> list[Tensor]:
        """Return h(0) to h(R) of a microbatch, on the last stage. [tokens, B, D] each"""
        weight = next(network.parameters())
        shape = self._loops + 1, *counts.shape, network.config.hidden_size
        states = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        for number in range(self._loops + 1):
            if (microbatch, number) in self._states:
                states[number] = self._states[microbatch, number]
        if self._is_split:
            dist.all_reduce(states, group=self._ranks.groups.tp)
        if self._ranks.groups.pp.size() > 1:
            dist.all_reduce(states, group=self._ranks.groups.pp)
        # stages between the first and the last have seen none
        ran = max((number for batch, number in self._states if batch == microbatch), default=0)
        return list(states[: ran + 1])

    def _measure(self, states: list[Tensor], counts: Tensor, first_token: Tensor) -> None:
        for r in range(1, len(states)):
            self._add("step_size", r, step_size(states[r], states[r - 1]), counts)
            if r > 1:
                cosine, defined = alignment(states[r], states[r - 1], states[r - 2])
                self._add("alignment", r, cosine, counts & defined)
                cost, defined = offset_cost(states[r - 1], first_token)
                self._add("offset_cost", r, cost, counts & defined)

    def _read(self, states: list[Tensor], counts: Tensor, network: Any) -> None:
        before = None
        for r in range(1, len(states)):
            logits = self._logits(states[r], network.output_layer.weight)
            if self._ranks.tp_rank == 0:
                no_labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
                found = read_outputs(logits, before, no_labels, vocab_size=logits.shape[1])
                self._add("output_entropy", r, found.entropy.view(counts.shape), counts)
                if found.shift is not None:
                    self._add("output_shift", r, found.shift.view(counts.shape), counts)
            before = logits

    def _logits(self, state: Tensor, weight: Tensor) -> Tensor:
        """Return those of the whole vocabulary. [tokens * B, V]"""
        part = linear(state.flatten(0, 1), weight)
        return joined(part, -1, self._ranks.groups.tp)

    def _add(self, measure: str, loop: int, values: Tensor, defined: Tensor) -> None:
        there = torch.where(defined, values, 0)
        both = torch.stack([there.sum(dtype=torch.float64), defined.sum(dtype=torch.float64)])
        self.sums[:, _MEASURES.index(measure), loop - 1] += both

    def fields(self) -> dict[str, float]:
        """Return the fields of a metrics line; this waits for the device."""
        sums, counts = self.sums.tolist()
        return {
            f"loops/{measure}/loop{r}": total / count
            for measure, totals, numbers in zip(_MEASURES, sums, counts, strict=True)
            for r, (total, count) in enumerate(zip(totals, numbers, strict=True))
            if count > 0
        }


class Several(Probe):
    """Hands everything to each of some probes."""

    def __init__(self, probes: list[Probe]):
        self._probes = probes

    def at_input(self, *args: Any) -> None:
        for probe in self._probes:
            probe.at_input(*args)

    def at_attention(self, *args: Any) -> None:
        for probe in self._probes:
            probe.at_attention(*args)

    def at_output(self, *args: Any) -> None:
        for probe in self._probes:
            probe.at_output(*args)
