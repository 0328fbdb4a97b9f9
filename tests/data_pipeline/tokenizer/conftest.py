"""A small tokenizer to encode with, and to take apart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.tokenizer.encoder import train_tokenizer
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
