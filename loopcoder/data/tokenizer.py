"""The tokenizer of a corpus or of weights: a text whole, and as many tokens as there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loopcoder.errors import InputError


def read_tokenizer(path: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json, which neither cuts nor fills texts,
    though the file may ask for it, as those saved after fine-tuning do.

    Raises:
        InputError: it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no class of its own
        why, fix = f"it cannot be read: {error}", "the tokenizer.json of the weights in its place"
        raise InputError.of(str(path), why, fix) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_of(tokenizer: Any, rows: int | None) -> int:
    """Return the tokens that can be read and generated: up to the tokenizer's highest id.

    Args:
        rows: Of the weights, at most so many; None: they have one for each token.
    """
    tokens = 1 + max(tokenizer.get_vocab().values())
    return tokens if rows is None else min(tokens, rows)
