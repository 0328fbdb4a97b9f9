"""Prompts through all loops, one loop after the other; they fill their places in the cache.

All tokens of all prompts go through the linear layers as one row; attention is by prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.infer.attention import causal, windowed
from loopcoder.infer.cache import Cache, later_loops
from loopcoder.infer.layers import ROWS, Rope, run_layers
from loopcoder.infer.split import Split
from loopcoder.infer.weights import ModelWeights
from loopcoder.ops.gated_window import gated_mixture
from loopcoder.ops.loop_input import loop_input

PASS_TOKENS = 8192
"""Of several prompts that go through the layers together; one alone may be longer."""


def passes(
    prompts: Mapping[int, Sequence[int]], max_length: int
) -> Iterator[dict[int, Sequence[int]]]:
    """Part prompts into those that go through the layers together, in their order."""
    part: dict[int, Sequence[int]] = {}
    for place, ids in prompts.items():
        if part and sum(map(len, part.values())) + len(ids) > max(PASS_TOKENS, max_length):
            yield part
            part = {}
        part[place] = ids
    yield part


def pass_bytes(model: ModelConfig, max_length: int, dtype: torch.dtype, split: Split) -> int:
    """Return the memory that a pass takes at most besides weights and cache: eight states of every
    token; its query, key and value before and after RoPE, and attention twice; the angles; and the
    inside of the MLP of some tokens at a time."""
    tokens, width = max(PASS_TOKENS, max_length), dtype.itemsize
    query = model.num_attention_heads // split.size * model.head_dim
    key = model.num_kv_heads // split.size * model.head_dim
    of_a_token = (8 * model.hidden_size + 4 * query + 3 * key) * width + 16 * model.head_dim
    inner = 4 * model.ffn_hidden_size // split.size * width
    return tokens * of_a_token + min(tokens, ROWS) * inner


class Prefill:
    """Some prompts, end to end; T is the number of all of their tokens."""

    def __init__(
        self,
        weights: ModelWeights,
        model: ModelConfig,
        split: Split,
        cache: Cache,
        prompts: Mapping[int, Sequence[int]],
    ):
        """
        Args:
            prompts: Token ids by place in the cache.
        """
        self.weights, self.model, self.split, self.cache = weights, model, split, cache
        self.spans: dict[int, tuple[int, int]] = {}
        """By place: where its prompt begins and ends among all tokens."""
        device, end = weights.embedding.device, 0
        for place, prompt in prompts.items():
            self.spans[place] = end, end + len(prompt)
            end += len(prompt)
        self.last = torch.tensor([end - 1 for _, end in self.spans.values()], device=device)
        """Index of the last token of each prompt. [prompts]"""
        ids = torch.tensor(list(chain.from_iterable(prompts.values())), device=device)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts.values()]).to(device)
        self._rope, self._is_first = Rope.at(positions, model), positions[:, None] == 0
        self._embedding = weights.embedding[ids][:, None]

    def through_all_loops(self) -> Tensor:
        """Run all loops, and keep what later tokens read; return the last loop's output after the
        final norm. [T, D]"""
        model = self.model
        places = torch.tensor(list(self.spans), device=self._embedding.device)
        hidden, normed = self._run(0, self._embedding)
        for loop in range(1, model.num_loops):
            if model.shift:
                self.cache.carry[places, loop - 1] = hidden[self.last, 0]
            hidden, normed = self._run(loop, self._next_input(hidden))
        return normed[:, 0]

    def _run(self, loop: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run one loop; return what the next one reads, and what the head would. [T, 1, D]"""
        gated = len(later_loops(self.model, range(loop, loop + 1)))
        attend = partial(self._attend, loop)
        raw, normed = run_layers(
            self.weights, self.model, self.split, hidden, self._rope, gated, attend
        )
        return (normed if self.model.norm_per_loop else raw), normed

    def _next_input(self, hidden: Tensor) -> Tensor:
        a, b = self.model.a, self.model.b
        if not self.model.shift:
            return a * self._embedding + b * hidden
        return loop_input(self._embedding, hidden, None, self._is_first, a, b)

    def _attend(
        self, loop: int, layer: int, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None
    ) -> Tensor:
        """Attend in one loop. [T, 1, heads, head_dim]"""
        out = torch.empty_like(q)
        for place, (begin, end) in self.spans.items():
            mine = slice(begin, end)
            self.cache.fill(layer, loop, place, k[mine, 0], v[mine, 0])
            shared = (
                x[place, :, : end - begin].transpose(0, 1)[:, None]
                for x in self.cache.kept(layer, loop)
            )
            out[mine] = causal(q[mine], *shared)
            if gates is not None:
                for some, own in windowed(q[mine], k[mine], v[mine], self.model.window):
                    mixed = gated_mixture(gates[mine][some], out[mine][some], own)
                    out[mine][some] = mixed
        return out
