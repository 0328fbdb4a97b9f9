"""Weight gradients that go straight into the fp32 main gradient: one GEMM that adds to it.

Transformer Engine's layers do so by themselves. The head is megatron-core's own layer, which takes
an extension of apex for it (`fused_weight_gradient_mlp_cuda`) that PyPI does not have; `provide`
gives it the functions of this file, which make the same call as Transformer Engine's layers.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor


def provide() -> str:
    """Make megatron-core's layers able to fuse, and return whose kernel they take."""
    from megatron.core.tensor_parallel import layers

    if not layers._grad_accum_fusion_available:
        layers.fused_weight_gradient_mlp_cuda = sys.modules[__name__]
        layers._grad_accum_fusion_available = True
    ours = layers.fused_weight_gradient_mlp_cuda is sys.modules[__name__]
    return "Transformer Engine" if ours else "apex"


def wgrad_gemm_accum_fp32(x: Tensor, d_out: Tensor, main_grad: Tensor) -> None:
    """Add d_out^T x to main_grad in place.

    Args:
        x: input of the layer. [..., in]
        d_out: gradient of its output, in the type of x. [..., out]
        main_grad: in fp32, or the type of x. [out, in]
    """
    x, d_out = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    if not x.is_cuda:
        main_grad.add_(d_out.t().to(main_grad.dtype) @ x.to(main_grad.dtype))
        return
    from transformer_engine.pytorch.cpp_extensions import general_gemm

    with torch.no_grad():
        general_gemm(
            x,
            d_out,
            out_dtype=main_grad.dtype,
            layout="NT",
            out=main_grad,
            accumulate=True,
            grad=True,
        )


wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32
"""For a main gradient of 16 bits; the name that megatron-core calls it by."""
