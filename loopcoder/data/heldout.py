"""The held-out sequences of one domain, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from loopcoder.config.data import DataConfig
from loopcoder.data.batch import Batch, make_batch
from loopcoder.data.check_packed import refuse_length
from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import check_there


class HeldOut:
    """The first tokens of a domain's held-out documents, laid end to end and cut into sequences;
    the last one is padded. Of a packed corpus they are the first sequences as they are packed, and
    each conversation stands alone in them, whatever the run does with its documents.

    Padding instead of dropping means that a handful of short documents still gives a loss, and that
    the labels are the same ones whatever the length.
    """

    def __init__(
        self, corpus: Corpus, domain: str, data: DataConfig, seq_length: int, num_tokens: int
    ):
        """
        Args:
            seq_length: tokens of a sequence.
            num_tokens: labels in all, trained or not, or as many as there are.

        Raises:
            InputError: the domain is packed for another length, or its mask is damaged.
        """
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        refuse_length(corpus, domain, seq_length)
        if corpus.packed_for(domain) is not None:
            data = replace(data, isolate_documents=True)
        self.domain, self.data, self.eod = domain, data, corpus.eod_id
        self.domain_id = corpus.domains.index(domain)
        member, own = corpus.part(domain)
        (prefix,) = member.prefixes(own, "val")
        check_there(prefix)
        documents = IndexedDataset(prefix)
        wanted = num_tokens + 1
        parts: list[np.ndarray] = []
        have = 0
        labels, mask = member.label_file(own, "val", 0), member.mask_file(own, "val", 0)
        for document in range(len(documents)):
            if have >= wanted:
                break
            parts.append(documents.get(document))
            have += len(parts[-1])
        ids = np.concatenate(parts)[:wanted].astype(np.int64)
        count = max(1, -(-(len(ids) - 1) // seq_length))
        padded = np.full(count * seq_length + 1, self.eod, dtype=np.int64)
        padded[: len(ids)] = ids
        starts = np.arange(count) * seq_length
        self.rows = torch.from_numpy(np.stack([padded[s : s + seq_length + 1] for s in starts]))
        label_index = torch.from_numpy(starts)[:, None] + torch.arange(1, seq_length + 1)
        self.valid = label_index < len(ids)
        self.num_tokens = len(ids) - 1
        """Labels that there are, those that begin a document included."""
        if mask is not None:
            trained = torch.from_numpy(mask.of_labels(0, len(ids) - 1))
            self.valid = self.valid.masked_scatter(self.valid, trained)
        if labels is None:
            self.label_ids = torch.full_like(label_index, member.domains.index(own))
        else:
            of_token = labels.of_documents(0, len(parts)).repeat([len(part) for part in parts])
            place = label_index.clamp(max=len(ids) - 1)
            self.label_ids = torch.from_numpy(of_token)[place]
        self.label_ids += corpus.first_label(domain)

    @property
    def num_trained(self) -> int:
        """Those of its labels that a mask trains; without one all."""
        return int(self.valid.sum())

    def batches(self, dp_rank: int, dp_size: int, micro_batch_size: int) -> Iterator[Batch]:
        """Yield this rank's part; every rank yields equally many (rows that fill up count
        nothing)."""
        per_round = dp_size * micro_batch_size
        for first in range(0, len(self.rows), per_round):
            chosen = torch.arange(first, first + per_round)[dp_rank * micro_batch_size :][
                :micro_batch_size
            ]
            inside = chosen < len(self.rows)
            chosen = chosen.clamp(max=len(self.rows) - 1)
            yield make_batch(
                self.rows[chosen],
                chosen,
                torch.full_like(chosen, self.domain_id),
                self.eod,
                label_ids=self.label_ids[chosen],
                isolate_documents=self.data.isolate_documents,
                mask_document_start=self.data.mask_document_start,
                valid=self.valid[chosen] & inside[:, None],
            )
