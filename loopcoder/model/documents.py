"""Where documents begin inside the sequences of a microbatch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """The borders that attention and the loop shift respect.

    Built once per microbatch and shared by all layers and loops, so that masks are computed once.
    """

    start: Tensor
    """Index in its row of the first token of each position's document. [B, S], int64."""
    position_ids: Tensor
    """Position inside the document. [B, S], int64."""
    cu_seqlens: Tensor | None
    """Cumulative document lengths over the rows laid end to end, int32 [documents + 1]; None: a row
    is one document."""
    max_seqlen: int
    """Length of the longest document, in tokens (an upper bound does)."""
    row_length: int | None = None
    """Tokens of each of the rows that were laid end to end in one (`as_one_row`); None: rows are as
    they came."""

    @classmethod
    def whole_rows(cls, batch: int, seq_length: int, device: torch.device) -> Documents:
        """Each row is one document."""
        positions = torch.arange(seq_length, device=device).expand(batch, seq_length)
        return cls(torch.zeros_like(positions), positions, None, seq_length)

    @classmethod
    def packed(cls, start: Tensor) -> Documents:
        """Rows hold several documents, given by `start` [B, S].

        Synchronises with the host when `start` is on a GPU; the data loader computes the same on
        the CPU.
        """
        batch, seq_length = start.shape
        index = torch.arange(seq_length, device=start.device)
        first = (start == index).flatten().nonzero().flatten()
        cu_seqlens = torch.cat([first, first.new_tensor([batch * seq_length])]).to(torch.int32)
        return cls(start, index - start, cu_seqlens, int((cu_seqlens[1:] - cu_seqlens[:-1]).max()))

    @property
    def is_packed(self) -> bool:
        return self.cu_seqlens is not None

    @property
    def table_length(self) -> int:
        """How many positions a table of rotary angles has to have."""
        return self.row_length or self.start.shape[1]

    def as_one_row(self) -> Documents:
        """Lay packed rows end to end in one, which Transformer Engine reads without transposing.

        A row begins a document, so nothing is seen across the borders of rows. No Python number of
        the result depends on where documents begin: the longest counts as long as a row.
        """
        rows, length = self.start.shape
        first = torch.arange(0, rows * length, length, device=self.start.device)
        return Documents(
            (self.start + first[:, None]).view(1, -1),
            self.position_ids.reshape(1, -1),
            self.cu_seqlens,
            length,
            length,
        )

    @cached_property
    def first_token(self) -> Tensor:
        """Whether a position is the first of its document. [S, B], bool."""
        return (self.position_ids == 0).transpose(0, 1)

    @cached_property
    def _distance(self) -> Tensor:
        """How far key s lies to the left of query t. [S, S]."""
        index = torch.arange(self.start.shape[1], device=self.start.device)
        return index[:, None] - index[None, :]

    @cached_property
    def causal_mask(self) -> Tensor | None:
        """Keys s <= t of the same document. [B, 1, S, S] bool; None where a plain causal mask is
        the same."""
        if not self.is_packed:
            return None
        index = torch.arange(self.start.shape[1], device=self.start.device)
        same_document = index >= self.start[:, :, None]
        return ((self._distance >= 0) & same_document)[:, None]

    def window_mask(self, window: int) -> Tensor:
        """Keys t-window <= s <= t of the same document. [B or 1, 1, S, S] bool."""
        key = f"window_{window}"
        if key not in self.__dict__:
            near = (self._distance >= 0) & (self._distance <= window)
            causal = self.causal_mask
            self.__dict__[key] = near[None, None] if causal is None else causal & near
        return self.__dict__[key]

    def causal_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return `causal_mask` as numbers to add to the scores: attention would make them of it in
        every layer and loop."""
        mask = self.causal_mask
        return None if mask is None else self._bias("causal_bias", mask, dtype)

    def window_bias(self, window: int, dtype: torch.dtype) -> Tensor:
        """Return `window_mask` as numbers to add to the scores."""
        return self._bias(f"window_{window}_bias", self.window_mask(window), dtype)

    def _bias(self, name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
        key = f"{name}_{dtype}"
        if key not in self.__dict__:
            hidden = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))
            self.__dict__[key] = hidden
        return self.__dict__[key]


def room_for(documents: int) -> int:
    """Return for how many documents Transformer Engine (2.20) plans attention where there are so
    many: 32, 64, ... 512, then multiples of 512. Further ones, which are empty, cost nothing."""
    if documents <= 32:
        return 32
    if documents <= 512:
        return 1 << (documents - 1).bit_length()
    return -(-documents // 512) * 512
