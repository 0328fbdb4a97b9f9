"""What is said where a domain of the mixture has no documents: the others are what can be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.balance.filling import plan
from data_pipeline.balance.quotas import Supply
from data_pipeline.driver import prepare
from loopcoder.config.compose import compose
from loopcoder.config.data import DataConfig, ResolvedStage
from loopcoder.config.filters import FilterConfig
from loopcoder.data.blend import Blend
from loopcoder.errors import InputError

BOTH = {"text": 1.0, "code": 1.0}


def no_source(config: Callable[..., DataConfig], folder: Path) -> None:
    for path in folder.rglob("*.py"):
        path.unlink()
    prepare(config())


def all_filtered(config: Callable[..., DataConfig], folder: Path) -> None:
    for path in folder.rglob("*.py"):
        path.write_text("")
    prepare(config(filters=FilterConfig()))


def one_document(config: Callable[..., DataConfig], folder: Path) -> None:
    for path in folder.rglob("*.py"):
        path.write_text("x = 1\n")
    prepare(config())


def no_supply(config: Callable[..., DataConfig], folder: Path) -> None:
    supply = [Supply("0", "text", "en", 3, 30)]
    plan(supply, shares={}, target_tokens=None, max_epochs=1.0, mixture=BOTH)


def another_corpus(config: Callable[..., DataConfig], folder: Path) -> None:
    corpus: Any = SimpleNamespace(domains=("text",), shard_tokens=lambda *_: [900])
    Blend.check(corpus, ResolvedStage(BOTH, 8, 1e4))


@pytest.mark.parametrize("ask", [no_source, all_filtered, one_document, no_supply, another_corpus])
def test_the_others_are_named(
    ask: Callable[..., None], config: Callable[..., DataConfig], source_folder: Path
) -> None:
    with pytest.raises(InputError) as caught:
        ask(config, source_folder)
    (fix,) = [p.fix for p in caught.value.problems if "code" in p.fact]
    assert compose([fix.split("'")[1]]).data.mixture == {"text": 1.0}
