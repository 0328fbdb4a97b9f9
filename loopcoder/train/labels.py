"""Sums of the loss by language and by source, on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.data.corpus import Corpus

OTHER = "other"
"""Those beyond the most frequent ones, together."""
UNKNOWN = "unknown"
"""Of documents of which a corpus does not keep it."""


@dataclass(frozen=True)
class Groups:
    """The languages or the sources that have a loss of their own."""

    kind: str
    """`language` or `source`."""
    names: tuple[str, ...]
    of_label: tuple[int, ...]
    """Index in `names` of every label of the corpus."""


def groups_of(corpus: Corpus, most: int) -> list[Groups]:
    """Return the languages and the sources of a corpus; not those of which there is only one.

    Args:
        most: Of each kind, those with most training tokens; the rest is one group.
    """
    tokens = corpus.label_tokens("train").tolist()
    found = []
    for kind in ("language", "source"):
        own = [getattr(label, kind) or UNKNOWN for label in corpus.labels]
        total: Counter[str] = Counter()
        for name, count in zip(own, tokens, strict=True):
            total[name] += count
        names = sorted(total, key=lambda name: (-total[name], name))
        if len(names) > most:
            names = list(dict.fromkeys([*names[:most], OTHER]))
        index = {name: i for i, name in enumerate(names)}
        of_label = tuple(index[name] if name in index else index[OTHER] for name in own)
        if len(total) > 1:
            found.append(Groups(kind, tuple(names), of_label))
    return found


def label_losses(corpus: Corpus, most: int, device: torch.device) -> LabelLosses | None:
    """Return the sums of the `groups_of` a corpus; None: it has no more than domains, or none are
    asked for."""
    groups = groups_of(corpus, most) if most else []
    return LabelLosses(groups, device) if groups else None


class LabelLosses:
    """Sums of some batches on this rank; nothing waits for the device until `fields`.

    Every group is summed by itself in a tree, not by additions whose order the device chooses: the
    same losses have the same sums, bit for bit, and one that is not finite spoils its own only.
    """

    def __init__(self, groups: Sequence[Groups], device: torch.device):
        self.groups = list(groups)
        width = max(len(g.names) for g in self.groups)
        of_label = [g.of_label for g in self.groups]
        self._of_label = torch.tensor(of_label, dtype=torch.int32, device=device)
        self._number = torch.arange(width, dtype=torch.int32, device=device)[:, None, None]
        self.sums = torch.zeros(2, len(of_label), width, dtype=torch.float64, device=device)
        """Summed loss and number of valid tokens by kind and group. [2, kinds, groups]"""

    def add(self, masked: Tensor, mask: Tensor, label_ids: Tensor) -> None:
        """Add a microbatch.

        Args:
            masked: Loss of every token, 0 where it does not count. [B, S]
            mask: 1 where it counts. [B, S]
            label_ids: Index in `Corpus.labels`. [B, S]
        """
        match = self._of_label[:, label_ids][:, None] == self._number  # [kinds, groups, B, S]
        both = torch.stack([masked.detach(), mask.to(masked.dtype)])[:, None, None]
        self.sums += torch.where(match, both, 0.0).sum((-2, -1), dtype=torch.float64)

    def reduce(self, group: Any) -> None:
        """Add up over the ranks of a process group; all of them must call it."""
        dist.all_reduce(self.sums, group=group)

    def fields(self, prefix: str) -> dict[str, float]:
        """Return the mean loss of every group that has tokens, by `<prefix>/<kind>/<name>`."""
        sums, tokens = self.sums.tolist()
        return {
            f"{prefix}/{g.kind}/{name}": s / n
            for g, of_kind, counts in zip(self.groups, sums, tokens, strict=True)
            for name, s, n in zip(g.names, of_kind, counts, strict=False)
            if n > 0
        }
