"""The held-out sequences that a diagnosis goes through, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.config.schema import Config
from loopcoder.data.batch import Batch
from loopcoder.data.corpus import Corpus
from loopcoder.data.heldout import HeldOut
from loopcoder.diagnose.capture import Subset
from loopcoder.diagnose.measurable import domains_to_measure
from loopcoder.errors import counted
from loopcoder.parallel.mcore import Ranks
from loopcoder.train.labels import groups_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class HeldOutData:
    """The held-out sequences that are gone through."""

    sets: list[HeldOut]
    asked: list[int]
    """Sequences of each domain."""
    languages: list[str]
    language_of: Tensor
    """Index of the language of each label of the corpus. [labels]"""
    mixture: dict[str, float]
    settings: DiagnoseConfig
    chosen: frozenset[tuple[int, int]]
    """Domain and sequence of those that the costly measures see."""

    @classmethod
    def of(
        cls, config: Config, corpus: Corpus, settings: DiagnoseConfig, stage: int
    ) -> HeldOutData:
        here = config.stages[stage]
        domains = domains_to_measure(config, corpus, settings)
        base, rest = divmod(settings.sequences, len(domains))
        asked = [base + (i < rest) for i in range(len(domains))]
        sets = [
            HeldOut(corpus, domain, config.data, here.seq_length, here.seq_length * number)
            for domain, number in zip(domains, asked, strict=True)
        ]
        labels = groups_of(corpus, config.logging.max_labels) if config.logging.max_labels else []
        of_label, names = tuple(0 for _ in corpus.labels), []
        for group in labels:
            if group.kind == "language":
                of_label, names = group.of_label, list(group.names)
        chosen = _chosen(sets, settings)
        return cls(
            sets, asked, names, torch.tensor(of_label), here.mixture, settings, frozenset(chosen)
        )

    @property
    def domains(self) -> list[str]:
        return [held_out.domain for held_out in self.sets]

    @property
    def num_sequences(self) -> int:
        return sum(len(held_out.rows) for held_out in self.sets)

    def batches(self, ranks: Ranks, micro: int) -> Iterator[tuple[int, Batch]]:
        """Yield this rank's batches with the index of their domain."""
        for domain, held_out in enumerate(self.sets):
            for batch in held_out.batches(ranks.dp_rank, ranks.dp_size, micro):
                yield domain, batch

    def subsets(self, domain: int, batch: Batch, device: torch.device) -> list[Subset | None]:
        """Draw what the costly measures see of each sequence, the same in every layout."""
        found: list[Subset | None] = []
        for row, sequence in enumerate(batch.sample_ids.tolist()):
            valid = batch.loss_mask[row].nonzero().flatten().numpy()
            if (domain, sequence) not in self.chosen or not len(valid):
                found.append(None)
                continue
            generator = np.random.default_rng([self.settings.seed, domain, sequence])
            tokens, queries = (
                np.sort(generator.choice(valid, min(most, len(valid)), replace=False))
                for most in (self.settings.rank_tokens, self.settings.queries)
            )
            found.append(
                Subset(torch.from_numpy(tokens).to(device), torch.from_numpy(queries).to(device))
            )
        return found

    def tell(self, batches: int, per_batch: int, say: Say) -> None:
        """Say how far it is, some ten times."""
        done, all_of_them = batches * per_batch, self.num_sequences
        every = max(1, all_of_them // 10)
        if done // every > (done - per_batch) // every:
            say(f"{min(done, all_of_them)} of {counted(all_of_them, 'sequence')}")

    def described(self, corpus: Corpus) -> dict[str, Any]:
        """Return what a diagnosis says of its data."""
        seq_length = self.sets[0].rows.shape[1] - 1
        return {
            "place": corpus.place,
            "fingerprint": corpus.fingerprint,
            "split": "val",
            "domains": self.domains,
            "sequences": {s.domain: len(s.rows) for s in self.sets},
            "sequence_length": seq_length,
            "weights": {d: w for d, w in self.mixture.items() if d in self.domains},
            "seed": self.settings.seed,
            "rank_sequences": len(self.chosen),
            "rank_tokens": min(self.settings.rank_tokens, seq_length),
            "queries": min(self.settings.queries, seq_length),
        }

    def notes(self) -> Iterator[str]:
        few = [
            f"{len(s.rows)} of {s.domain}"
            for s, asked in zip(self.sets, self.asked, strict=True)
            if len(s.rows) < asked
        ]
        if few:
            yield (
                f"there are fewer held-out sequences than diagnose.sequences="
                f"{self.settings.sequences} asks for: {', '.join(few)}"
            )
        single = [s.domain for s in self.sets if len(s.rows) < 2]
        if single:
            yield (
                f"no 95% intervals, and so no difference that counts: they need two sequences of "
                f"each domain, and there are fewer of {', '.join(single)} (diagnose.sequences="
                f"{self.settings.sequences}, evenly over the domains)"
            )
        if len(self.chosen) < min(self.settings.rank_sequences, self.settings.sequences):
            yield (
                f"effective rank and diversity of heads are of {len(self.chosen)} sequences: no "
                "others are whole"
            )


def _chosen(sets: list[HeldOut], settings: DiagnoseConfig) -> Iterator[tuple[int, int]]:
    """Draw the sequences of the costly measures, of those that no padding fills up."""
    whole = [
        (domain, int(index))
        for domain, held_out in enumerate(sets)
        for index in held_out.valid.all(1).nonzero().flatten()
    ]
    order = np.random.default_rng(settings.seed).permutation(len(whole))
    for place in order[: settings.rank_sequences]:
        yield whole[place]
