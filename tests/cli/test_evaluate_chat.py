"""Which held-out conversations `loopcoder evaluate tasks=chat` puts to models without a corpus."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loopcoder.chat.conversation import canonical
from loopcoder.chat.parsing import parse
from loopcoder.cli.evaluate_chat import conversations_of
from loopcoder.config.compose import compose
from loopcoder.data.corpus import Corpus
from loopcoder.data.manifest import MANIFEST
from loopcoder.data.places import HELD_OUT
from loopcoder.errors import InputError
from tests.data.chat import chat_corpus
from tests.evaluate.test_chat import PLAIN, calling


def corpus(folder: Path, seed: int, *rows: dict[str, Any]) -> Corpus:
    made = chat_corpus(folder, np.random.default_rng(seed), seq_length=64)
    text = "".join(json.dumps(canonical(parse(row))) + "\n" for row in rows)
    (made.dir / HELD_OUT).write_text(text, encoding="utf-8")
    manifest = json.loads((made.dir / MANIFEST).read_text())
    manifest["files"][HELD_OUT]["bytes"] = len(text.encode())
    (made.dir / MANIFEST).write_text(json.dumps(manifest))
    return made


def trained_on(*corpora: Corpus) -> Any:
    """Stands for a checkpoint of a run on a corpus, or on several."""
    one = corpora[0]
    data = compose(["data=corpus", f"path={one.dir}", "data.mixture={chat:1}"]).data
    if len(corpora) > 1:
        entries = ",".join(f"{{path:{each.dir}}}" for each in corpora)
        stages = f"data.stages=[{{corpora:[{entries}]}}]"
        data = compose(["data=corpus", "path=null", "data.mixture={chat:1}", stages]).data
    state = SimpleNamespace(
        corpus=" ".join(each.fingerprint for each in corpora),
        corpus_dir=", ".join(str(each.dir) for each in corpora),
        has_tokenizer=True,
        tokenizer_hash=one.tokenizer_hash,
    )
    config = SimpleNamespace(data=data)
    return SimpleNamespace(place="RUN", path=one.dir, state=lambda: state, config=lambda: config)


def test_they_are_found_where_the_corpus_is_now(tmp_path: Path, seed: int) -> None:
    made = corpus(tmp_path / "a", seed, calling("Oslo"), PLAIN)
    model, cache = trained_on(made), tmp_path / "cache"
    found = conversations_of({"R": model}, None, cache)
    assert len(found.turns) == 3
    cache.mkdir()
    shutil.move(made.dir, cache / f"moved-{made.fingerprint}")
    assert conversations_of({"R": model}, None, cache) == found
    shutil.rmtree(cache)
    with pytest.raises(InputError, match="is gone"):
        conversations_of({"R": model}, None, cache)


def test_of_a_curriculum_they_are_those_of_all_its_corpora(tmp_path: Path, seed: int) -> None:
    easy = corpus(tmp_path / "easy", seed, PLAIN)
    hard = corpus(tmp_path / "hard", seed + 1, calling("Oslo"))
    found = conversations_of({"R": trained_on(easy, hard)}, None, tmp_path)
    assert [turn.conversation for turn in found.turns] == [0, 1, 1]


def test_models_of_different_corpora_are_not_compared(tmp_path: Path, seed: int) -> None:
    one = corpus(tmp_path / "one", seed, PLAIN)
    copy = corpus(tmp_path / "copy", seed + 1, PLAIN)  # in other tokens, the same conversations
    other = corpus(tmp_path / "other", seed + 2, calling("Oslo"))
    alike = {"R1": trained_on(one), "R2": trained_on(copy)}
    assert len(conversations_of(alike, None, tmp_path).turns) == 1
    with pytest.raises(InputError, match=r"R1 and R3 were trained on different(.|\n)*chat\.corpus"):
        conversations_of(alike | {"R3": trained_on(other)}, None, tmp_path)
    with pytest.raises(InputError, match=r"does not say(.|\n)*chat\.corpus="):
        conversations_of({"export": tmp_path}, None, tmp_path)
