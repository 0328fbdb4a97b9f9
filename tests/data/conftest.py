"""A small real corpus, made anew for every test."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.driver import prepare
from loopcoder.config.build import SourceConfig
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import Corpus
from tests.configs import data_config
from tests.data_pipeline.conftest import PLAIN, config, source_folder

__all__ = ["config", "source_folder"]  # fixtures

NUM_FILES = 40


@pytest.fixture
def data(tmp_path: Path, seed: int) -> Callable[..., DataConfig]:
    """Make a DataConfig of a folder of random text and code files; keywords replace its fields."""
    rng = random.Random(seed)
    folder = tmp_path / "input"
    folder.mkdir()
    words = ["".join(rng.choices("abcdefghijklm", k=rng.randint(2, 7))) for _ in range(60)]
    for i in range(NUM_FILES):
        # Some documents are shorter than a sequence, some are longer than several.
        prose = " ".join(rng.choices(words, k=rng.choice((3, 20, 90))))
        (folder / f"note{i}.txt").write_text(f"{i} {prose}\n")
        lines = [
            f"{rng.choice(words)} = {rng.randrange(99)}" for _ in range(rng.choice((1, 8, 30)))
        ]
        (folder / f"program{i}.py").write_text("\n".join([f"n = {i}", *lines, ""]))

    def make(**fields: Any) -> DataConfig:
        defaults: dict[str, Any] = {
            "name": "files",
            "seq_length": rng.randint(11, 40),
            "mixture": {"text": 1, "code": 1},
            "sources": [SourceConfig(kind="files", path=str(folder))],
            "cache_dir": str(tmp_path / "cache"),
            "tokenizer_vocab_size": 600,
            "val_fraction": 0.25,
            **PLAIN,
        }
        return data_config(**(defaults | fields))

    return make


@pytest.fixture
def corpus(data: Callable[..., DataConfig]) -> Corpus:
    """The corpus of `data()`: some thousand tokens of text and of code."""
    return prepare(data(), report=lambda _: None)
