"""Whether weights, cache and what passes through the layers fit into memory."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable

import torch

from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError, counted
from loopcoder.infer.attention import step_bytes
from loopcoder.infer.cache import cache_bytes
from loopcoder.infer.prefill import pass_bytes
from loopcoder.infer.split import Split
from loopcoder.storage.files import in_words


def check_fits(
    model: ModelConfig,
    num_places: int,
    max_length: int,
    dtype: torch.dtype,
    split: Split,
    weights: int,
    free: int,
    *,
    is_fused: bool,
) -> None:
    """Refuse what cannot be held.

    Args:
        weights: Bytes of the weights that are still to be loaded; 0: they are there.
        free: Bytes of memory that there are for all of it.
        is_fused: Steps run on the CUDA kernels, which read the cache where it lies.

    Raises:
        InputError: with the arithmetic, or `max_length` is more than the model is meant for.
    """
    if not 1 <= max_length <= model.max_position_embeddings:
        raise InputError.of(
            f"max_length={max_length}, model.max_position_embeddings="
            f"{model.max_position_embeddings}",
            "the model knows positions up to that",
            f"max_length={model.max_position_embeddings} or less",
        )
    if num_places < 1:
        why = "each sequence that is generated has a place in the cache"
        raise InputError.of(f"num_places={num_places}", why, "num_places=1")

    def parts(places: int, length: int) -> tuple[int, int, int]:
        cache = cache_bytes(model, places, length, dtype, split)
        work = pass_bytes(model, length, dtype, split)
        if not is_fused:
            work = max(work, step_bytes(model, places, length, dtype, split))
        return weights, cache, work

    def fits(places: int, length: int) -> bool:
        return sum(parts(places, length)) <= free

    if fits(num_places, max_length):
        return
    held, cache, work = map(in_words, parts(num_places, max_length))
    raise InputError.of(
        f"weights of {held}, a cache of {cache} ({counted(num_places, 'place')} of "
        f"{counted(max_length, 'token')}) and {work} for prompts and steps, in {in_words(free)}",
        f"they need {in_words(sum(parts(num_places, max_length)))}",
        _fix(fits, num_places, max_length),
    )


def _fix(fits: Callable[[int, int], bool], num_places: int, max_length: int) -> str:
    numbers = range(1, num_places)
    places = bisect(numbers, False, key=lambda n: not fits(n, max_length))
    lengths = [n for n in (2**i for i in range(6, 24)) if n < max_length]
    shorter = [n for n in lengths if fits(num_places, n)]
    if not (places or shorter):
        return "more GPUs (parallel.tp), precision=bf16, or a smaller model"
    fixes = [f"num_places={places}"] if places else []
    return " or ".join([*fixes, *([f"max_length={shorter[-1]}"] if shorter else [])])
