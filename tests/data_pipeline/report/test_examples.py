"""Documents to look at: the right ones, shortened, escaped."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.driver import prepare
from data_pipeline.report import render
from data_pipeline.report.examples import Example, drawn, origin, random_documents
from tests.data_pipeline.builds import documents, whole
from tests.data_pipeline.report.test_report import HOSTILE, Page


def test_every_document_is_found_as_it_was_written(config: Callable) -> None:
    corpus = prepare(config(**whole("text")), report=lambda _: None)
    found = random_documents(corpus.dir, corpus.manifest, "text", 1000, seed=3)
    written = documents(corpus, "text", "train")
    assert len({example.place for example in found}) == len(found) == len(written)
    assert sorted(e.text.split(" ...")[0] for e in found) == sorted(t[:100] for t in written)


def test_a_draw_is_of_its_seed(config: Callable, rng: random.Random) -> None:
    corpus = prepare(config(), report=lambda _: None)
    seed = rng.randrange(100)

    def places(seed: int) -> list[str]:
        found = random_documents(corpus.dir, corpus.manifest, "code", 4, seed)
        return [example.place for example in found]

    assert places(seed) == places(seed) and len(set(places(seed))) == 4
    assert len({tuple(places(other)) for other in range(6)}) > 1
    assert drawn(corpus.dir, corpus.manifest) == drawn(corpus.dir, corpus.manifest)
    assert "Python 100%" in origin(corpus.manifest, "code")


def test_a_long_document_is_shortened(config: Callable, source_folder: Path) -> None:
    for file in source_folder.glob("*.txt"):
        file.unlink()
    for i in range(20):
        lines = [f"{i} {'word ' * 30}{n}" for n in range(400)]
        (source_folder / f"long{i}.txt").write_text("\n".join(lines))
    corpus = prepare(config(**whole("text")), report=lambda _: None)
    for example in random_documents(corpus.dir, corpus.manifest, "text", 5, seed=0):
        lines = example.text.splitlines()
        assert len(lines) <= 13 and all(len(line) <= 104 for line in lines)
        assert "more lines)" in lines[-1]


def test_documents_are_escaped_in_the_report() -> None:
    example = Example("train/text-00000 3", HOSTILE, HOSTILE + "\n\n<pre>x")
    page = Page(render({}, {"text": [example], HOSTILE: [example]}))
    assert "script" not in page.tags
    assert '<script>alert("1")</script>' in "".join(page.text["Some documents"])


@pytest.mark.parametrize("manifest", [{}, {"domains": 3}, {"domains": {"text": {}}}])
def test_a_report_without_documents_goes_without(tmp_path: Path, manifest: dict) -> None:
    assert drawn(tmp_path, manifest) == {}
    (tmp_path / "tokenizer.json").write_text("{}")
    assert drawn(tmp_path, manifest) == {}
    assert "Some documents" not in Page(render(manifest)).text
