"""Two models on the same tokens: where their logits and their weights differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from loopcoder.checkpoint.digest import tensor_digest
from loopcoder.errors import InputError
from loopcoder.hf.mapping import BY_TOKEN, plain_name

ROUNDING = 2.0**-23 * 256
"""Largest difference that fp32 may make, as a share of the largest logit: 256 of its steps. Two
orders of summation differ by some ten of them; weights in bf16, by 65,536."""


@dataclass(frozen=True)
class Side:
    """What one model makes of some tokens."""

    place: str
    num_loops: int
    logits: Tensor
    """After each loop, in fp32. [R, S, vocabulary]"""
    sums: dict[str, int]
    """The digest of every weight in fp32, by our name; rows that are no tokens left out."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of logits, each model's after one of its loops."""

    loop_idx: tuple[int, int]
    position: int
    token: int
    values: tuple[float, float]
    share: float
    """Of the largest logit."""

    @property
    def is_rounding(self) -> bool:
        return self.share <= ROUNDING


def side(
    place: str | Path, text: Sequence[int] | str, like: Side | None = None
) -> tuple[Side, list[int]]:
    """Load a model in fp32 and run it on a text or on tokens; return what it makes of them, and the
    tokens.

    Args:
        like: What it is compared with, whose tokens are those of a model without a tokenizer.

    Raises:
        InputError: there is no such model, or it has no tokenizer for a text.
    """
    from loopcoder.loaded import load

    run: Any = load(place, precision="fp32")
    tokens: list[int]
    if isinstance(text, str):
        if not run.has_tokenizer:
            raise InputError.of(
                f"{place} has no tokenizer, and is named first",
                "the tokens are those of the first model",
                f"name the other model first, or put the tokenizer.json of {place} into its folder",
            )
        tokens = run.tokenizer.encode(text, add_special_tokens=False).ids
    else:
        tokens = list(text)
    vocabulary = run.vocabulary
    if like is not None and not run.has_tokenizer:
        vocabulary = min(vocabulary, like.logits.shape[-1])
    logits = run.logits(tokens, every_loop=True)[..., :vocabulary]
    weights = {plain_name(name): x.detach() for name, x in run.model.named_parameters()}
    for name in BY_TOKEN:  # rows that pad are no tokens
        weights[name] = weights[name][:vocabulary]
    sums = {
        name: int(tensor_digest(name, x, [0] * x.ndim, list(x.shape)))
        for name, x in weights.items()
    }
    loops = run.config.model.num_loops
    return Side(str(place), loops, logits.reshape(loops, *logits.shape[-2:]), sums), tokens


def differing(a: Side, b: Side) -> list[str]:
    """Return the weights that differ, or that one model lacks, in the order of the model."""
    names = dict.fromkeys([*a.sums, *b.sums])
    return [name for name in names if a.sums.get(name) != b.sums.get(name)]


def compare(a: Side, b: Side) -> list[Difference]:
    """Compare the logits after each loop that both models have, and after the last of each.

    Raises:
        InputError: their vocabularies differ, or logits are not finite.
    """
    if a.logits.shape[-1] != b.logits.shape[-1]:
        raise InputError.of(
            f"{a.place} has {a.logits.shape[-1]} tokens, {b.place} {b.logits.shape[-1]}",
            "logits of other vocabularies cannot be compared",
            "two models with one tokenizer",
        )
    loops = [(loop_idx, loop_idx) for loop_idx in range(min(a.num_loops, b.num_loops))]
    last = a.num_loops - 1, b.num_loops - 1
    return [_after(a, b, pair) for pair in dict.fromkeys([*loops, last])]


def _after(a: Side, b: Side, loop_idx: tuple[int, int]) -> Difference:
    x, y = a.logits[loop_idx[0]], b.logits[loop_idx[1]]
    apart = (x - y).abs().nan_to_num(nan=float("inf"))
    at = int(apart.argmax())
    position, token = divmod(at, x.shape[-1])
    largest = max(float(x.abs().max()), float(y.abs().max()), 1e-30)
    values = float(x[position, token]), float(y[position, token])
    return Difference(loop_idx, position, token, values, float(apart.max()) / largest)
