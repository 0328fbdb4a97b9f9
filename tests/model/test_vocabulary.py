"""Rows of embedding and head."""

from __future__ import annotations

import dataclasses
import random

import pytest

from loopcoder.errors import InputError
from loopcoder.model.vocabulary import padded_vocabulary
from tests.configs import small_model


def test_rows_are_the_next_multiple_of_128(seed: int) -> None:
    for tokens in (1, 127, 128, 129, random.Random(seed).randrange(1, 200_000)):
        rows = padded_vocabulary(small_model(vocab_size=None), tokens, "tokenizer.json")
        assert rows % 128 == 0 and tokens <= rows < tokens + 128


def test_given_rows_are_taken_where_they_suffice() -> None:
    model = dataclasses.replace(small_model(), vocab_size=512)
    assert padded_vocabulary(model, 512, "tokenizer.json") == 512
    assert padded_vocabulary(model, 3, "tokenizer.json") == 512
    with pytest.raises(InputError, match=r"tokenizer\.json has 513 tokens.*\n.*\n.*=640"):
        padded_vocabulary(model, 513, "tokenizer.json")
