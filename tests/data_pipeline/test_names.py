"""A corpus is called after what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.driver import prepare
from loopcoder.cli.overview import overview
from loopcoder.config.compose import compose
from loopcoder.config.data import DataConfig


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "sample"),
        (["data=files", "path=/x"], "files"),
        (["data=packages"], "packages"),
        (["data.build.sources=[{kind:files,path:/x}]"], "files"),
        (["data.build.sources=[{kind:hf,path:x},{kind:files,path:/x}]"], "files-hf"),
        (["data=files", "data.build.sources=[{kind:npm,packages:[a]}]"], "npm"),
        (["data=packages", "data.build.sources=[{kind:npm,packages:[a]}]"], "packages"),
        (["data.name=mine", "data.build.sources=[{kind:files,path:/x}]"], "mine"),
        (["data=corpus", "path=/x"], "corpus"),
    ],
)
def test_sources_of_the_command_line_name_it(overrides: list[str], name: str) -> None:
    config = compose(overrides)
    assert config.data.corpus_name == name
    assert f"\ndata       {name}" in overview(config, overrides, 1)


def test_what_was_built_under_the_former_name_stays(
    config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    corpus = prepare(config(name="sample"), report=lambda _: None)
    assert corpus.dir.name.startswith("files-") and corpus.manifest["name"] == "files"
    former = corpus.dir.rename(cache / corpus.dir.name.replace("files", "sample"))
    data = replace(config(name="sample"), verify="size")
    assert prepare(data, report=lambda _: None).dir == former
