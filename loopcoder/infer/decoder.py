"""Decoding of a looped model: prompts in one pass, then a token at a time in all loops at once.

Every loop's input of a token is known before the token runs: loop 0 reads its embedding E, loop r
a*E + b*carry, where the carry is what loop r-1 gave for the token before (plt.md section 4). So the
R rows of a token go through the layers as one batch, at the latency of one loop, and their outputs
are the next carry. Where loops read the same token's output (`shift=false`) they run one after the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from loopcoder.backends import detect
from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError
from loopcoder.infer import fused_layers
from loopcoder.infer.attention import decode_attention
from loopcoder.infer.cache import KV, Cache, later_loops
from loopcoder.infer.graphs import StepGraphs
from loopcoder.infer.layers import Rope, head, run_layers
from loopcoder.infer.prefill import Prefill, passes
from loopcoder.infer.split import WHOLE, Split
from loopcoder.infer.weights import ModelWeights
from loopcoder.ops import kernels as kernel_operators

ReadLogits = Callable[[int, int, Tensor], None]
"""Gets place, position of the first, and logits [n, vocabulary] in fp32 of some tokens of a
prompt."""
_LOGITS_BYTES = 1 << 26
"""Of a prompt's logits at a time."""


class Decoder:
    """One rank's part of a model, and places for sequences: 0..num_places-1, each for one.

    With several ranks all must make the same calls; `infer/leading.py` sees to it.
    """

    def __init__(
        self,
        weights: ModelWeights,
        model: ModelConfig,
        vocabulary: int,
        *,
        num_places: int,
        max_length: int,
        split: Split = WHOLE,
        cuda_graphs: Literal["auto", "off"] = "auto",
        kernels: fused_layers.Kernels = "auto",
    ):
        """
        Args:
            model: With the `rope_theta` that was trained last.
            vocabulary: Tokens that there are.
            num_places: Sequences at a time.
            max_length: Tokens of a sequence, the prompt's included.
            cuda_graphs: Whether steps on a GPU are launched as graphs; auto: they are.
            kernels: Whether steps run on the CUDA extension (kernels/decode_*); auto: where it is
                built, was tested and can run the model.

        Raises:
            InputError: the extension was asked for and cannot be used.
        """
        self.model, self.vocabulary = model, vocabulary
        self.num_places, self.max_length = num_places, max_length
        self.lengths = [0] * num_places
        """Tokens in each place; 0: it is empty."""
        self._weights, self.split = weights, split
        self.device = weights.embedding.device
        self._cache = Cache(
            model, num_places, max_length, self.device, weights.embedding.dtype, split
        )
        dtype = weights.embedding.dtype
        self._is_fused = fused_layers.choose(kernels, model, self.device, dtype, detect(), split)
        if self._is_fused:
            kernel_operators.load()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the kernels do not wait for weights
        is_graph = cuda_graphs == "auto" and self.device.type == "cuda"
        self._graphs = StepGraphs(self._cache, sees_all=self._is_fused) if is_graph else None
        # no method of this object in it, as a circle would keep the cache beside the next one
        self._places_of = lru_cache(maxsize=16)(partial(_on_device, self.device))

    @torch.no_grad()
    def prefill(
        self,
        prompts: Mapping[int, Sequence[int]],
        read: ReadLogits | None = None,
        wanted: Collection[int] | None = None,
    ) -> Tensor:
        """Empty some places, and run a prompt in each: together, loop after loop.

        Args:
            prompts: Token ids by place.
            read: Gets the logits of all of their tokens, in parts.
            wanted: Places whose prompts it gets; None: all.

        Returns:
            logits in fp32 after the last token of each prompt. [prompts, vocabulary]

        Raises:
            InputError: a prompt is empty, too long, or has ids that are no tokens.
        """
        self.check_prompts(prompts)
        for place in prompts:
            self.lengths[place] = 0
        parts = passes(prompts, self.max_length)
        told = prompts if wanted is None else wanted
        return torch.cat([self._prefill(part, read, told) for part in parts])

    def _prefill(
        self,
        prompts: Mapping[int, Sequence[int]],
        read: ReadLogits | None,
        wanted: Collection[int],
    ) -> Tensor:
        run = Prefill(self._weights, self.model, self.split, self._cache, prompts)
        normed = run.through_all_loops()
        if read is not None:
            rows = max(1, _LOGITS_BYTES // (4 * self.vocabulary))
            for place, (begin, end) in run.spans.items():
                for first in range(begin, end, rows) if place in wanted else ():
                    logits = self._logits(normed[first : min(end, first + rows)])
                    read(place, first - begin, logits)
        lengths = [len(ids) for ids in prompts.values()]
        self._cache.start(list(prompts), lengths)
        for place, length in zip(prompts, lengths, strict=True):
            self.lengths[place] = length
        return self._logits(normed[run.last])

    @torch.no_grad()
    def step(self, places: Sequence[int], tokens: Tensor | Sequence[int]) -> Tensor:
        """Append a token to each of some places; on a GPU nothing waits for it.

        Args:
            places: Different ones, which prompts have filled.
            tokens: Ids; on any device. [B]

        Returns:
            logits in fp32 of the token after it. [B, vocabulary]

        Raises:
            ValueError: a place is empty, full, or named twice.
        """
        self.check_places(places, len(tokens))
        seen = 1 + max(self.lengths[place] for place in places)
        arguments = self._places_of(tuple(places)), self.on_device(tokens), seen
        logits = self._graphs(self._run, *arguments) if self._graphs else self._run(*arguments)
        for place in places:
            self.lengths[place] += 1
        return logits

    def _run(self, places: Tensor, tokens: Tensor, seen: int) -> Tensor:
        """Do all that a step does on the device.

        Args:
            places, tokens: [B]
            seen: Tokens that attention looks at; at least those of the longest of the places.
        """
        cache, model = self._cache, self.model
        positions = cache.lengths[places]
        rope = Rope.at(positions, model)
        embedding = self._weights.embedding[tokens]

        def run(hidden: Tensor, loops: range) -> tuple[Tensor, Tensor]:
            """Run some loops at once, [B, loops, D]; return what the next reads, and the head."""
            of_layers = self._weights, model, self.split
            if self._is_fused:
                raw, normed = fused_layers.run_layers(
                    *of_layers, cache, hidden, rope, places, positions
                )
            else:
                attend = partial(self._attend, places, positions, seen, loops)
                gated = len(later_loops(model, loops))
                raw, normed = run_layers(*of_layers, hidden, rope, gated, attend)
            return (normed if model.norm_per_loop else raw), normed

        if model.shift:
            later = model.a * embedding[:, None] + model.b * cache.carry[places]
            out, normed = run(torch.cat([embedding[:, None], later], 1), range(model.num_loops))
            cache.carry[places] = out[:, :-1]
        else:
            out, normed = run(embedding[:, None], range(1))
            for loop in range(1, model.num_loops):
                hidden = model.a * embedding[:, None] + model.b * out
                out, normed = run(hidden, range(loop, loop + 1))
        cache.lengths[places] = positions + 1
        return self._logits(normed[:, -1])

    def _attend(
        self,
        places: Tensor,
        positions: Tensor,
        seen: int,
        loops: range,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor | None,
    ) -> Tensor:
        self._cache.append(layer, loops, places, positions, k, v)
        lengths = positions + 1

        def kept(loop: int) -> KV:
            k, v = self._cache.kept(layer, loop)
            return k[:, :, :seen], v[:, :, :seen]

        if self.model.kv_sharing == "own":
            rows = [
                decode_attention(q[:, i : i + 1], *kept(loop), None, None, places, lengths, None)
                for i, loop in enumerate(loops)
            ]
            return torch.cat(rows, 1)
        later = later_loops(self.model, loops)
        ring_k, ring_v = self._cache.rings(layer, later) if later else (None, None)
        return decode_attention(q, *kept(0), ring_k, ring_v, places, lengths, gates)

    def _logits(self, normed: Tensor) -> Tensor:
        """Apply the head. [N, D] -> [N, vocabulary] in fp32"""
        project = fused_layers.head if self._is_fused else head
        return self.split.join(project(normed, self._weights.head))[:, : self.vocabulary]

    def on_device(self, numbers: Tensor | Sequence[int]) -> Tensor:
        """Return ids or places where the model is, without waiting for it."""
        return _on_device(self.device, numbers)

    def check_prompts(self, prompts: Mapping[int, Sequence[int]]) -> None:
        """Raise what `prefill` raises."""
        if not prompts:
            raise ValueError("no prompt")
        for place, ids in prompts.items():
            if not 0 <= place < self.num_places:
                raise ValueError(f"place {place} of {self.num_places}")
            if not ids:
                why = "what comes next depends on a token at least"
                raise InputError.of("a prompt of no tokens", why, "a token that begins a document")
            if len(ids) > self.max_length:
                raise InputError.of(
                    f"a prompt of {len(ids)} tokens",
                    f"a sequence has room for {self.max_length}",
                    "a shorter prompt, or a larger max_length",
                )
            if wrong := [i for i in ids if not 0 <= i < self.vocabulary]:
                why = f"there are the ids 0 to {self.vocabulary - 1}"
                raise InputError.of(f"token id {wrong[0]}", why, "ids of the model's tokenizer")

    def check_places(self, places: Sequence[int], tokens: int) -> None:
        """Raise what `step` raises."""
        if len(set(places)) != len(places) or len(places) != tokens or not places:
            raise ValueError(f"{tokens} tokens for the places {list(places)}")
        for place in places:
            if not 0 < self.lengths[place] < self.max_length:
                raise ValueError(f"place {place} has {self.lengths[place]} of {self.max_length}")


def _on_device(device: torch.device, numbers: Tensor | Sequence[int]) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)
