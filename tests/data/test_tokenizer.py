"""The tokenizer of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from loopcoder.data.tokenizer import read_tokenizer, vocabulary_of
from loopcoder.errors import InputError
from tests.infer.stand_in import tokenizer_of

TEXT = "the loop reads " * 10
OTHER = "a gate, and its window"


def test_a_text_is_read_whole_whatever_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = tokenizer_of([TEXT])
    whole = tokenizer.encode(OTHER).ids
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(path))
    assert len(whole) > 3 and read_tokenizer(path).encode(OTHER).ids == whole
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_tokenizer(path)


def test_the_vocabulary_ends_with_the_highest_id() -> None:
    """Ids may leave some out, and added tokens may stand behind the rows of the weights."""
    tokenizer = tokenizer_of([TEXT])
    size = tokenizer.get_vocab_size()
    assert vocabulary_of(tokenizer, None) == vocabulary_of(tokenizer, size + 9) == size
    assert vocabulary_of(tokenizer, size - 2) == size - 2
    gaps = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    assert gaps.get_vocab_size() == 2 and vocabulary_of(gaps, None) == 8
