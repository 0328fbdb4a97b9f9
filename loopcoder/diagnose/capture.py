"""Measures what the model hands over while it runs, and keeps no more of it than that takes.

Of the states three loops are there at a time, and of each layer the queries, keys and gates of the
loop before; the head is read for some tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.data.batch import Batch
from loopcoder.diagnose.measures.attention import attention_sums, head_diversity, head_vectors
from loopcoder.diagnose.measures.exits import exit_loops, exit_loops_kl, exit_values
from loopcoder.diagnose.measures.maps import LoopAttention, queries_per_chunk
from loopcoder.diagnose.measures.outputs import OutputValues, is_largest, read_outputs
from loopcoder.diagnose.measures.rank import effective_rank
from loopcoder.diagnose.measures.states import alignment, offset_cost, step_size
from loopcoder.diagnose.table import Column, Table
from loopcoder.model.probe import Probe, ReadOut
from loopcoder.parallel.joined import joined
from loopcoder.parallel.mcore import Ranks

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Thresholds at which a token leaves: the probability of the most likely next token."""
SHIFTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Thresholds at which a token leaves: KL(p(r) || p(r-1)), in nats."""
_TOKENS_AT_ONCE = 1024
"""Of which the head's logits are there together."""
_MAPS_BYTES = 2**30
"""Of attention maps that are there together."""


@dataclass(frozen=True)
class Subset:
    """What the costly measures see of a sequence."""

    tokens: Tensor
    """Positions whose states make the matrix of an effective rank. [T]"""
    queries: Tensor
    """Positions at which the heads are compared. [Q]"""


class Capture(Probe):
    """Fills a table with what one batch after the other gives, on the rank that has it.

    The sum over attention heads is split over tensor-parallel ranks; everything else is of the
    first of them.
    """

    def __init__(self, model: ModelConfig, loops: int, ranks: Ranks, table: Table):
        """
        Args:
            loops: Loops that are measured. One more that runs gives the gap to a fixed point.
        """
        self.model, self.loops, self.ranks, self.table = model, loops, ranks, table
        self._attention: dict[int, LoopAttention] = {}
        self._states: dict[str, list[Tensor]] = {}
        self._outputs: list[OutputValues] = []
        self.embedding: Tensor | None = None
        """E of the batch: given to the last stage by the first. [S, B, D]"""

    def begin(
        self,
        batch: Batch,
        domain: int,
        sequences: Tensor,
        languages: Tensor,
        subsets: Sequence[Subset | None],
    ) -> None:
        """Begin a batch, which is on the device.

        Args:
            sequences: Index of each sequence within its domain. [B]
            languages: Index of each label's language. [B, S]
            subsets: By sequence; None: the costly measures leave it out.
        """
        self.batch, self._subsets = batch, subsets
        self._mask = batch.loss_mask.transpose(0, 1) > 0  # [S, B]
        self.table.begin(domain, sequences, languages)

    def end(self) -> None:
        """Let go of the batch."""
        self.table.end()
        self._attention, self._states, self._outputs = {}, {}, []
        self.embedding = None

    @property
    def _records(self) -> bool:
        return self.ranks.tp_rank == 0

    def at_input(self, loop_idx: int, hidden: Tensor) -> None:
        if loop_idx == 0:
            self.embedding = hidden

    def at_attention(
        self,
        loop_idx: int,
        layer: int,
        q: Tensor,
        k: Tensor,
        shared_k: Tensor | None,
        gate: Tensor | None,
    ) -> None:
        loop = loop_idx + 1
        if loop > self.loops:
            return
        scale = 1 / math.sqrt(q.shape[-1])
        now = LoopAttention(q, k, shared_k, gate, self.model.window, scale)
        start, heads = self.batch.document_start, self.model.num_attention_heads
        chunk = queries_per_chunk(
            q.shape[1],
            q.shape[0],
            q.shape[2],
            element_bytes=_exact(q).itemsize,
            budget_bytes=_MAPS_BYTES,
        )
        found = attention_sums(now, self._attention.get(layer), start, chunk=chunk)
        self._attention[layer] = now
        others = self._mask & found.has_others
        values = [
            ("attention_entropy", "all", found.entropy, self._mask),
            ("attention_entropy", "no_first", found.entropy_no_first, others),
            ("attention_change", "all", found.change, self._mask),
            ("attention_change", "no_first", found.change_no_first, others),
            ("gate", "", None if gate is None else gate.sum(-1, dtype=_exact(gate)), self._mask),
        ]
        for measure, variant, summed, defined in values:
            if summed is not None:
                column = Column(measure, variant, loop, layer)
                self.table.add(column, summed / heads, defined, counts=self._records)
        for index, subset in enumerate(self._subsets):
            if subset is not None:
                self._compare_heads(now, index, subset, loop, layer)

    def _compare_heads(
        self, now: LoopAttention, index: int, subset: Subset, loop: int, layer: int
    ) -> None:
        start = self.batch.document_start[index : index + 1]
        vectors = head_vectors(_of_sequence(now, index), start, subset.queries)  # [Q, 1, H, S]
        rank, cosine = head_diversity(joined(vectors, 2, self.ranks.groups.tp))
        if self._records:
            for measure, values in (("head_rank", rank), ("head_cosine", cosine)):
                column = Column(measure, "", loop, layer)
                self.table.add_sequence(column, index, values.double().mean())

    def at_output(
        self,
        loop_idx: int,
        raw: Tensor,
        normed: Tensor,
        labels: Tensor | None,
        read_out: ReadOut,
        read: Tensor | None,
    ) -> None:
        loop = loop_idx + 1
        if not self._states:
            assert self.embedding is not None, "the first stage has handed it on"
            self._states = {"raw": [self.embedding], "normed": [self.embedding]}
        if loop <= self.loops:
            self._read(loop, normed, read_out)
        for variant, state in (("raw", raw), ("normed", normed)):
            if self._records:
                self._measure_state(loop, variant, state)
            self._states[variant] = [self._states[variant][-1], state]
        if loop == self.loops and self._records:
            self._finish_outputs()
        if loop <= self.loops and self._records:
            self._rank_states(loop, normed)

    def _measure_state(self, loop: int, variant: str, state: Tensor) -> None:
        before = self._states[variant]
        step = step_size(state, before[-1])
        if loop > 1:  # this loop is the f of the loop before
            self.table.add(Column("fixed_point_gap", variant, loop - 1), step, self._mask)
        if loop > self.loops:
            return
        self.table.add(Column("step_size", variant, loop), step, self._mask)
        if loop > 1:
            cosine, defined = alignment(state, before[-1], before[-2])
            self.table.add(Column("alignment", variant, loop), cosine, defined & self._mask)
        if loop < self.loops:  # what the shift costs is paid by the loop that reads this one
            cost, defined = offset_cost(state, self.batch.documents.first_token)
            self.table.add(Column("offset_cost", variant, loop + 1), cost, defined & self._mask)

    def _rank_states(self, loop: int, normed: Tensor) -> None:
        for index, subset in enumerate(self._subsets):
            if subset is not None:
                rank = effective_rank(normed[subset.tokens, index])
                self.table.add_sequence(Column("effective_rank", "normed", loop), index, rank)

    def _read(self, loop: int, normed: Tensor, read_out: ReadOut) -> None:
        """Read the head after a loop, and after the one before to compare with."""
        at_once = max(1, _TOKENS_AT_ONCE // normed.shape[1])
        labels = self.batch.labels.transpose(0, 1)
        before = self._states["normed"][-1] if loop > 1 else None
        parts = []
        for first in range(0, len(normed), at_once):
            some = slice(first, first + at_once)
            logits = self._logits(normed[some], read_out)
            former = None if before is None else self._logits(before[some], read_out)
            if self._records:
                # with the rows that pad the vocabulary, as the loss of training counts them
                vocabulary = logits.shape[-1]
                true = labels[some].flatten()
                parts.append(read_outputs(logits, former, true, vocab_size=vocabulary))
        if self._records:
            self._add_outputs(loop, _joined(parts))

    def _logits(self, normed: Tensor, read_out: ReadOut) -> Tensor:
        """Return the logits of the whole vocabulary. [S * B, V]"""
        return joined(read_out(normed, None), -1, self.ranks.groups.tp).flatten(0, 1)

    def _add_outputs(self, loop: int, found: OutputValues) -> None:
        values = {
            "loss": found.loss,
            "output_entropy": found.entropy,
            "top1": found.top1,
            "output_shift": found.shift,
            "loss_gain": self._outputs[-1].loss - found.loss if self._outputs else None,
        }
        for measure, by_token in values.items():
            if by_token is not None:
                self._add_token(Column(measure, "", loop), by_token)
        self.table.keep(Column("rank", "", loop), found.rank.view(self._mask.shape), self._mask)
        self._outputs.append(found)

    def _finish_outputs(self) -> None:
        """Measure what takes the outputs of all loops together."""
        if self.loops == 1:
            return
        shifts = [out.shift for out in self._outputs if out.shift is not None]
        for loop, largest in enumerate(is_largest(torch.stack(shifts)), start=2):
            self._add_token(Column("concentration", "largest_shift", loop), largest.double())
        confidence = torch.stack([out.confidence for out in self._outputs])
        shift = torch.stack([torch.full_like(shifts[0], math.nan), *shifts])
        for threshold in CONFIDENCES:
            self._add_exit(f"confidence@{threshold}", exit_loops(confidence, threshold))
        for threshold in SHIFTS:
            self._add_exit(f"kl@{threshold}", exit_loops_kl(shift, threshold))

    def _add_exit(self, rule: str, loops: Tensor) -> None:
        """Add what leaving after these loops (counted from 1) would do. [S * B]"""
        losses = torch.stack([out.loss for out in self._outputs])
        found = exit_values(loops, losses, torch.stack([out.prediction for out in self._outputs]))
        for measure, values in (
            ("loops", loops),
            ("loss", found.loss),
            ("agreement", found.agrees),
        ):
            self._add_token(Column(f"exit_{measure}", rule, self.loops), values.double())

    def _add_token(self, column: Column, values: Tensor) -> None:
        self.table.add(column, values.view(self._mask.shape), self._mask)


def _joined(parts: Sequence[OutputValues]) -> OutputValues:
    """Return the values of all tokens."""
    names = [field.name for field in fields(OutputValues)]
    columns: dict[str, Any] = {name: [getattr(part, name) for part in parts] for name in names}
    joined: dict[str, Any] = {
        name: None if x[0] is None else torch.cat(x) for name, x in columns.items()
    }
    return OutputValues(**joined)


def _of_sequence(x: LoopAttention, index: int) -> LoopAttention:
    """Return what belongs to one sequence of a batch."""
    row = slice(index, index + 1)
    shared = None if x.shared_k is None else x.shared_k[:, row]
    gate = None if x.gate is None else x.gate[:, row]
    return replace(x, q=x.q[:, row], k=x.k[:, row], shared_k=shared, gate=gate)


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
