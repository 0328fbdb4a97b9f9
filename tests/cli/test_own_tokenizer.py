"""Conversations are encoded by the tokenizer of the checkpoint that they tune, in its template."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.chat.templates import template_of, token_names_of
from loopcoder.checkpoint.state import Specials
from loopcoder.cli import own_tokenizer
from loopcoder.cli.own_tokenizer import tokenizer_folder, with_own_tokenizer
from loopcoder.config.compose import compose
from loopcoder.errors import InputError

SPECIALS = Specials({}, {"pad_token": "<pad>"}, None, "{{ messages }}")


def checkpoint(folder: Path, specials: Specials | None = SPECIALS) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    state = SimpleNamespace(specials=specials)
    return SimpleNamespace(path=folder, place=str(folder), state=lambda: state)


def test_a_folder_as_those_for_transformers(tmp_path: Path) -> None:
    folder = tokenizer_folder(checkpoint(tmp_path / "step"), tmp_path)
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert template_of(folder) == "{{ messages }}"
    assert token_names_of(folder) == {"pad_token": "<pad>"}
    other = Specials({}, {"pad_token": "<pad>"}, None, "{{ tools }}")
    assert tokenizer_folder(checkpoint(tmp_path / "step", other), tmp_path) != folder
    assert tokenizer_folder(checkpoint(tmp_path / "moved"), tmp_path) == folder
    plain = tokenizer_folder(checkpoint(tmp_path / "step", None), tmp_path)
    assert template_of(plain) is None


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    found = checkpoint(tmp_path / "step")
    (tmp_path / "step" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"data\.build\.tokenizer=FOLDER"):
        tokenizer_folder(found, tmp_path)


@pytest.mark.parametrize("given", ["init_from", "own", "tokenizer"])
def test_whose_tokenizer_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """That of init_from; of a run that goes on its own; or of a run that is named."""
    named, own = checkpoint(tmp_path / "named"), checkpoint(tmp_path / "own", None)
    asked = []

    def find_at(place: str, *_: object, **__: object) -> Any:
        asked.append(place)
        return named

    monkeypatch.setattr(own_tokenizer, "find_at", find_at)
    (tmp_path / "named" / "state.json").write_text(json.dumps({}))
    overrides = ["data=chat", "path=a.jsonl", f"data.build.cache_dir={tmp_path}"]
    if given == "tokenizer":
        overrides.append(f"data.build.tokenizer={tmp_path / 'named'}")
    else:
        overrides.append("checkpoint.init_from=RUN")
    config = compose(overrides)
    found = with_own_tokenizer(config, own if given == "own" else None)
    wanted = tokenizer_folder(own if given == "own" else named, tmp_path)
    assert found.data.build.tokenizer == str(wanted)
    assert asked == {"init_from": ["RUN"], "own": [], "tokenizer": [str(tmp_path / "named")]}[given]


def test_other_configs_stay_as_they_are(tmp_path: Path) -> None:
    for overrides in (
        ["data=sample", "checkpoint.init_from=RUN"],
        ["data=chat", "path=a.jsonl"],
        ["data=chat", "path=a.jsonl", f"data.build.tokenizer={tmp_path}"],
    ):
        config = compose(overrides)
        assert with_own_tokenizer(config) is config
