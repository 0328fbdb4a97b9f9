"""Rows of embedding and head: the tokenizer's size, padded to one multiple in every layout."""

from __future__ import annotations

from loopcoder.config.schema import VOCAB_MULTIPLE, ModelConfig
from loopcoder.errors import InputError


def padded_vocabulary(model: ModelConfig, tokens: int, tokenizer: object) -> int:
    """Return the rows of embedding and head.

    Args:
        model: Its `vocab_size` is taken where it is given.
        tokens: Highest id of the tokenizer + 1.
        tokenizer: What the message calls it.

    Raises:
        InputError: the tokenizer has ids beyond the rows that the config gives.
    """
    wanted = -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if model.vocab_size is not None and model.vocab_size < tokens:
        raise InputError.of(
            f"model.vocab_size={model.vocab_size}, {tokenizer} has {tokens} tokens",
            "ids beyond the embedding have no row",
            f"model.vocab_size={wanted}, or model.vocab_size=null",
        )
    return model.vocab_size or wanted
