"""Attention over packed documents by graphs of cuDNN, one of the candidates."""

from __future__ import annotations

import math
from typing import Any

import torch
from packed_documents import Shape
from torch import Tensor


class Plans:
    """A plan forward and one backward, for up to `count` documents of `shortest` to `longest`
    tokens, anywhere in tensors with rows end to end.

    Other documents are neither read nor written. The time of a plan grows with count x longest,
    empty or not.
    """

    def __init__(self, shape: Shape, count: int, shortest: int, longest: int, device: torch.device):
        import cudnn

        self.cudnn, self.handle = cudnn, cudnn.create_handle()
        self.shape, self.count, self.device = shape, count, device
        self.shortest, self.longest = shortest, longest
        self.places = self._places(torch.zeros(count + 1, dtype=torch.int32, device=device))
        self.forward, self.backward = self._forward(), self._backward()

    def fill(self, borders: Tensor) -> None:
        """Take new borders. [at least count + 1], int32, on the device"""
        for name, tensor in self._places(borders).items():
            self.places[name].copy_(tensor)

    def _places(self, borders: Tensor) -> dict[str, Tensor]:
        """Return the lengths of documents [count], int32, and where each begins in tensors of a
        token's width, in elements [count + 1], int64."""
        lengths, end = borders.diff(), borders[-1]
        mine = (lengths >= self.shortest) & (lengths <= self.longest)
        order = (~mine).to(torch.uint8).argsort(stable=True)[: self.count]
        mine = mine[order]
        begins = torch.cat([torch.where(mine, borders[order], end), borders[-1:]]).long()
        return {
            "lengths": torch.where(mine, lengths[order], 0),
            "at_q": begins * (self.shape.heads * self.shape.head_dim),
            "at_k": begins * (self.shape.kv_heads * self.shape.head_dim),
            "at_lse": begins * self.shape.heads,
        }

    def run(self, plan: Any, **memory: Tensor) -> None:
        """Launch a plan on the current stream. Args: memory: what its tensors are, by name."""
        graph, tensors, workspace = plan
        places = self.places
        memory |= {f"lengths_{x}": places["lengths"] for x in "qk"}
        memory |= {"at_q": places["at_q"], "at_o": places["at_q"], "at_lse": places["at_lse"]}
        memory |= {"at_k": places["at_k"], "at_v": places["at_k"]}
        self.cudnn.set_stream(self.handle, torch.cuda.current_stream().cuda_stream)
        pack = {tensors[name]: tensor for name, tensor in memory.items()}
        graph.execute(pack, workspace, handle=self.handle)

    def _begin(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Return a new graph, its tensors by name, and the options of both directions."""
        kind, count, shape = self.cudnn.data_type, self.count, self.shape
        graph = self.cudnn.pygraph(
            io_data_type=kind.BFLOAT16,
            intermediate_data_type=kind.FLOAT,
            compute_data_type=kind.FLOAT,
            handle=self.handle,
        )
        tensors = {}
        for name, size, dtype in (
            *((at, count + 1, kind.INT64) for at in ("at_q", "at_k", "at_v", "at_o", "at_lse")),
            *((lengths, count, kind.INT32) for lengths in ("lengths_q", "lengths_k")),
        ):
            tensors[name] = graph.tensor(
                name=name, dim=[size, 1, 1, 1], stride=[1, 1, 1, 1], data_type=dtype
            )
        for name in ("q", "k", "v"):
            self._input(graph, tensors, name, f"at_{name}")
        options = dict(
            attn_scale=1 / math.sqrt(shape.head_dim),
            use_padding_mask=True,
            seq_len_q=tensors["lengths_q"],
            seq_len_kv=tensors["lengths_k"],
            diagonal_alignment=self.cudnn.diagonal_alignment.TOP_LEFT,
            diagonal_band_right_bound=0,
        )
        return graph, tensors, options

    def _dims(self, name: str) -> tuple[list[int], list[int]]:
        """Return sizes [documents, heads, S, head_dim] and strides of a tensor."""
        shape = self.shape
        heads = shape.kv_heads if name.endswith(("k", "v")) else shape.heads
        width = 1 if name == "lse" else shape.head_dim
        sizes = [self.count, heads, self.longest, width]
        return sizes, [self.longest * heads * width, width, heads * width, 1]

    def _input(self, graph: Any, tensors: dict[str, Any], name: str, at: str) -> None:
        kind = self.cudnn.data_type
        sizes, strides = self._dims(name)
        dtype = kind.FLOAT if name == "lse" else kind.BFLOAT16
        tensors[name] = graph.tensor(name=name, dim=sizes, stride=strides, data_type=dtype)
        tensors[name].set_ragged_offset(tensors[at])

    def _output(self, tensors: dict[str, Any], name: str, tensor: Any, at: str) -> None:
        kind = self.cudnn.data_type
        sizes, strides = self._dims(name)
        tensor.set_output(True).set_dim(sizes).set_stride(strides)
        tensor.set_data_type(kind.FLOAT if name == "lse" else kind.BFLOAT16)
        tensor.set_ragged_offset(tensors[at])
        tensors[name] = tensor

    def _forward(self) -> Any:
        graph, tensors, options = self._begin()
        out, lse = graph.sdpa(
            name="sdpa",
            q=tensors["q"],
            k=tensors["k"],
            v=tensors["v"],
            generate_stats=True,
            **options,
        )
        self._output(tensors, "o", out, "at_o")
        self._output(tensors, "lse", lse, "at_lse")
        return self._finished(graph, tensors)

    def _backward(self) -> Any:
        graph, tensors, options = self._begin()
        for name, at in (("o", "at_o"), ("d_o", "at_o"), ("lse", "at_lse")):
            self._input(graph, tensors, name, at)
        gradients = graph.sdpa_backward(
            name="sdpa_backward",
            q=tensors["q"],
            k=tensors["k"],
            v=tensors["v"],
            o=tensors["o"],
            dO=tensors["d_o"],
            stats=tensors["lse"],
            max_total_seq_len_q=self.shape.tokens,
            max_total_seq_len_kv=self.shape.tokens,
            **options,
        )
        for name, tensor in zip("qkv", gradients, strict=True):
            self._output(tensors, f"d_{name}", tensor, f"at_{name}")
        return self._finished(graph, tensors)

    def _finished(self, graph: Any, tensors: dict[str, Any]) -> Any:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self.cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        workspace = torch.empty(
            max(graph.get_workspace_size(), 1), dtype=torch.uint8, device=self.device
        )
        return graph, tensors, workspace


class PackedAttention(torch.autograd.Function):
    """Attention within the documents of some plans, each of which is in one of them."""

    @staticmethod
    def forward(ctx: Any, plans: list[Plans], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        for each in plans:
            each.run(each.forward, q=q, k=k, v=v, o=out, lse=lse)
        ctx.plans = plans
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
        given = dict(q=q, k=k, v=v, o=out, lse=lse, d_o=d_out.contiguous())
        for each in ctx.plans:
            each.run(each.backward, **given, d_q=d_q, d_k=d_k, d_v=d_v)
        return None, d_q, d_k, d_v
