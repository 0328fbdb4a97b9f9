"""The batch contract: what the model is fed, and how it follows from token ids alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from loopcoder.model.documents import Documents


@dataclass(frozen=True)
class Batch:
    """One microbatch of one rank. Position ids restart at each document."""

    tokens: Tensor
    """[B, S], int64."""
    labels: Tensor
    """The next tokens. [B, S], int64."""
    loss_mask: Tensor
    """1 where the label counts. [B, S], float32."""
    position_ids: Tensor
    """Position inside the document. [B, S], int64."""
    document_start: Tensor
    """Index in its row of the document's first token. [B, S], int64."""
    sample_ids: Tensor
    """Global sample index of each row. [B], int64."""
    domain_ids: Tensor
    """Index of each row's domain in the corpus. [B], int64."""
    label_ids: Tensor
    """Index in `Corpus.labels` of the document of each label. [B, S], int64."""
    cu_seqlens: Tensor | None
    """Cumulative document lengths over the rows laid end to end, int32; None: a row is one
    document."""
    max_seqlen: int
    """Longest document, in tokens."""
    row_length: int | None = None
    """Tokens of each of the rows that were laid end to end in one (`as_one_row`): then [B, S] above
    is [1, B*S]; None: rows are as they came."""

    @property
    def documents(self) -> Documents:
        return Documents(
            self.document_start,
            self.position_ids,
            self.cu_seqlens,
            self.max_seqlen,
            self.row_length,
        )

    def as_one_row(self) -> Batch:
        """Lay packed rows end to end in one; see `Documents.as_one_row`. Samples and domains stay
        those of the rows."""
        docs = self.documents.as_one_row()
        return replace(
            self,
            tokens=self.tokens.view(1, -1),
            labels=self.labels.view(1, -1),
            loss_mask=self.loss_mask.view(1, -1),
            position_ids=docs.position_ids,
            document_start=docs.start,
            label_ids=self.label_ids.view(1, -1),
            max_seqlen=docs.max_seqlen,
            row_length=docs.row_length,
        )

    def to(self, device: torch.device) -> Batch:
        """Copy to a device without waiting for the copy (from pinned memory)."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def copied_to(self, device: torch.device) -> Batch:
        """Copy to a device, to memory that nothing else has, even if it is there already."""
        return self._map(lambda x: x.to(device, non_blocking=True, copy=True))

    def pin(self) -> Batch:
        """Copy to page-locked memory, from which transfers run beside computation."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, function) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        )


def make_batch(
    rows: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor,
    eod: int,
    *,
    label_ids: Tensor | None = None,
    isolate_documents: bool = True,
    mask_document_start: bool = True,
    valid: Tensor | None = None,
) -> Batch:
    """Build a batch from rows of S+1 token ids.

    Args:
        rows: [B, S+1], int64; a document ends with `eod`, and the next one follows in the same row.
        label_ids: what each label is of, [B, S]; None: of its row's domain, as in a corpus without
            files of labels.
        isolate_documents: keep documents apart; otherwise a row counts as one document.
        mask_document_start: leave labels that begin a document out of the loss.
        valid: False where a label is padding or not trained. [B, S]; None: all count.
    """
    tokens, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    batch, seq_length = tokens.shape
    index = torch.arange(seq_length).expand(batch, seq_length)
    if label_ids is None:
        label_ids = domain_ids[:, None].repeat(1, seq_length)
    loss_mask = torch.ones(batch, seq_length)
    if mask_document_start:
        loss_mask[tokens == eod] = 0.0
    if valid is not None:
        loss_mask *= valid
    if isolate_documents:
        begins = torch.zeros_like(tokens, dtype=torch.bool)
        begins[:, 1:] = tokens[:, :-1] == eod
        docs = Documents.packed(torch.where(begins, index, 0).cummax(1).values)
    else:
        docs = Documents.whole_rows(batch, seq_length, tokens.device)
    return Batch(
        tokens=tokens,
        labels=labels,
        loss_mask=loss_mask,
        position_ids=docs.position_ids.contiguous(),
        document_start=docs.start.contiguous(),
        sample_ids=sample_ids,
        domain_ids=domain_ids,
        label_ids=label_ids,
        cu_seqlens=docs.cu_seqlens,
        max_seqlen=docs.max_seqlen,
    )
