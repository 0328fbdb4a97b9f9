"""A Parallel Loop Transformer (LoopCoder-V2, arXiv 2606.18023) for transformers 4.57 and 5.

The layers run `plt_num_loops` times with the same weights. Each later loop reads

    plt_emb_scale * embedding[t] + plt_hidden_scale * output of the loop before at t-1,

attends to the keys and values of loop 0 and, in a window, to its own, and mixes both by a gate. So
all loops of one token are known at once, and decoding takes them as rows of one batch.

Batches are padded on the left. Several documents in one row are told apart by `position_ids` that
start again at 0. Cache: keys and values of loop 0, a ring of window + 1 for each later loop, and
the outputs of the loops at the last token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_iquestpltcoder import IQuestPLTCoderConfig

# transformers 5.24 renamed past_key_values to cache, in outputs too
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
_PAD = -1
"""Document of padding."""


class PLTCache(Cache):
    """What decoding keeps. Every tensor has the rows of the batch in its first dimension."""

    is_compileable = False

    def __init__(self, config: IQuestPLTCoderConfig):
        # no layers of the library: what they take differs between its versions
        super().__init__(layers=[])
        n, loops = config.num_hidden_layers, config.plt_num_loops
        self.keep = config.plt_window_size[0] + 1
        self.own_kv = config.plt_kv_sharing == "own"
        wide = loops if self.own_kv else 1
        self.full: list[list[tuple[Tensor, Tensor] | None]] = [[None] * n for _ in range(wide)]
        """By loop and layer: keys and values of all tokens, each [B, kv_heads, T, head_dim]."""
        self.rings: list[tuple[Tensor, Tensor] | None] = [None] * n
        """By layer: keys and values of later loops, each [B, R-1, kv_heads, window+1, head_dim]."""
        self.carry: Tensor | None = None
        """Output of every loop but the last at the last token. [B, R-1, D]"""
        self.documents: Tensor | None = None
        """Which document a token is of. [B, T]"""
        self.position: Tensor | None = None
        """Of the last token in its document; -1 where there was padding only. [B, 1]"""

    def append(self, loop: int, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens to the keys and values of a loop; return all of them."""
        before = self.full[loop][layer]
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        self.full[loop][layer] = k, v
        return k, v

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.documents is None else self.documents.shape[1]

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    get_max_length = get_max_cache_shape

    @property
    def is_initialized(self) -> bool:
        return self.documents is not None

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.rings)

    is_linear = is_sliding

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda x: x[indices.to(x.device)])

    def crop(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("what the loops carry to the next token cannot be taken back")

    def reset(self) -> None:
        raise NotImplementedError("start without a cache instead")

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        def both(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
            return None if pair is None else (change(pair[0]), change(pair[1]))

        self.full = [[both(pair) for pair in loop] for loop in self.full]
        self.rings = [both(pair) for pair in self.rings]
        for name in ("carry", "documents", "position"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else change(value))


@dataclass
class Tokens:
    """What all layers and loops need to know of the tokens of one call."""

    cos: Tensor
    """Of the rotary embedding, in fp32. [B, 1, S, head_dim]"""
    sin: Tensor
    full: Tensor
    """Which keys of loop 0 a token sees. [B, 1, S, T] bool"""
    window: Tensor
    """Which of its own keys a token of a later loop sees: those of the ring, then the new ones.
    [B, 1, S, ring + S] bool"""
    follows: Tensor
    """Whether the column before is the token before, of the same document. [B, S, 1] bool"""


def _tokens(
    config: IQuestPLTCoderConfig,
    batch: int,
    length: int,
    device: torch.device,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: PLTCache | None,
) -> Tokens:
    """Find documents, positions and masks of new tokens, and note them in the cache."""
    past = cache.get_seq_length() if cache is not None else 0
    if attention_mask is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=device)
    elif attention_mask.dim() != 2 or attention_mask.shape[1] not in (length, past + length):
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, for {length} tokens "
            f"after {past} in the cache: it is [batch, tokens], of the new ones or of all, 1 for "
            "tokens and 0 for padding; documents are told apart by position_ids"
        )
    else:
        valid = attention_mask[:, -length:].to(device).bool()
    before = cache.documents if cache is not None else None
    seen = valid if before is None else torch.cat([before != _PAD, valid], 1)
    if attention_mask is not None or before is not None:
        goes_on = seen[:, 1:] & ~seen[:, :-1] & (seen.long().cumsum(1)[:, :-1] > 0)
        if goes_on.any():
            raise ValueError("attention_mask has padding between the tokens of a row")
    if position_ids is None:
        last = -1 if cache is None or cache.position is None else cache.position
        positions = last + valid.long().cumsum(1)
    else:
        positions = position_ids[:, -length:].to(device).expand(batch, length)
        positions = positions.masked_fill(seen.long().cumsum(1)[:, -length:] == 0, -1)
    position_ids = positions.clamp(min=0)
    starts = valid & (position_ids == 0)
    last_document = 0 if before is None else before.amax(1, keepdim=True).clamp(min=0)
    new = (last_document + starts.long().cumsum(1)).masked_fill(~valid, _PAD)
    if before is None:
        documents, previous = new, F.pad(new, (1, -1), value=_PAD - 1)
    else:
        documents = torch.cat([before, new], 1)
        previous = documents[:, past - 1 : -1]
    if cache is not None:
        cache.documents, cache.position = documents, positions[:, -1:]
    column = torch.arange(past + length, device=device)
    distance = column[past:, None] - column
    full = (new[:, :, None] == documents[:, None, :]) & (distance >= 0)
    ring = min(past, config.plt_window_size[0] + 1)
    window = (full & (distance <= config.plt_window_size[0]))[:, :, past - ring :]
    pairs = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    frequency = 1.0 / config.rope_theta**pairs
    angle = position_ids[:, None, :, None].float() * torch.cat([frequency, frequency])
    follows = (new == previous)[..., None]
    return Tokens(angle.cos(), angle.sin(), full[:, None], window[:, None], follows)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding in fp32. x: [B, heads, S, head_dim]"""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = y.chunk(2, -1)
    return (y * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def _attend(kind: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend with grouped heads.

    Args:
        kind: `sdpa` or `eager`.
        q: [B, heads, S, head_dim]
        k, v: [B, kv_heads, T, head_dim]
        mask: [B, 1, S or 1, T] bool; with 1 all queries see the same keys.
    """
    batch, heads, length, width = q.shape
    share = heads // k.shape[1]
    if mask.shape[2] == 1:  # the queries of one K/V head as rows of one product: no copy of k and v
        q = q.reshape(batch, k.shape[1], share * length, width)
    else:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    if kind == "eager":
        scores = (q @ k.transpose(-1, -2)) * width**-0.5
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        exact = torch.promote_types(q.dtype, torch.float32)
        out = torch.softmax(scores, -1, dtype=exact).to(q.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.reshape(batch, heads, length, width)


class IQuestPLTCoderRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class IQuestPLTCoderGate(nn.Module):
    """How much a later loop takes of its attention to loop 0, by query head."""

    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__()
        heads = config.num_attention_heads
        if config.plt_gate_use_hidden_states:
            self.weight = nn.Parameter(torch.zeros(heads, config.hidden_size))
            self.gate_norm = IQuestPLTCoderRMSNorm(config.hidden_size, config.rms_norm_eps)
        else:
            self.weight = nn.Parameter(torch.zeros(heads, config.head_dim))
        self.bias = nn.Parameter(torch.zeros(heads))
        self.reads_hidden = config.plt_gate_use_hidden_states

    def forward(self, hidden: Tensor, query: Tensor) -> Tensor:
        """Map the residual stream [B, S, D], or queries [B, heads, S, head_dim] after RoPE, to
        [B, heads, S, 1]."""
        if self.reads_hidden:
            logits = F.linear(self.gate_norm(hidden), self.weight, self.bias).transpose(1, 2)
        else:
            logits = torch.einsum("bhsd,hd->bhs", query, self.weight) + self.bias[:, None]
        exact = torch.promote_types(logits.dtype, torch.float32)
        return torch.sigmoid(logits.to(exact))[..., None]


class IQuestPLTCoderAttention(nn.Module):
    def __init__(self, config: IQuestPLTCoderConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        d, width = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(d, heads * width, bias=False)
        self.k_proj = nn.Linear(d, kv_heads * width, bias=False)
        self.v_proj = nn.Linear(d, kv_heads * width, bias=False)
        self.o_proj = nn.Linear(heads * width, d, bias=False)
        if config.has_gates:
            self.plt_gate = IQuestPLTCoderGate(config)

    def forward(
        self,
        hidden: Tensor,
        normed: Tensor,
        tokens: Tokens,
        loop: int,
        shared: tuple[Tensor, Tensor] | None,
        cache: PLTCache | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Attend in one loop; return the output, the keys and values that later loops share, and
        those that this loop's window may see next."""
        q, k, v = self._project(normed, tokens)
        kind = self.config._attn_implementation
        if loop == 0 or self.config.plt_kv_sharing == "own":
            shared = (k, v) if cache is None else cache.append(loop, self.layer, k, v)
            return self._merge(_attend(kind, q, *shared, tokens.full)), shared, (k, v)
        assert shared is not None
        ring = None if cache is None else cache.rings[self.layer]
        if ring is not None:
            k = torch.cat([ring[0][:, loop - 1], k], 2)
            v = torch.cat([ring[1][:, loop - 1], v], 2)
        own = _attend(kind, q, k, v, tokens.window)
        out = self._mix(hidden, q, _attend(kind, q, *shared, tokens.full), own)
        return self._merge(out), shared, (k, v)

    def decode(self, hidden: Tensor, normed: Tensor, tokens: Tokens, cache: PLTCache) -> Tensor:
        """Attend for one token in all loops at once. hidden, normed: [B, R, D]"""
        q, k, v = self._project(normed, tokens)
        kind, loops = self.config._attn_implementation, hidden.shape[1]
        if self.config.plt_kv_sharing == "own":
            rows = []
            for r in range(loops):
                row = slice(r, r + 1)
                kv = cache.append(r, self.layer, k[:, :, row], v[:, :, row])
                rows.append(_attend(kind, q[:, :, row], *kv, tokens.full))
            return self._merge(torch.cat(rows, 2))
        shared = cache.append(0, self.layer, k[:, :, :1], v[:, :, :1])
        out = _attend(kind, q, *shared, tokens.full)
        if loops == 1:
            return self._merge(out)
        # rows of later loops: [B, heads, R-1, head_dim] -> [B, R-1, heads, 1, head_dim]
        q_later, k_new, v_new = (x[:, :, 1:].transpose(1, 2).unsqueeze(3) for x in (q, k, v))
        ring = cache.rings[self.layer]
        assert ring is not None
        k_ring, v_ring = torch.cat([ring[0], k_new], 3), torch.cat([ring[1], v_new], 3)
        cache.rings[self.layer] = (
            k_ring[:, :, :, -cache.keep :],
            v_ring[:, :, :, -cache.keep :],
        )
        mask = tokens.window.repeat_interleave(loops - 1, 0)
        q_later, k_ring, v_ring = (x.flatten(0, 1) for x in (q_later, k_ring, v_ring))
        own = _attend(kind, q_later, k_ring, v_ring, mask)
        own = own.unflatten(0, (-1, loops - 1)).squeeze(3).transpose(1, 2)
        mixed = self._mix(hidden[:, 1:], q[:, :, 1:], out[:, :, 1:], own)
        return self._merge(torch.cat([out[:, :, :1], mixed], 2))

    def _project(self, normed: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = normed.shape
        q, k, v = (
            project(normed).view(batch, length, -1, self.config.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return _rotate(q, tokens.cos, tokens.sin), _rotate(k, tokens.cos, tokens.sin), v

    def _mix(self, hidden: Tensor, query: Tensor, to_first: Tensor, to_own: Tensor) -> Tensor:
        gate = self.plt_gate(hidden, query)
        return (gate * to_first + (1 - gate) * to_own).to(to_first.dtype)

    def _merge(self, out: Tensor) -> Tensor:
        return self.o_proj(out.transpose(1, 2).flatten(2))


class IQuestPLTCoderMLP(nn.Module):
    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class IQuestPLTCoderDecoderLayer(nn.Module):
    def __init__(self, config: IQuestPLTCoderConfig, layer: int):
        super().__init__()
        self.input_layernorm = IQuestPLTCoderRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = IQuestPLTCoderAttention(config, layer)
        self.post_attention_layernorm = IQuestPLTCoderRMSNorm(
            config.hidden_size, config.rms_norm_eps
        )
        self.mlp = IQuestPLTCoderMLP(config)

    def forward(
        self,
        hidden: Tensor,
        tokens: Tokens,
        loop: int,
        shared: tuple[Tensor, Tensor] | None,
        cache: PLTCache | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        normed = self.input_layernorm(hidden)
        out, shared, own = self.self_attn(hidden, normed, tokens, loop, shared, cache)
        return self._feed_forward(hidden + out), shared, own

    def decode(self, hidden: Tensor, tokens: Tokens, cache: PLTCache) -> Tensor:
        """Run one token through the layer in all loops at once. [B, R, D]"""
        out = self.self_attn.decode(hidden, self.input_layernorm(hidden), tokens, cache)
        return self._feed_forward(hidden + out)

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class IQuestPLTCoderPreTrainedModel(PreTrainedModel):
    config_class = IQuestPLTCoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _is_stateful = True
    """Assisted decoding would have to take tokens back, which the carry cannot."""

    def _refuse_several_devices(self) -> None:
        places = {str(place) for place in (getattr(self, "hf_device_map", None) or {}).values()}
        if len(places) > 1:
            raise ValueError(
                f"device_map puts parts on {', '.join(sorted(places))}: each loop passes all "
                "layers and reads what the loops before it kept there; device_map={'': 0}"
            )

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
        elif isinstance(module, IQuestPLTCoderGate):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, IQuestPLTCoderRMSNorm):
            nn.init.ones_(module.weight)


class IQuestPLTCoderModel(IQuestPLTCoderPreTrainedModel):
    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers: Any = nn.ModuleList(
            IQuestPLTCoderDecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = IQuestPLTCoderRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run all loops.

        `hidden_states` of the output are those that the head reads after each loop.
        """
        self._refuse_several_devices()
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        if output_attentions:
            raise ValueError("output_attentions: a token has several attentions in each layer")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        embedding = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        kept = self._cache(cache if cache is not None else past_key_values, use_cache)
        batch, length, _ = embedding.shape
        tokens = _tokens(
            self.config, batch, length, embedding.device, attention_mask, position_ids, kept
        )
        if length == 1 and kept is not None and kept.carry is not None and self.config.plt_shift:
            states = self._decode(embedding, tokens, kept)
        else:
            states = self._loops(embedding, tokens, kept)
        out = BaseModelOutputWithPast(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
            **{_CACHE: kept},
        )
        return out if return_dict is None or return_dict else out.to_tuple()

    def _cache(self, given: Cache | None, use_cache: bool | None) -> PLTCache | None:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if not use_cache or (self.training and self.gradient_checkpointing):
            if given is not None and given.get_seq_length() > 0:
                raise ValueError("a cache with tokens is given, and use_cache is false")
            return None
        if isinstance(given, PLTCache):
            return given
        if given is not None and given.get_seq_length() > 0:
            raise ValueError(f"a {type(given).__name__} cannot hold what the loops carry: PLTCache")
        return PLTCache(self.config)

    def _loops(self, embedding: Tensor, tokens: Tokens, cache: PLTCache | None) -> list[Tensor]:
        """Run the loops one after the other; return what the head reads after each."""
        config, recompute = self.config, self.gradient_checkpointing and self.training
        shared: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        rings: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.layers]
        carried, states, hidden = [], [], embedding
        for loop in range(config.plt_num_loops):
            if loop > 0:
                before = None if cache is None or cache.carry is None else cache.carry[:, loop - 1]
                carried.append(hidden[:, -1])
                hidden = self._mix(embedding, self._shifted(hidden, before, tokens))
            for i, layer in enumerate(self.layers):
                inputs = (hidden, tokens, loop, shared[i], cache)
                hidden, shared[i], own = (
                    checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
                )
                if cache is not None and config.has_gates and loop > 0:
                    rings[i].append((own[0][:, :, -cache.keep :], own[1][:, :, -cache.keep :]))
            normed = self.norm(hidden)
            states.append(normed)
            hidden = normed if config.plt_normalize_per_loop else hidden
        if cache is not None:
            for i, ring in enumerate(rings):
                if ring:
                    k, v = zip(*ring, strict=True)
                    cache.rings[i] = torch.stack(k, 1), torch.stack(v, 1)
            cache.carry = torch.stack(carried, 1) if carried else embedding[:, :0]
        return states

    def _decode(self, embedding: Tensor, tokens: Tokens, cache: PLTCache) -> list[Tensor]:
        """Run one token through all loops at once; return what the head reads after each.

        Every loop reads what the loop before gave for the token before, which is in the carry.
        """
        config = self.config
        assert cache.carry is not None
        shifted = cache.carry.masked_fill(~tokens.follows, 0)
        hidden = torch.cat([embedding, self._mix(embedding, shifted)], 1)
        for layer in self.layers:
            hidden = layer.decode(hidden, tokens, cache)
        normed = self.norm(hidden)
        cache.carry = (normed if config.plt_normalize_per_loop else hidden)[:, :-1]
        return list(normed.split(1, 1))

    def _shifted(self, hidden: Tensor, before: Tensor | None, tokens: Tokens) -> Tensor:
        """Return each token's predecessor, zero where a document begins. [B, S, D]"""
        if not self.config.plt_shift:
            return hidden
        first = torch.zeros_like(hidden[:, 0]) if before is None else before
        shifted = torch.cat([first[:, None], hidden[:, :-1]], 1)
        return shifted.masked_fill(~tokens.follows, 0)

    def _mix(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        a, b = self.config.plt_emb_scale, self.config.plt_hidden_scale
        return (1.0 if a is None else a) * embedding + (1.0 if b is None else b) * hidden


class IQuestPLTCoderForCausalLM(IQuestPLTCoderPreTrainedModel, GenerationMixin):
    # a dict for transformers 5, of which 4.57 reads the keys
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: IQuestPLTCoderConfig):
        super().__init__(config)
        self.model = IQuestPLTCoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: Any) -> None:
        self.lm_head = value

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `generate` leaves the cache to `forward`

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        cache = cache if cache is not None else past_key_values
        past = 0 if cache is None else cache.get_seq_length()
        # With inputs_embeds, input_ids has the generated tokens only. Where transformers 5 does
        # not say how many tokens are new, the mask does; one of all ones arrives as None there.
        new = kwargs.get("next_sequence_length")
        if new is None:
            new = (input_ids if attention_mask is None else attention_mask).shape[1] - past
        out: dict[str, Any] = {
            "input_ids": input_ids[:, -new:].contiguous(),
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            _CACHE: cache,
        }
        if inputs_embeds is not None and past == 0:
            out["input_ids"], out["inputs_embeds"] = None, inputs_embeds
        if past == 0 and position_ids is not None and position_ids.shape[1] == new:
            out["position_ids"] = position_ids
        for name in ("logits_to_keep", "output_hidden_states", "output_attentions", "return_dict"):
            if name in kwargs:
                out[name] = kwargs[name]
        return out

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Any:
        self._refuse_several_devices()
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache if cache is not None else past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
        )
        hidden = out.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])  # with 0 all of them
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        result = CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=out.hidden_states, **{_CACHE: out.get(_CACHE)}
        )
        return result if return_dict is None or return_dict else result.to_tuple()


__all__ = [
    "IQuestPLTCoderForCausalLM",
    "IQuestPLTCoderModel",
    "IQuestPLTCoderPreTrainedModel",
    "PLTCache",
]
