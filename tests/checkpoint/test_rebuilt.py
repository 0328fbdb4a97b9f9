"""What would be another tokenizer for weights that exist is refused before a corpus is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loopcoder.checkpoint.rebuilt import refuse_other_tokens
from loopcoder.config.compose import compose
from loopcoder.config.schema import Config
from loopcoder.errors import InputError
from loopcoder.storage.digest import file_digest
from tests.cli.run_dirs import checkpoint, run_dir

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was saved at step 3, whose sources had the hash `then`."""

    def make(*overrides: str, inputs: object = ("then",)) -> Path:
        folder = run_dir(tmp_path / "run", "data=files", "path=/x", *overrides, losses=3)
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        (tmp_path / "own.json").write_text("{}")
        own = file_digest(tmp_path / "own.json")
        checkpoint(folder, 3, "recorded", corpus_dir=str(corpus), tokenizer_hash=own)
        record = {"dir": str(corpus), "fingerprint": "recorded", "inputs": inputs}
        (folder / "corpus.json").write_text(json.dumps(record))
        return folder

    return make


def config_of(*overrides: str) -> Config:
    return compose(["data=files", "path=/x", *overrides])


@pytest.mark.parametrize(
    ("before", "asked", "now", "fact"),
    [
        ([], [], "now", "the sources have changed"),
        ([], ["data.rebuild=true", "path=/y"], "now", "the sources have changed"),
        (
            [],
            ["data.rebuild=true", "data.build.tokenizer_vocab_size=640"],
            "then",
            "data.build.tokenizer_vocab_size=640, that of the weights had 2048",
        ),
        (["data.build.tokenizer=/t.json"], [], "then", "makes another tokenizer than"),
        ([], ["data.build.tokenizer=other.json"], "then", "another one than that of the weights"),
    ],
)
@pytest.mark.parametrize("branches", [False, True])
def test_another_tokenizer_is_refused(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
    asked: list[str],
    now: str,
    fact: str,
    branches: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("[]")
    folder = run(*before)
    asked = [*asked, f"checkpoint.init_from={folder}"] if branches else asked
    with pytest.raises(InputError) as caught:
        refuse_other_tokens(config_of(*asked), Path("new") if branches else folder, [now])
    (problem,) = caught.value.problems
    assert fact in problem.fact
    assert problem.fix.startswith("data.build.tokenizer=")
    assert problem.fix.endswith("another run_dir=") == (not branches)
    assert "data=corpus" not in problem.fix  # it is not there any more
    (tmp_path / "corpus" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=f"data=corpus path={tmp_path}/corpus is the corpus"):
        refuse_other_tokens(config_of(*asked), Path("new") if branches else folder, [now])


@pytest.mark.parametrize(
    ("asked", "now", "inputs"),
    [
        ([], "then", ("then",)),
        (["data.build.target_tokens=999999", "data.rebuild=true"], "then", ("then",)),
        ([], "now", None),  # as older runs recorded it: only the tokenizers themselves can tell
        ([], "now", (None,)),
        (["data.build.tokenizer=own.json"], "now", ("then",)),
    ],
)
def test_what_may_be_the_same_tokenizer_is_built(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    now: str,
    inputs: object,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run(inputs=inputs)
    refuse_other_tokens(config_of(*asked), folder, [now])
    refuse_other_tokens(config_of("data.build.tokenizer_vocab_size=640"), Path("new"), [now])
