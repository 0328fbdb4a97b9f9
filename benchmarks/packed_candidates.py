"""The attentions that `packed_attention.py` compares; its docstring says what they are."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from packed_cudnn import PackedAttention, Plans
from packed_documents import Shape
from torch import Tensor

from loopcoder.model.documents import room_for


class Candidate:
    """An attention over packed rows whose borders lie in memory of its own."""

    package: str | None = None
    """Module without which it is left out."""
    remedy = ""
    is_static = True
    """No Python number depends on the borders."""

    @staticmethod
    def room(documents: int) -> int:
        """Return for how many documents memory and plans are made where there are so many."""
        return room_for(documents)

    def __init__(self, shape: Shape, room: int, device: torch.device):
        self.shape = shape
        self.borders = torch.zeros(room + 1, dtype=torch.int32, device=device)

    def fill(self, borders: Tensor) -> None:
        """Take new borders. [room + 1], int32, on the device"""
        self.borders.copy_(borders)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output, of the shape of q, differentiable."""
        raise NotImplementedError

    def laid_out(self, x: Tensor) -> Tensor:
        """[tokens, heads, head_dim] -> what `attend` takes."""
        return x

    def end_to_end(self, x: Tensor) -> Tensor:
        """What `attend` gives -> [tokens, heads, head_dim]."""
        return x


class TransformerEngine(Candidate):
    package, remedy = "transformer_engine", "pip install transformer-engine[pytorch]"
    layout, mask = "thd", "padding_causal"

    def __init__(self, shape: Shape, room: int, device: torch.device):
        super().__init__(shape, room, device)
        from transformer_engine.pytorch import DotProductAttention

        self.module = DotProductAttention(
            shape.heads,
            shape.head_dim,
            num_gqa_groups=shape.kv_heads,
            attention_dropout=0.0,
            qkv_format=self.layout,
            attn_mask_type=self.mask,
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        longest = self.shape.length
        out = self.module(
            q,
            k,
            v,
            cu_seqlens_q=self.borders,
            cu_seqlens_kv=self.borders,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        return out.view(q.shape)


class WholeRows(TransformerEngine):
    layout, mask = "sbhd", "causal"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.module(q, k, v).view(q.shape)

    def laid_out(self, x: Tensor) -> Tensor:
        return x.view(self.shape.rows, -1, *x.shape[1:]).transpose(0, 1).contiguous()

    def end_to_end(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(0, 1)


class Varlen(Candidate):
    package, remedy = "torch.nn.attention.varlen", "pip install 'torch>=2.11'"

    def __init__(self, shape: Shape, room: int, device: torch.device):
        super().__init__(shape, room, device)
        from torch.nn.attention.varlen import varlen_attn

        self.function = varlen_attn

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        borders, longest = self.borders, self.shape.length
        out: Any = self.function(q, k, v, borders, borders, longest, longest, window_size=(-1, 0))
        return out


class FlashAttention(Candidate):
    """A package of Dao-AILab, called by itself: PyTorch's registry refuses the backward pass of
    what `varlen_attn` calls a window, and causal attention is one."""

    def __init__(self, shape: Shape, room: int, device: torch.device):
        super().__init__(shape, room, device)
        assert self.package is not None
        self.function = importlib.import_module(self.package).flash_attn_varlen_func

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        longest = self.shape.length
        found = self.function(
            q,
            k,
            v,
            cu_seqlens_q=self.borders,
            cu_seqlens_k=self.borders,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=True,
        )
        return found[0] if isinstance(found, tuple) else found  # by version, lse comes too


class FlashAttention3(FlashAttention):
    package, remedy = "flash_attn_interface", "build hopper/ of flash-attention"


class FlashAttention4(FlashAttention):
    package, remedy = "flash_attn.cute", "pip install --pre flash-attn-4[cu13]"


class Flex(Candidate):
    """FlexAttention over [B, heads, S, head_dim]; on a CPU uncompiled, and forward only."""

    parts = (
        *("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"),
        *("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"),
    )

    def __init__(self, shape: Shape, room: int, device: torch.device):
        super().__init__(shape, room, device)
        from torch.nn.attention import flex_attention as flex

        self.function: Any = flex.flex_attention
        self.make: Any = flex.create_block_mask
        if device.type == "cuda":
            torch._dynamo.config.recompile_limit = 64  # beyond it, a whole S x S matrix is written
            self.function, self.make = (
                torch.compile(f, dynamic=False) for f in (self.function, self.make)
            )
        self.start = torch.zeros(shape.rows, shape.length, dtype=torch.int64, device=device)
        self.index = torch.arange(shape.tokens, device=device)
        self.block_mask = self._masked()

    def _masked(self) -> Any:
        start = self.start

        def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (key >= start[row, query])

        length = self.shape.length
        return self.make(sees, self.shape.rows, None, length, length, device=start.device)

    def fill(self, borders: Tensor) -> None:
        super().fill(borders)
        document = torch.searchsorted(self.borders, self.index, right=True) - 1
        first = self.borders.long()[document]
        self.start.copy_((first % self.shape.length).view(self.start.shape))
        new = self._masked()
        for name in self.parts:  # the same memory in each batch, as a graph wants it
            getattr(self.block_mask, name).copy_(getattr(new, name))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self.function(q, k, v, block_mask=self.block_mask, enable_gqa=True)
        return out

    def laid_out(self, x: Tensor) -> Tensor:
        return x.view(self.shape.rows, -1, *x.shape[1:]).transpose(1, 2)

    def end_to_end(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)


class CuDNN(Candidate):
    package, remedy = "cudnn", "pip install nvidia-cudnn-frontend==1.20.0"

    def __init__(self, shape: Shape, room: int, device: torch.device):
        super().__init__(shape, room, device)
        self.plans = [Plans(shape, *part, device) for part in self.parts(shape, room)]

    @staticmethod
    def parts(shape: Shape, room: int) -> list[tuple[int, int, int]]:
        """Return how many documents each of some plans is for, and their shortest and longest."""
        return [(room, 1, shape.length)]

    def fill(self, borders: Tensor) -> None:
        for plans in self.plans:
            plans.fill(borders)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = PackedAttention.apply(self.plans, q, k, v)
        return out


class CuDNN8(CuDNN):
    @staticmethod
    def room(documents: int) -> int:
        return -(-documents // 8) * 8


class CuDNN2(CuDNN):
    @staticmethod
    def parts(shape: Shape, room: int) -> list[tuple[int, int, int]]:
        short = shape.length // 8
        most = shape.tokens // (short + 1)  # more that are longer do not fit
        return [(room, 1, short), (min(room, most), short + 1, shape.length)]


class Apart(Candidate):
    is_static = False

    def fill(self, borders: Tensor) -> None:
        self.lengths = [length for length in borders.diff().tolist() if length]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        documents = zip(*(x.transpose(0, 1).split(self.lengths, 1) for x in (q, k, v)), strict=True)
        out = [
            F.scaled_dot_product_attention(*(x[None] for x in d), is_causal=True, enable_gqa=True)
            for d in documents
        ]
        return torch.cat(out, 2)[0].transpose(0, 1)


CANDIDATES: dict[str, type[Candidate]] = {
    "rows": WholeRows,
    "te": TransformerEngine,
    "cudnn": CuDNN,
    "cudnn8": CuDNN8,
    "cudnn2": CuDNN2,
    "varlen": Varlen,
    "fa3": FlashAttention3,
    "fa4": FlashAttention4,
    "flex": Flex,
    "apart": Apart,
}
BY_DEFAULT = [name for name in CANDIDATES if name != "apart"]
