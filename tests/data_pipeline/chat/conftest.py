"""Fixtures of the tests on corpora of conversations: random rows, a tokenizer, a config."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopcoder.chat.conversation import canonical
from loopcoder.chat.templates import FILE, built_in
from loopcoder.config.build import DecontaminateConfig, FimConfig, NearDedupConfig, SourceConfig
from loopcoder.config.data import DataConfig
from loopcoder.config.filters import FilterConfig
from tests.chat import chats
from tests.configs import data_config

SEQ_LENGTH = 2048

MakeConfig = Callable[..., DataConfig]


@pytest.fixture
def np_rng(seed: int) -> np.random.Generator:
    """A generator of NumPy with a fresh seed, printed for repetition."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a template beside it, as folders for transformers have it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    chats.tokenizer().save(str(folder / "tokenizer.json"))
    (folder / FILE).write_text(built_in("qwen3"))
    return folder


@pytest.fixture
def config(tmp_path: Path, tokenizer_folder: Path) -> MakeConfig:
    """Make a DataConfig of `tmp_path`/chats; keywords replace its fields."""

    def make(**fields: Any) -> DataConfig:
        defaults: dict[str, Any] = {
            "name": "chat",
            "seq_length": SEQ_LENGTH,
            "mixture": {"chat": 1},
            "sources": [SourceConfig(kind="chat", path=str(tmp_path / "chats"))],
            "cache_dir": str(tmp_path / "cache"),
            "tokenizer": str(tokenizer_folder),
            "val_fraction": 0.2,
            "filters": FilterConfig(enabled=False),
            "near_dedup": NearDedupConfig(enabled=False),
            "decontaminate": DecontaminateConfig(benchmarks=[]),
            "fim": FimConfig(rate=0),
        }
        return data_config(**(defaults | fields))

    return make


def rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Return random conversations, each of them another one, with a licence and an origin."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        row = canonical(chats.conversation(rng, untrained=True))
        for message in row["messages"]:
            if message["role"] == "assistant":  # who calls nothing by half a tag
                message["content"] = message["content"].replace("</tool_call>", "</call>")
        about = {"licence": rng.choice(("MIT", "CC0-1.0")), "source": rng.choice(("faq", "docs"))}
        found[json.dumps(row)] = row | about
    return list(found.values())


def write(path: Path, lines: Iterable[Any]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
