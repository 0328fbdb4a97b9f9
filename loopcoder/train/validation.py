"""Loss on held-out documents: by domain, by loop, and in bits per byte."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist

from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.heldout import HeldOut
from loopcoder.train.state import TrainState
from loopcoder.train.step import losses


class Evaluator:
    """Evaluates the same held-out sequences every time."""

    def __init__(self, config: Config, corpus: Corpus):
        self.config = config
        stage = config.stages[-1]
        self.sets = [
            HeldOut(corpus, domain, config.data, stage.seq_length, config.eval.sequences_per_domain)
            for domain in corpus.domains
            if domain in stage.mixture
        ]
        self._token_bytes = torch.from_numpy(np.asarray(corpus.token_bytes()))

    def unigram_entropy(self) -> float:
        """Entropy of the evaluated tokens' own frequencies, in nats per token: what a model without
        context can reach."""
        labels = [s.rows[:, 1:][s.valid & (s.rows[:, :-1] != s.eod)] for s in self.sets]
        counts = torch.bincount(torch.cat(labels)).double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log()).sum())

    @torch.no_grad()
    def __call__(self, state: TrainState) -> dict[str, float]:
        """Return the fields of a metrics line; every rank must call it and gets the same."""
        loops = self.config.model.num_loops if self.config.eval.per_loop else 1
        fields: dict[str, float] = {}
        overall = torch.zeros(loops + 2, dtype=torch.float64)
        for held_out in self.sets:
            sums = self._sums(state, held_out, loops)
            overall += sums
            fields |= _fields(f"/{held_out.domain}", sums)
        return _fields("", overall) | fields

    def _sums(self, state: TrainState, held_out: HeldOut, loops: int) -> torch.Tensor:
        """[loops + 2]: summed loss after each loop (the last is the model's), valid tokens, UTF-8
        bytes of them."""
        device = state.ranks.device
        token_bytes = self._token_bytes.to(device)
        state.network.eval()
        sums = torch.zeros(loops + 2, dtype=torch.float64, device=device)
        batches = [
            batch.to(device)
            for batch in held_out.batches(
                state.ranks.dp_rank, state.ranks.dp_size, self.config.train.micro_batch_size
            )
        ]
        for batch, loss in zip(batches, losses(state, batches, every_loop=loops > 1), strict=True):
            sums[:loops] += (loss * batch.loss_mask).sum((1, 2)).double()
            sums[loops] += batch.loss_mask.sum().double()
            sums[loops + 1] += (token_bytes[batch.labels] * batch.loss_mask).sum().double()
        state.network.train()
        dist.all_reduce(sums, group=state.ranks.groups.dp_cp)
        return sums.cpu()


def _fields(suffix: str, sums: torch.Tensor) -> dict[str, float]:
    *by_loop, tokens, utf8_bytes = sums.tolist()
    fields = {f"val/loss{suffix}": by_loop[-1] / max(tokens, 1.0)}
    if len(by_loop) > 1:
        fields |= {f"val/loss{suffix}/loop{r}": s / max(tokens, 1.0) for r, s in enumerate(by_loop)}
    if suffix:
        fields[f"val/bpb{suffix}"] = by_loop[-1] / math.log(2) / max(utf8_bytes, 1.0)
    return fields
