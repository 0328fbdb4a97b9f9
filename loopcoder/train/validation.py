"""Loss on held-out documents: weighted by the mixture, by domain, by loop, and in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import batched
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from loopcoder.config.schema import Config
from loopcoder.data.batch import Batch
from loopcoder.data.check_packed import refuse_further_lengths
from loopcoder.data.corpus import Corpus
from loopcoder.data.heldout import HeldOut
from loopcoder.errors import counted
from loopcoder.train.by_domain import field_of, over_corpora
from loopcoder.train.labels import LabelLosses, label_losses
from loopcoder.train.out_of_memory import named_out_of_memory, smaller_evaluation
from loopcoder.train.state import TrainState
from loopcoder.train.step import losses

_AT_ONCE = 256
"""Microbatches that are on the device at a time."""


class EvaluationStopped(Exception):
    """The run was asked to stop, which does not wait for an evaluation."""


class Evaluator:
    """Evaluates the same held-out tokens every time, those of all domains of any data stage.

    In a data stage they are `eval.sequences_per_domain` sequences of its length. Further lengths
    (`eval.lengths`) cut the same tokens into fewer or more sequences, so that nothing but how far a
    token sees back differs between them. What is packed for one length is evaluated at that one.
    """

    def __init__(self, config: Config, corpus: Corpus, run_dir: Path | None = None):
        """
        Args:
            run_dir: of a run that trains: errors say how it continues.

        Raises:
            InputError: what is packed for a length is to be evaluated at another.
        """
        self._run_dir, self._corpus = run_dir, corpus
        self._stopping: Callable[[], bool] = lambda: False
        self.config, self._further = config, list(dict.fromkeys(config.eval.lengths or ()))
        trained = {domain for stage in config.stages for domain in stage.mixture}
        refuse_further_lengths(config, corpus, trained)
        of_stages = sorted({stage.seq_length for stage in config.stages})
        self._sets = {
            (covered, length): [
                self._held_out(domain, covered, length)
                for domain in corpus.domains
                if domain in trained
            ]
            for covered in of_stages
            for length in sorted({covered, *self._further})
        }
        self._token_bytes = torch.from_numpy(np.asarray(corpus.token_bytes()))

    def sets(self, stage: int = -1, length: int | None = None) -> list[HeldOut]:
        """Return the held-out sequences of every domain that are evaluated in a data stage.

        Args:
            stage: Index of the data stage.
            length: One of `eval.lengths`; None: the stage's own.
        """
        covered = self.config.stages[stage].seq_length
        return self._sets[covered, length or covered]

    def _held_out(self, domain: str, covered: int, length: int) -> HeldOut:
        packed = self._corpus.packed_for(domain)
        if packed is not None and length == covered:  # of another stage's length, maybe
            covered = length = packed
        tokens = self.config.eval.sequences_per_domain * covered
        return HeldOut(self._corpus, domain, self.config.data, length, tokens)

    def shortages(self) -> Iterator[str]:
        """Yield a sentence for each length of a data stage at which there are fewer sequences than
        asked for, and one for each further length of which there is no whole sequence."""
        asked = self.config.eval.sequences_per_domain
        for (covered, length), sets in self._sets.items():
            few = [f"{len(s.rows)} of {s.domain}" for s in sets if len(s.rows) < asked]
            if length == covered and few:
                yield (
                    f"validation has fewer sequences of {counted(length, 'token')} than "
                    f"eval.sequences_per_domain={asked}: {', '.join(few)}; each domain still "
                    "counts by its share of the mixture"
                )
            less = [f"{s.num_tokens:,} of {s.domain}" for s in sets if s.num_tokens < length]
            if length != covered and less:
                yield (
                    f"validation at {counted(length, 'token')} (eval.lengths) has no whole "
                    f"sequence: the tokens are those of {counted(asked, 'sequence')} of "
                    f"{covered:,} (eval.sequences_per_domain), {', '.join(less)}; none sees "
                    "farther back than these reach"
                )

    @torch.no_grad()
    def __call__(
        self, state: TrainState, stage: int = -1, stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Evaluate as a data stage trains; every rank must call it and gets the same.

        Args:
            state: The model.
            stage: Index of the data stage, whose length, RoPE base and mixture are taken.
            stopping: says, the same on all ranks, whether to break off; asked for every batch.

        Returns:
            the fields `val/...` of a metrics line.

        Raises:
            EvaluationStopped: it was broken off.
            OutOfMemory: there is too little for the sequences of a length.
        """
        here, further, self._stopping = self.config.stages[stage], self._further, stopping
        loops = self.config.model.num_loops if self.config.eval.per_loop else 1
        state.network.set_rope_theta(here.rope_theta)
        by_label = label_losses(self._corpus, self.config.logging.max_labels, state.ranks.device)
        sums = {
            length: self._by_domain(
                state, stage, length, loops, by_label if length == here.seq_length else None
            )
            for length in dict.fromkeys([here.seq_length, *further])
        }
        fields = _fields(sums[here.seq_length], here.mixture, loops)
        if by_label is not None:
            by_label.reduce(state.ranks.groups.dp_cp)
            fields |= by_label.fields("val/loss")
        for length in further:
            fields |= _fields(sums[length], here.mixture, loops, f"/len{length}")
        return fields

    def _by_domain(
        self,
        state: TrainState,
        stage: int,
        length: int,
        loops: int,
        by_label: LabelLosses | None,
    ) -> dict[str, torch.Tensor]:
        field = "eval.lengths" if length in self._further else "data.seq_length"
        micro = counted(self.config.train.micro_batch_size, "sequence")
        what = f"an evaluation at {counted(length, 'token')} ({field}, {micro} at once)"
        fix = smaller_evaluation(self.config, length, stage, self._run_dir)
        with named_out_of_memory(what, fix):
            return {
                s.domain: self._sums(state, s, loops, by_label) for s in self.sets(stage, length)
            }

    def _sums(
        self, state: TrainState, held_out: HeldOut, loops: int, by_label: LabelLosses | None
    ) -> torch.Tensor:
        """[loops + 2]: summed loss after each loop (the last is the model's), valid tokens, UTF-8
        bytes of them; `by_label` gets what this rank has of them."""
        device = state.ranks.device
        token_bytes = self._token_bytes.to(device)
        sums = torch.zeros(loops + 2, dtype=torch.float64, device=device)
        batches = held_out.batches(
            state.ranks.dp_rank, state.ranks.dp_size, self.config.train.micro_batch_size
        )
        if self._stopping():
            raise EvaluationStopped
        state.network.eval()
        for batch, loss in _with_losses(state, batches, every_loop=loops > 1):
            if self._stopping():
                raise EvaluationStopped
            sums[:loops] += (loss * batch.loss_mask).sum((1, 2)).double()
            sums[loops] += batch.loss_mask.sum().double()
            if by_label is not None:
                by_label.add(loss[-1] * batch.loss_mask, batch.loss_mask, batch.label_ids)
            sums[loops + 1] += (token_bytes[batch.labels] * batch.loss_mask).sum().double()
        state.network.train()
        dist.all_reduce(sums, group=state.ranks.groups.dp_cp)
        return sums.cpu()


def _with_losses(
    state: TrainState, batches: Iterable[Batch], *, every_loop: bool
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield each microbatch, on the device, with its losses; few of them are there at once."""
    for some in batched(batches, _AT_ONCE):
        there = [batch.to(state.ranks.device) for batch in some]
        yield from zip(there, losses(state, there, every_loop=every_loop), strict=True)


def mixture_mean(values: Mapping[str, float], mixture: Mapping[str, float]) -> float:
    """Return the mean over domains, each with its weight in the mixture.

    A domain without a value does not count; without any, the mean is NaN.
    """
    weights = {domain: weight for domain, weight in mixture.items() if domain in values}
    if not weights:
        return math.nan
    return sum(weight * values[d] for d, weight in weights.items()) / sum(weights.values())


def _fields(
    sums: Mapping[str, torch.Tensor], mixture: Mapping[str, float], loops: int, at: str = ""
) -> dict[str, float]:
    """Return the fields of what `_sums` found of every domain; `at` comes after `val/loss`."""
    by_domain: dict[str, list[float]] = {}
    fields: dict[str, float] = {}
    for domain, found in (over_corpora(sums, mixture) | dict(sums)).items():
        *by_loop, tokens, utf8_bytes = found.tolist()
        if tokens == 0:  # nothing but first tokens of documents
            continue
        by_domain[domain] = [s / tokens for s in by_loop]
        field = field_of(domain)
        fields |= _by_loop(f"val/loss{at}/{field}", by_domain[domain])
        fields[f"val/bpb{at}/{field}"] = by_loop[-1] / math.log(2) / max(utf8_bytes, 1.0)
    means = [
        mixture_mean({domain: loss[r] for domain, loss in by_domain.items()}, mixture)
        for r in range(loops)
    ]
    return _by_loop(f"val/loss{at}", means) | fields


def _by_loop(name: str, loss: list[float]) -> dict[str, float]:
    """Name the loss of the model, which is that of its last loop, and of each loop."""
    fields = {name: loss[-1]}
    if len(loss) > 1:
        fields |= {f"{name}/loop{r}": of_loop for r, of_loop in enumerate(loss)}
    return fields
