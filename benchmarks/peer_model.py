"""The model of `peer.py`: a plain PyTorch Llama, written as one would write it without loopcoder.

Weights have the names of the released model's, without `model.` in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)

from loopcoder.config.schema import ModelConfig
from loopcoder.data.batch import Batch

Mask = Tensor | BlockMask | None

# Uncompiled, both write a whole S x S matrix.
_compiled_attention: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
_compiled_block_mask: Callable[..., Any] = torch.compile(create_block_mask, dynamic=False)


class Peer(nn.Module):
    """A Llama: pre-norm RMSNorm, grouped-query attention with RoPE, SwiGLU, an untied head."""

    def __init__(self, model: ModelConfig, vocab_size: int):
        super().__init__()
        width = model.hidden_size
        self.head_dim = model.head_dim
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.num_layers))
        self.norm = nn.RMSNorm(width, model.norm_eps)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor, angles: Tensor, mask: Mask) -> Tensor:
        """Return the loss of every token in fp32, unmasked. [B, S]

        Args:
            tokens, labels: [B, S]
            angles: from `rotary_angles`. [B, 1, S, head_dim/2]
            mask: from `visible_keys`.
        """
        hidden = self.embed_tokens(tokens)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, mask)
        logits = self.lm_head(self.norm(hidden)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view_as(labels)


class Layer(nn.Module):
    def __init__(self, model: ModelConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(model.hidden_size, model.norm_eps)
        self.self_attn = Attention(model)
        self.post_attention_layernorm = nn.RMSNorm(model.hidden_size, model.norm_eps)
        self.mlp = SwiGLU(model.hidden_size, model.ffn_hidden_size)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Attention(nn.Module):
    def __init__(self, model: ModelConfig):
        super().__init__()
        self.head_dim = model.head_dim
        heads, kv_heads = model.num_attention_heads, model.num_kv_heads
        self.q_proj = nn.Linear(model.hidden_size, heads * model.head_dim, bias=False)
        self.k_proj = nn.Linear(model.hidden_size, kv_heads * model.head_dim, bias=False)
        self.v_proj = nn.Linear(model.hidden_size, kv_heads * model.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * model.head_dim, model.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotary_angles(position_ids: Tensor, theta: float, head_dim: int) -> Tensor:
    """Return the angle of every position [B, S] and pair of values. [B, 1, S, head_dim/2]"""
    exponent = torch.arange(0, head_dim, 2, device=position_ids.device) / head_dim
    return position_ids[:, None, :, None] * theta**-exponent


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (first half, second half) of each head, in fp32. [B, heads, S, head_dim]"""
    x1, x2 = x.float().chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).type_as(x)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attend with grouped heads. [B, heads, S, head_dim]"""
    if isinstance(mask, BlockMask):
        out: Tensor = _compiled_attention(q, k, v, block_mask=mask, enable_gqa=True)
        return out
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )


def visible_keys(batch: Batch) -> Mask:
    """Return which keys a query may see: those of its document up to itself.

    Blocks for FlexAttention on a GPU, elsewhere [B, 1, S, S]; None where rows are one document and
    a plain causal mask is the same.
    """
    if batch.cu_seqlens is None:
        return None
    start = batch.document_start

    def sees(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= start[b, query])

    rows, length = start.shape
    if not start.is_cuda:
        index = torch.arange(length)
        return ((index <= index[:, None]) & (index >= start[:, :, None]))[:, None]
    mask: Mask = _compiled_block_mask(sees, rows, None, length, length, device=start.device)
    return mask


def initialise(peer: Peer, seed: int, init_std: float) -> None:
    """Draw matrices from normal(0, init_std), those that write to the residual stream smaller by
    1/sqrt(2L); norms are 1."""
    device = peer.lm_head.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in peer.named_parameters():
        if parameter.dim() > 1:
            writes = "o_proj" in name or "down_proj" in name
            std = init_std / (math.sqrt(2 * len(peer.layers)) if writes else 1.0)
            nn.init.normal_(parameter, 0.0, std, generator)
