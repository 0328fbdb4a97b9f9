"""What a logged step is measured by, besides its loss by domain and its gradient norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from loopcoder.config.schema import Config
from loopcoder.data.batch import Batch
from loopcoder.model.probe import LoopProbe, Probe
from loopcoder.parallel.mcore import Ranks
from loopcoder.train.diagnostics import LoopDiagnostics, Several, diagnostics_of
from loopcoder.train.labels import LabelLosses
from loopcoder.train.objective_sums import ObjectiveSums, probes_of


@dataclass(frozen=True)
class Measures:
    """Sums of one step on this rank, until `finish`; None for what is not asked for."""

    probe: LoopProbe | None = None
    """What the loops did."""
    by_label: LabelLosses | None = None
    """The loss by language and source."""
    by_loop: ObjectiveSums | None = None
    """An objective of several loops."""
    diagnostics: LoopDiagnostics | None = None
    """What the loops do to a few tokens."""

    def begin(self) -> None:
        """Begin a step."""
        for sums in (x.sums for x in (self.by_label, self.by_loop) if x is not None):
            sums.zero_()

    def of_microbatch(self, number: int, batch: Batch) -> Probe | None:
        """Tell the probes which microbatch comes; return what the model is to call."""
        if self.probe is not None:
            self.probe.loss_mask = batch.loss_mask
        if self.diagnostics is None:
            return self.probe
        self.diagnostics.at_batch(number, batch)
        return self.diagnostics if self.probe is None else Several([self.probe, self.diagnostics])

    def finish(self, state: Any, total: Tensor) -> None:
        """Add up over ranks, which must all call it; `total` are the summed losses and tokens by
        domain of the step. [2, domains]"""
        for sums in (x.sums for x in (self.by_label, self.by_loop, self.probe) if x is not None):
            sum_over_ranks(state, sums)
        if self.probe is not None:
            if state.config.sequence_parallel:  # each rank saw the gradient of its part of it
                dist.all_reduce(self.probe.sums[1], group=state.ranks.groups.tp)
            self.probe.sums[0, -1] = total[0].sum()
        if self.diagnostics is not None:
            self.diagnostics.finish(state.network)

    def fields(self, tokens: float) -> dict[str, float]:
        """Return the fields of a record, of a step with so many valid tokens; this waits for the
        device."""
        return {
            **(self.by_label.fields("loss") if self.by_label else {}),
            **(self.probe.fields(tokens) if self.probe else {}),
            **(self.by_loop.fields(tokens) if self.by_loop else {}),
            **(self.diagnostics.fields() if self.diagnostics else {}),
        }


NOTHING = Measures()


def measures_of(
    config: Config, ranks: Ranks, step: int, loops: int, by_label: LabelLosses | None
) -> Measures:
    """Return what measures a logged step that runs so many loops."""
    probe, by_loop = probes_of(config, loops, ranks.device)
    return Measures(probe, by_label, by_loop, diagnostics_of(config, ranks, step))


def sum_over_ranks(state: Any, sums: Tensor) -> None:
    """Add up over data-parallel ranks and pipeline stages, in place."""
    dist.all_reduce(sums, group=state.ranks.groups.dp_cp)
    if state.chunks:
        dist.all_reduce(sums, group=state.ranks.groups.pp)
