"""A decoder without a model, and a tokenizer of bytes and some merges, for tests of what is around
a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tests.configs import small_model

END, MARKER, BLANKS = "<|endoftext|>", "<|mark|>", "      "


def tokenizer_of(texts: Sequence[str], size: int = 330) -> Tokenizer:
    """Train a byte-level BPE with two special tokens and one added token that is none."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (END, MARKER)])
    tokenizer.add_tokens([AddedToken(BLANKS)])
    return tokenizer


class StandIn:
    """Logits that follow from all tokens before them, and from nothing else."""

    def __init__(self, vocabulary: int, num_places: int = 3, max_length: int = 64, seed: int = 0):
        self.vocabulary, self.num_places, self.max_length = vocabulary, num_places, max_length
        self.model, self.lengths = small_model(), [0] * num_places
        self.passes: list[list[int]] = []
        """Lengths of the prompts of each pass."""
        self.wanted: list[set[int]] = []
        """Places of each pass whose logits are read."""
        self.steps: list[int] = []
        """Sequences of each step."""
        self.fails_at: int | None = None
        """Call that raises."""
        self.error: BaseException = RuntimeError("the device is lost")
        self._held: dict[int, list[int]] = {}
        self._seed = seed

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits of the token after `ids`, [vocabulary]."""
        digest = hashlib.sha256(f"{self._seed} {list(ids)}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return 3 * torch.randn(self.vocabulary, generator=generator)

    def prefill(
        self,
        prompts: Mapping[int, Sequence[int]],
        read: Callable[[int, int, Tensor], None] | None = None,
        wanted: Collection[int] | None = None,
    ) -> Tensor:
        self._called()
        self.wanted.append({*(prompts if wanted is None else wanted)} if read else set())
        self.passes.append([len(ids) for ids in prompts.values()])
        for place, ids in prompts.items():
            assert 0 <= place < self.num_places
            self._put(place, list(ids))
            for first in range(0, len(ids), 5) if place in self.wanted[-1] and read else ():
                ends = range(first + 1, min(first + 5, len(ids)) + 1)
                read(place, first, torch.stack([self.logits(ids[:end]) for end in ends]))
        return torch.stack([self.logits(ids) for ids in prompts.values()])

    def step(self, places: Sequence[int], tokens: Tensor | Sequence[int]) -> Tensor:
        self._called()
        assert len(set(places)) == len(places) == len(tokens) > 0
        self.steps.append(len(places))
        for place, token in zip(places, tokens, strict=True):
            self._put(place, [*self._held[place], int(token)])
        return torch.stack([self.logits(self._held[place]) for place in places])

    def _put(self, place: int, ids: list[int]) -> None:
        assert len(ids) <= self.max_length
        self._held[place], self.lengths[place] = ids, len(ids)

    def _called(self) -> None:
        if self.fails_at == len(self.passes) + len(self.steps):
            raise self.error
