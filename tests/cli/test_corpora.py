"""A corpus is given as a folder, by name, or as a run; what is none of them says what to type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.cli import main as cli
from loopcoder.cli.corpora import corpus_folder
from tests.cli.run_dirs import checkpoint, run_dir

NAME = "sample-de90dc211f64d29c"
FINGERPRINT = NAME.partition("-")[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one corpus and an unfinished build, beside some runs."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    (folder / NAME).mkdir(parents=True)
    (folder / NAME / "manifest.json").write_text("{}")
    (folder / ".files-0123456789abcdef.work").mkdir()
    return folder


def record(run: Path, corpus: Path) -> None:
    content = {"dir": str(corpus), "fingerprint": FINGERPRINT}
    (run / "corpus.json").write_text(json.dumps(content))


def test_every_way_to_name_a_corpus(cache: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "manifest.json").write_text("{}")
    recorded = run_dir(Path("runs/recorded"))
    record(recorded, moved)
    in_cache = run_dir(Path("runs/in_cache"))
    record(in_cache, Path("/gone"))
    saved = run_dir(Path("runs/saved"), saved=3, corpus=FINGERPRINT)
    (saved / "corpus.json").unlink()
    older = run_dir(Path("runs/older"))
    checkpoint(
        older, 3, FINGERPRINT, format_version=1, tokenizer_path=str(moved / "tokenizer.json")
    )
    state = layout.step_folder(older, 3) / "state.json"
    content = json.loads(state.read_text())
    del content["corpus_dir"]
    state.write_text(json.dumps(content))

    def meant(given: object) -> Path:
        return corpus_folder("data show", str(given), cache)

    assert meant(moved) == moved and meant(cache / NAME) == cache / NAME
    assert meant(NAME) == cache / NAME
    assert meant(recorded) == moved
    assert meant(in_cache) == cache / NAME
    for given in (saved, saved / "checkpoints", layout.step_folder(saved, 3)):
        assert meant(given) == cache / NAME
    assert meant(older) == moved


@pytest.mark.parametrize(
    ("given", "says", "fix"),
    [
        ("sample-de90", "no corpus sample-de90", f"data VERB {NAME}; loopcoder data list"),
        ("nowhere", "no corpus nowhere", "data VERB NAME; loopcoder data list"),
        ("files-0123456789abcdef", "is not finished", "the command that began it"),
        ("no/such", "there is no folder no/such", "data VERB NAME; loopcoder data list"),
        ("documents", "neither a finished corpus nor a run", "data data=files path=documents"),
        ("new", "neither a finished corpus nor a run", "data VERB NAME"),
        ("sweep", "sweep holds runs", "data VERB sweep/01"),
        ("gone", "/gone, which gone was trained on, is gone", "data VERB FOLDER, or --cache DIR"),
        (f"cache/{NAME}/manifest.json", "is a file", f"data VERB cache/{NAME}"),
        ("documents/a.txt", "is a file", "data VERB DIR"),
    ],
)
def test_what_is_none_says_what_to_type(
    cache: Path, given: str, says: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("documents").mkdir()
    Path("documents/a.txt").write_text("words")
    run_dir(Path("new"))
    run_dir(Path("sweep/00"))
    record(run_dir(Path("sweep/01")), cache / NAME)
    gone = run_dir(Path("gone"))
    (gone / "corpus.json").write_text('{"dir": "/gone", "fingerprint": "00"}')
    for verb in ("show", "validate", "report"):
        assert cli.main(["data", verb, given, "--cache", "cache"]) == 3
        error = capsys.readouterr().err
        assert says in error and fix.replace("VERB", verb) in error.partition("fix: ")[2]
        assert "data.path=" not in error and "delete" not in error


@pytest.mark.parametrize("verb", ["show", "validate", "report"])
def test_one_corpus_is_given(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["a", "b"]):
        assert cli.main(["data", verb, *arguments]) == 3
        assert f"fix: loopcoder data {verb} CORPUS" in capsys.readouterr().err
    assert cli.main(["data", verb, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"usage: loopcoder data {verb} CORPUS" in printed and "$LOOPCODER_CACHE" in printed
    assert cli.main(["data", verb, "x", "--cache", "/no/such"]) == 3
    assert "there is no such folder" in capsys.readouterr().err
