"""Fixtures of the pipeline's tests: fresh random input and small corpora."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopcoder.config.build import DecontaminateConfig, FimConfig, NearDedupConfig, SourceConfig
from loopcoder.config.data import DataConfig
from loopcoder.config.filters import FilterConfig
from tests.configs import data_config

VOCAB_SIZE = 600

PLAIN: dict[str, Any] = {
    "filters": FilterConfig(enabled=False),
    "near_dedup": NearDedupConfig(enabled=False),
    "decontaminate": DecontaminateConfig(benchmarks=[]),
    "fim": FimConfig(rate=0),
}
"""Fields of DataConfig that hand every document on as it is, but for exact copies."""


def random_text(rng: random.Random, num_chars: int) -> str:
    """Words, blanks, digits, line ends and characters of 1 to 4 bytes."""
    alphabets = (
        "abcdefgh",
        "  \t\n\r\n",
        "0123456789",
        "äßñ",
        "漢字かな",
        "🙂🜁",
        "\u2028\x00\ufeff",
    )
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(num_chars))


@pytest.fixture
def source_folder(tmp_path: Path, rng: random.Random) -> Path:
    """A folder with 30 prose files and 30 programs."""
    folder = tmp_path / "input"
    (folder / "sub").mkdir(parents=True)
    for i in range(30):
        words = " ".join(rng.choice(("loop", "gate", "shift", "token")) for _ in range(40))
        (folder / f"note{i}.txt").write_text(f"{i} {words}\n")
        (folder / "sub" / f"program{i}.py").write_text(f"x = {i}\nprint('{words}')\n")
    return folder


@pytest.fixture
def config(tmp_path: Path, source_folder: Path) -> Callable[..., DataConfig]:
    """Make a DataConfig of `source_folder`; keywords replace its fields."""

    def make(**fields: Any) -> DataConfig:
        defaults: dict[str, Any] = {
            "name": "test",
            "seq_length": 64,
            "mixture": {"text": 1, "code": 1},
            "sources": [SourceConfig(kind="files", path=str(source_folder))],
            "cache_dir": str(tmp_path / "cache"),
            "tokenizer_vocab_size": VOCAB_SIZE,
            "val_fraction": 0.2,
            **PLAIN,
        }
        return data_config(**(defaults | fields))

    return make
