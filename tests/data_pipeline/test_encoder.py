"""Training, import and encoding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline.encoder import EOD, SPECIAL_TOKENS, Encoder, train_tokenizer
from loopcoder.errors import InputError
from tests.data_pipeline.conftest import VOCAB_SIZE, random_text

TEXTS = ["def loop(x):\n    return x + 1\n", "The gate mixes what two passes saw. " * 5] * 20


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([*TEXTS, random_text(random.Random(0), 20_000)], VOCAB_SIZE, path)
    return path


def changed(path: Path, target: Path, **parts: Any) -> Path:
    """Write a copy of a tokenizer.json with other parts."""
    target.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return target


def test_special_tokens_are_last(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    assert len(SPECIAL_TOKENS) == 64
    ids = [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS]
    assert ids == list(range(VOCAB_SIZE - 64, VOCAB_SIZE))
    encoder = Encoder(tokenizer_path)
    assert (encoder.vocab_size, encoder.eod_id) == (VOCAB_SIZE, VOCAB_SIZE - 64)


def test_training_is_deterministic(tmp_path: Path, tokenizer_path: Path) -> None:
    train_tokenizer(
        [*TEXTS, random_text(random.Random(0), 20_000)], VOCAB_SIZE, tmp_path / "again.json"
    )
    assert (tmp_path / "again.json").read_bytes() == tokenizer_path.read_bytes()


def test_token_bytes_are_exact(tokenizer_path: Path, rng: random.Random) -> None:
    encoder = Encoder(tokenizer_path)
    texts = [random_text(rng, rng.randrange(1, 400)) for _ in range(100)]
    ids, lengths = encoder.encode_documents(texts)
    assert lengths.sum() == len(ids)
    plain = Tokenizer.from_file(str(tokenizer_path))
    for text, tokens in zip(texts, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        assert encoder.token_bytes[tokens].sum() == len(text.encode())
        assert tokens[-1] == encoder.eod_id
        assert plain.decode(tokens[:-1].tolist()) == text
    assert not encoder.token_bytes[-64:].any()


@pytest.mark.parametrize("special", [True, False])
def test_markers_in_text_stay_text(tmp_path: Path, tokenizer_path: Path, special: bool) -> None:
    added = json.loads(tokenizer_path.read_text())["added_tokens"]
    path = changed(
        tokenizer_path, tmp_path / "t.json", added_tokens=[t | {"special": special} for t in added]
    )
    encoder = Encoder(path)
    text = "a" + "".join(SPECIAL_TOKENS) + " b <|endoftext|>"
    ids, _ = encoder.encode_documents([text, EOD])
    assert (ids >= VOCAB_SIZE - 64).sum() == 2
    assert Tokenizer.from_file(str(path)).decode(ids.tolist()).count(EOD) >= 3
    assert encoder.token_bytes[ids].sum() == len(text + EOD)


def test_added_tokens_that_are_no_markers_are_used(tmp_path: Path, tokenizer_path: Path) -> None:
    added = json.loads(tokenizer_path.read_text())["added_tokens"]
    spaces = added[0] | {"id": VOCAB_SIZE, "content": " " * 9, "special": False}
    encoder = Encoder(changed(tokenizer_path, tmp_path / "t.json", added_tokens=[*added, spaces]))
    ids, _ = encoder.encode_documents(["x" + " " * 9 + "y"])
    assert VOCAB_SIZE in ids
    assert encoder.vocab_size == VOCAB_SIZE + 1
    assert encoder.token_bytes[ids].sum() == 11


def test_truncation_of_an_imported_tokenizer_is_ignored(
    tmp_path: Path, tokenizer_path: Path
) -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    encoder = Encoder(changed(tokenizer_path, tmp_path / "t.json", truncation=cut))
    _, lengths = encoder.encode_documents(["one two three four"])
    assert lengths[0] > 4


def test_unusable_tokenizers(tmp_path: Path, tokenizer_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Encoder(tmp_path / "none.json")
    (tmp_path / "cut.json").write_bytes(tokenizer_path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Encoder(tmp_path / "cut.json")
    with pytest.raises(InputError, match=r"no token <\|endoftext\|>"):
        Encoder(changed(tokenizer_path, tmp_path / "eod.json", added_tokens=[]))
    with pytest.raises(InputError, match="not a byte-level BPE"):
        Encoder(changed(tokenizer_path, tmp_path / "b.json", pre_tokenizer=None, decoder=None))
    with pytest.raises(InputError, match="tokenizer_vocab_size=320"):
        train_tokenizer(TEXTS, 319, tmp_path / "small.json")
