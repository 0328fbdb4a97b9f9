"""Log-probabilities of the tokens of prompts, which are read in one pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loopcoder.infer.request import Request, Token
from loopcoder.infer.sampling import as_token, logprobs, on_host


class PromptLogprobs:
    """Keeps what requests ask of each position of their prompts, and none of its logits."""

    def __init__(self, requests: Mapping[int, Request]):
        """
        Args:
            requests: By their places.
        """
        self._requests = {p: r for p, r in requests.items() if r.prompt_logprobs is not None}
        self._told = {place: [Token(r.ids[0])] for place, r in self._requests.items()}

    @property
    def places(self) -> frozenset[int]:
        """Of the prompts of which something is asked."""
        return frozenset(self._requests)

    def read(self, place: int, first: int, logits: Tensor) -> None:
        """Take the next logits of a prompt, from its position `first` on, [n, vocabulary] in fp32;
        for `Decoder.prefill`."""
        request = self._requests.get(place)
        if request is None or request.prompt_logprobs is None:
            return
        following = request.ids[first + 1 : first + 1 + len(logits)]  # none after the last one
        if not following:
            return
        ids = torch.tensor(following, device=logits.device)
        number = request.prompt_logprobs
        rows = on_host(*logprobs(logits[: len(following)], ids, number))
        self._told[place] += [
            as_token(i, row, number) for i, row in zip(following, rows, strict=True)
        ]

    def of(self, place: int) -> tuple[Token, ...]:
        """Return the tokens of a prompt; none if nothing is asked of it."""
        return tuple(self._told.get(place, ()))
