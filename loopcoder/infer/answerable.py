"""Which requests can be answered at all: found before they wait for anything."""

from __future__ import annotations

import math
from collections.abc import Iterator

from loopcoder.errors import InputError, Problem, counted
from loopcoder.infer.request import Request, Sampling


def check_request(request: Request, vocabulary: int, max_length: int) -> None:
    """Refuse a request that can never be answered.

    Args:
        vocabulary: Tokens that the model has.
        max_length: Of a prompt and its answer together, in tokens.

    Raises:
        InputError: with all that is wrong.
    """
    found = list(_problems(request, vocabulary, max_length))
    if found:
        raise InputError(found)


def _problems(request: Request, vocabulary: int, max_length: int) -> Iterator[Problem]:
    ids, most = request.ids, request.max_tokens
    if not ids:
        yield Problem("the prompt has no tokens", "a token follows another one", "a prompt")
    wrong = next((i for i in ids if not 0 <= i < vocabulary), None)
    if wrong is not None:
        why = f"the model has the tokens 0 to {vocabulary - 1}"
        yield Problem(f"token id {wrong} in the prompt", why, "ids of the model's tokenizer")
    if most < 0:
        yield Problem(f"max_tokens={most}", "it is a number of tokens", "max_tokens=0 or more")
    elif len(ids) + most > max_length:
        fix = f"max_tokens={max_length - len(ids)}" if len(ids) < max_length else "a shorter prompt"
        yield Problem(
            f"the prompt has {counted(len(ids), 'token')}, and max_tokens={most}",
            f"both together may be {max_length:,}",
            fix,
        )
    for name in ("logprobs", "prompt_logprobs"):
        number = getattr(request, name)
        if number is not None and not 0 <= number <= vocabulary:
            why = f"so many most probable tokens are told, of {vocabulary:,}"
            yield Problem(f"{name}={number}", why, f"{name}=5")
    if "" in request.stop:
        yield Problem("an empty stop string", "every text has it", "leave it out")
    yield from _of_sampling(request.sampling)


def _of_sampling(s: Sampling) -> list[Problem]:
    limits = [
        ("temperature", s.temperature, 0 <= s.temperature < math.inf, "it is 0 or more", "0.8"),
        ("top_k", s.top_k, s.top_k >= 0, "it is a number of tokens, or 0 for all", "50"),
        ("top_p", s.top_p, 0 < s.top_p <= 1, "it is a probability above 0, at most 1", "0.95"),
        ("min_p", s.min_p, 0 <= s.min_p <= 1, "it is a share, from 0 to 1", "0.05"),
    ]
    return [
        Problem(f"{name}={value}", why, f"{name}={fix}")
        for name, value, is_right, why, fix in limits
        if not is_right
    ]
