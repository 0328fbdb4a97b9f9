"""The kernels for decoding on the CPU (emulated.py), behind the functions of `ops/decode.py`."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path

import torch
from torch import Tensor

from loopcoder.ops.decode import KV
from tests.ops import emulated

_GEMV = """
extern "C" int run(unsigned seed, loopcoder::DecodeGemv* args) {
  emulated::chance.seed(seed);
  return loopcoder::decode_gemv(*args, nullptr);
}
"""
_ATTENTION = """
extern "C" int run(unsigned seed, loopcoder::DecodeAttention* args, int rotates) {
  emulated::chance.seed(seed);
  return rotates ? loopcoder::decode_rotate(*args, nullptr)
                 : loopcoder::decode_attention(*args, nullptr);
}
"""


def _fields(**kinds: str) -> list[tuple[str, type]]:
    """Fields of a C structure: names by their kind."""
    types: dict[str, type] = dict(
        b=ctypes.c_bool, f=ctypes.c_float, i=ctypes.c_int, n=ctypes.c_int64, p=ctypes.c_void_p
    )
    return [(name, types[kind[0]]) for kind, names in kinds.items() for name in names.split()]


class _Gemv(ctypes.Structure):
    _fields_ = _fields(
        i="rows columns width",
        p="x weight",
        n="x_row",
        p2="norm",
        f="eps",
        b="swiglu",
        p3="added",
        n2="added_row",
        b2="is_float",
        p4="out",
    )


class _Kept(ctypes.Structure):
    _fields_ = _fields(p="k v", n="place loop head", i="tokens")


class _Attention(ctypes.Structure):
    _fields_ = (
        *_fields(i="batch loops heads kv_heads head_dim splits", f="scale"),
        ("all", _Kept),
        ("ring", _Kept),
        *_fields(p="places positions qkv cos sin q gate", n="gate_batch gate_loop"),
        *_fields(p="sums stats out"),
    )


class DecodeKernels:
    """Calls them as the operators do."""

    def __init__(self, folder: Path, rng: random.Random):
        self.rng, self.splits = rng, 1
        gemv, attention = folder / "gemv", folder / "attention"
        gemv.mkdir(), attention.mkdir()
        self._gemv = emulated.build("decode_gemv.cu", _GEMV, gemv)
        self._attention = emulated.build("decode_attention.cu", _ATTENTION, attention)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        swiglu: bool = False,
        added: Tensor | None = None,
        to_float: bool = False,
    ) -> Tensor:
        columns = len(weight) // (1 + swiglu)
        assert x.stride(1) == 1 and weight.is_contiguous()
        out = _nan(len(x), columns, dtype=torch.float if to_float else x.dtype)
        arguments = _Gemv(
            rows=len(x),
            columns=columns,
            width=x.shape[1],
            x=x.data_ptr(),
            weight=weight.data_ptr(),
            x_row=x.stride(0),
            norm=None if norm is None else norm.data_ptr(),
            eps=eps,
            swiglu=swiglu,
            added=None if added is None else added.data_ptr(),
            added_row=0 if added is None else added.stride(0),
            is_float=to_float,
            out=out.data_ptr(),
        )
        assert self._gemv.run(self._seed(), ctypes.byref(arguments)) == 0
        return out

    def rotate(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        kept: KV,
        rings: KV | None,
        places: Tensor,
        positions: Tensor,
    ) -> Tensor:
        heads = qkv.shape[-1] // kept[0].shape[-1] - 2 * kept[0].shape[1]
        q = _nan(*qkv.shape[:2], heads, kept[0].shape[-1], dtype=qkv.dtype)
        assert qkv.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
        self._attend(q, kept, rings, places, positions, 1, qkv=qkv, cos=cos, sin=sin)
        return q

    def attention(
        self,
        q: Tensor,
        kept: KV,
        rings: KV | None,
        places: Tensor,
        positions: Tensor,
        gates: Tensor | None,
    ) -> Tensor:
        parts = q.numel() // q.shape[-1] * (self.splits + 1)
        tensors = {"out": torch.full_like(q, torch.nan), "sums": _nan(parts, q.shape[-1])}
        tensors |= {"stats": _nan(parts, 2)} | ({} if gates is None else {"gate": gates})
        self._attend(q, kept, rings, places, positions, 0, **tensors)
        return tensors["out"]

    def _attend(
        self,
        q: Tensor,
        kept: KV,
        rings: KV | None,
        places: Tensor,
        positions: Tensor,
        rotates: int,
        **tensors: Tensor,
    ) -> None:
        batch, loops, heads, head_dim = q.shape
        tensors |= {"q": q, "places": places, "positions": positions}
        arguments = _Attention(
            batch=batch,
            loops=loops,
            heads=heads,
            kv_heads=kept[0].shape[1],
            head_dim=head_dim,
            splits=self.splits,
            scale=head_dim**-0.5,
            all=_kept(*kept),
            ring=_kept(*rings) if rings else _Kept(),
            **{name: x.data_ptr() for name, x in tensors.items()},
        )
        if "gate" in tensors:
            assert tensors["gate"].shape == (batch, loops - 1, heads)
            assert heads == 1 or tensors["gate"].stride(2) == 1
            arguments.gate_batch, arguments.gate_loop = tensors["gate"].stride()[:2]
        assert self._attention.run(self._seed(), ctypes.byref(arguments), rotates) == 0

    def _seed(self) -> ctypes.c_uint:
        return ctypes.c_uint(self.rng.getrandbits(32))


def _kept(k: Tensor, v: Tensor) -> _Kept:
    assert k.stride() == v.stride() and k.stride(-2) == k.shape[-1]
    loop = k.stride(1) if k.dim() == 5 else 0
    return _Kept(k.data_ptr(), v.data_ptr(), k.stride(0), loop, k.stride(-3), k.shape[-2])


def _nan(*shape: int, dtype: torch.dtype = torch.float) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)
