"""A run keeps the corpus that it was trained on, whatever became of its sources."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.pinned import pinned_corpus, where_is
from loopcoder.config.compose import compose, save_config
from loopcoder.config.schema import Config
from loopcoder.errors import InputError
from tests.checkpoint.states import state_at


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "files-fingerprint"
    folder.mkdir(parents=True)
    manifest = {
        "format_version": 2,
        "fingerprint": "fingerprint",
        "domains": {"text": 1, "code": 1},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def config(*overrides: str) -> Config:
    return compose(["data=files", "path=/source", *overrides])


def with_checkpoint(run_dir: Path, corpus: Path, asked: Config) -> None:
    folder = layout.step_folder(run_dir, 7)
    folder.mkdir(parents=True)
    state = state_at(7, corpus="fingerprint", corpus_dir=str(corpus))
    (folder / "state.json").write_text(json.dumps(state.to_json()))
    (folder / "manifest.json").write_text('{"files": {}}')
    save_config(asked, folder / "config.yaml")


def with_record(run_dir: Path, corpus: Path, asked: Config) -> None:
    """A run that was killed before its first checkpoint."""
    run_dir.mkdir(parents=True)
    record = {"dir": str(corpus), "fingerprint": "fingerprint"}
    (run_dir / "corpus.json").write_text(json.dumps(record))
    save_config(asked, run_dir / "config.yaml")


@pytest.mark.parametrize("leave", [with_checkpoint, with_record])
def test_the_same_sources_mean_the_same_corpus(tmp_path, corpus, leave):
    said: list[str] = []
    leave(tmp_path / "run", corpus, config())
    assert pinned_corpus(config(), tmp_path / "run", said.append) == corpus
    assert "data.rebuild=true" in said[0] and str(corpus) in said[0]
    # drawn from in another way, it is the same corpus; whether that fits is asked elsewhere
    for override in (
        "data.mixture={text:1,code:3}",
        "data.seq_length=64",
        "data.stages=[{until:9,mixture:{code:1}},{}]",
        "train.max_steps=9",
        "data.build.executor.workers=3",
    ):
        assert pinned_corpus(config(override), tmp_path / "run", said.append) == corpus


@pytest.mark.parametrize("leave", [with_checkpoint, with_record])
@pytest.mark.parametrize(
    "asked",
    [
        config("data.rebuild=true"),
        config("data.build.filters.enabled=false"),
        compose(["data=files", "path=/another"]),
        compose(["data=sample"]),
        compose(["data=corpus", "path=/finished"]),
        config("data.mixture={text:1,math:1}"),
    ],
)
def test_what_asks_for_another_corpus_gets_it(tmp_path, corpus, leave, asked):
    leave(tmp_path / "run", corpus, config())
    assert pinned_corpus(asked, tmp_path / "run", print) is None


def test_a_corpus_that_is_gone_or_another_is_built_again(tmp_path, corpus):
    said: list[str] = []
    with_checkpoint(tmp_path / "run", corpus, config())
    manifest = json.loads((corpus / "manifest.json").read_text())
    (corpus / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "other"}))
    assert pinned_corpus(config(), tmp_path / "run", said.append) is None
    assert f"{corpus} is no longer the corpus fingerprint" in said.pop()
    shutil.rmtree(corpus)
    assert pinned_corpus(config(), tmp_path / "run", said.append) is None
    assert "is gone" in said[0]


def test_where_it_was_another_corpus_is_not_taken_for_it(tmp_path, corpus):
    cache = tmp_path / "elsewhere"
    assert where_is(str(corpus), "fingerprint", cache) == corpus
    assert where_is(str(corpus), "other", cache) is None
    kept = cache / "files-other"
    kept.mkdir(parents=True)
    manifest = json.loads((corpus / "manifest.json").read_text()) | {"fingerprint": "other"}
    (kept / "manifest.json").write_text(json.dumps(manifest))
    assert where_is(str(corpus), "other", cache) == kept


def test_a_new_run_has_none_and_a_point_takes_that_of_its_sweep(tmp_path, corpus):
    first, second = tmp_path / "sweep" / "00", tmp_path / "sweep" / "01"
    assert pinned_corpus(config(), second, print, sibling=first) is None
    with_record(first, corpus, config())
    assert pinned_corpus(config("seed=3"), second, print, sibling=first) == corpus
    other = replace(config(), data=compose(["data=sample"]).data)
    assert pinned_corpus(other, second, print, sibling=first) is None


DAMAGED = ["", "{", "[]", "3", '{"dir": 3}', '{"dir": "/c"}', '{"dir": "", "fingerprint": "f"}']


@pytest.mark.parametrize("damaged", [*DAMAGED, '{"dir": "/c", "fingerprint": null}', "folder"])
def test_a_damaged_record_is_named(tmp_path, corpus, damaged):
    """It is written whole, so a kill does not tear it; without it another corpus may be built."""
    with_record(tmp_path / "run", corpus, config())
    record = tmp_path / "run" / "corpus.json"
    if damaged == "folder":
        record.unlink()
        record.mkdir()
    else:
        record.write_text(damaged)
    with pytest.raises(InputError) as error:
        pinned_corpus(config(), tmp_path / "run", print)
    assert f"{record} cannot be read" in str(error.value)
    assert f"fix: rm -r {record}" in str(error.value)
    assert pinned_corpus(config("data.rebuild=true"), tmp_path / "run", print) is None
    with_checkpoint(tmp_path / "run", corpus, config())  # which says the same
    assert pinned_corpus(config(), tmp_path / "run", lambda _: None) == corpus


def test_a_run_that_was_killed_before_its_record_has_none(tmp_path, corpus):
    with_record(tmp_path / "run", corpus, config())
    (tmp_path / "run" / "config.yaml").unlink()
    assert pinned_corpus(config(), tmp_path / "run", print) is None


@pytest.mark.parametrize("leave", [with_checkpoint, with_record])
def test_a_cache_that_was_moved_still_has_it(tmp_path, corpus, leave, monkeypatch):
    """Looked up by the fingerprint, under whatever name of the preset; also what was given."""
    moved = tmp_path / "today" / "renamed-fingerprint"
    moved.parent.mkdir()
    given = compose(["data=corpus", f"path={corpus}"])
    leave(tmp_path / "run", corpus, config())
    leave(tmp_path / "given", corpus, given)
    assert pinned_corpus(given, tmp_path / "given", print) is None  # it opens what it is given
    corpus.rename(moved)
    monkeypatch.setenv("LOOPCODER_CACHE", str(moved.parent))
    said: list[str] = []
    assert pinned_corpus(config(), tmp_path / "run", said.append) == moved
    assert str(moved) in said[0] and str(corpus) in said[0]
    monkeypatch.delenv("LOOPCODER_CACHE")
    for other in (config, lambda o: compose(["data=corpus", f"path={corpus}", o])):
        asked = other(f"data.build.cache_dir={moved.parent}")
        run_dir = tmp_path / ("run" if other is config else "given")
        assert pinned_corpus(asked, run_dir, print) == moved
    shutil.rmtree(moved)
    assert pinned_corpus(config(), tmp_path / "run", said.append) is None
    assert "data=corpus path=FOLDER" in said[1]
    with pytest.raises(InputError, match=r"is gone, and .* has no fingerprint"):
        pinned_corpus(given, tmp_path / "given", print)


def test_the_tokenizer_of_saved_weights_is_kept(tmp_path, corpus):
    """After `data.rebuild=true data.build.tokenizer=X` the command of before goes on."""
    rebuilt = config("data.rebuild=true", "data.build.tokenizer=/x/tokenizer.json")
    with_checkpoint(tmp_path / "run", corpus, rebuilt)
    said: list[str] = []
    for asked in (config(), config("data.build.tokenizer=/y"), config("data.seq_length=64")):
        assert pinned_corpus(asked, tmp_path / "run", said.append) == corpus
        other = asked.data.build.tokenizer
        assert f"tokenised by /x/tokenizer.json and not by {other}" in said[-1]
    assert pinned_corpus(rebuilt, tmp_path / "run", print) is None
    # nothing was trained on its tokens yet
    with_record(tmp_path / "new", corpus, rebuilt)
    assert pinned_corpus(config(), tmp_path / "new", print) is None
