"""A target that is too small: the number that is named builds at once."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.driver import prepare
from loopcoder.config.build import SourceConfig
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError
from tests.data_pipeline.builds import Config
from tests.data_pipeline.repositories.trees import WORDS, program

SUFFIXES = (".py", ".c", ".java")


@pytest.fixture
def long_documents(tmp_path: Path, rng: random.Random) -> Path:
    """Documents of which one is more than a small target's share of its language."""
    folder = tmp_path / "long"
    folder.mkdir()
    for i in range(90):
        code = program(rng, rng.randrange(30, 60))
        (folder / f"f{i}{SUFFIXES[i % len(SUFFIXES)]}").write_text(code)
        words = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(300, 600)))
        (folder / f"f{i}.txt").write_text(f"{i} {words}\n")
    return folder


@pytest.mark.data_full
@pytest.mark.parametrize(
    "changes",
    [
        {"target_tokens": 130},
        {"target_tokens": 600, "shards": 2},
        {"mixture": {"text": 1, "code": 3}},
    ],
)
def test_the_target_that_is_named_builds(
    config: Config, long_documents: Path, changes: dict[str, Any]
) -> None:
    source = SourceConfig(kind="files", path=str(long_documents))
    wanted = {"target_tokens": 260, "val_fraction": 0.1, "sources": [source]} | changes

    def built(**fields: Any) -> Corpus:
        return prepare(config(**(wanted | fields)), report=lambda _: None)

    with pytest.raises(InputError, match="are the tokens for") as caught:
        built()
    found = re.search(r"target_tokens=(\d+)", str(caught.value))
    assert found is not None
    corpus = built(target_tokens=int(found[1]))
    assert all(corpus.tokens(domain, "train") for domain in corpus.domains)
    # a smaller one is refused before anything is read, and names one that is large enough too
    with pytest.raises(InputError, match="=null for all that there is") as caught:
        built(target_tokens=100)
    found = re.search(r"or (\d+) or more", str(caught.value))
    assert found is not None and built(target_tokens=int(found[1])).dir.exists()
