"""Tokenizers of others: an end of document of another name, and a normaliser that changes text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.driver import prepare
from data_pipeline.schema import Document, Tally
from data_pipeline.tokenizer.changes import CHARACTERS, DOCUMENTS, changes_line, note_changes
from data_pipeline.tokenizer.encoder import Encoder, train_tokenizer
from loopcoder.config.build import EOD, EODS, SourceConfig
from loopcoder.errors import InputError
from tests.data_pipeline.builds import Config

DECOMPOSED = "e\u0301a\u0308"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["loop gate shift token é ä print x = 1\n"] * 9, 400, path)
    spec: dict[str, Any] = json.loads(path.read_text())
    return spec


def written(path: Path, trained: dict[str, Any], eod: str = EOD, **fields: Any) -> Path:
    text = json.dumps(trained | fields, ensure_ascii=False).replace(
        json.dumps(EOD), json.dumps(eod)
    )
    path.write_text(text)
    return path


@pytest.mark.data_full
@pytest.mark.parametrize("name", [*EODS, "<|end_of_text|>", "</s>"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_end_of_document_of_another_name(
    tmp_path: Path, trained: dict[str, Any], name: str, backend: Any
) -> None:
    encoder = Encoder(written(tmp_path / "t.json", trained, name), backend=backend)
    assert encoder.eod == name and encoder.eod_id == encoder.markers[name]
    ids, lengths = encoder.encode_documents([f"x {name} y", ""])
    assert lengths.tolist() == [len(ids) - 1, 1]
    assert (ids == encoder.eod_id).sum() == 2
    assert encoder.decode_bytes(ids[: lengths[0] - 1]).decode() == f"x {name} y"


def test_the_usual_name_comes_first(tmp_path: Path, trained: dict[str, Any]) -> None:
    added = [t | {"content": "</s>"} for t in trained["added_tokens"] if t["content"] == "<pad>"]
    others = [t for t in trained["added_tokens"] if t["content"] != "<pad>"]
    encoder = Encoder(written(tmp_path / "t.json", trained, added_tokens=[*added, *others]))
    assert encoder.eod == EOD and "</s>" in encoder.markers


@pytest.mark.parametrize("name", ["<|im_end_2|>", "<|eot_id|>", "end"])
def test_none_is_an_error(tmp_path: Path, trained: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=r"has no token <\|endoftext\|>, nor one of .*</s>"):
        Encoder(written(tmp_path / "t.json", trained, name))


def test_a_corpus_with_both(
    config: Config, source_folder: Path, tmp_path: Path, trained: dict[str, Any]
) -> None:
    (source_folder / "note0.txt").write_text(f"{DECOMPOSED} words\n")
    tokenizer = written(tmp_path / "t.json", trained, "</s>", normalizer={"type": "NFC"})
    lines: list[str] = []
    sources = [SourceConfig(kind="files", path=str(source_folder))]
    corpus = prepare(config(tokenizer=str(tokenizer), sources=sources), report=lines.append)
    found = corpus.manifest["tokenizer"]
    assert (found["eod"], found["normaliser"]) == ("</s>", "NFC")
    (line,) = [line for line in lines if "normaliser" in line]
    assert line.endswith("(NFC) changes text: 1 of 60 documents, 4 characters")
    count = next(s for s in corpus.manifest["stages"] if s["stage"] == "count")
    assert count["notes"] == {DOCUMENTS: 1, CHARACTERS: 4}


@pytest.mark.parametrize(
    ("normaliser", "text", "documents", "characters"),
    [
        (None, DECOMPOSED, 0, 0),
        ({"type": "NFC"}, "plain", 0, 0),
        ({"type": "NFC"}, "é composed", 0, 0),
        ({"type": "NFC"}, DECOMPOSED, 1, 4),
        ({"type": "NFKC"}, "ﬁ", 1, 1),
        ({"type": "Lowercase"}, "ABc", 1, 2),
        ({"type": "Replace", "pattern": {"String": "\t"}, "content": " "}, "a\tb", 1, 1),
    ],
)
def test_changes_are_counted(
    tmp_path: Path,
    trained: dict[str, Any],
    normaliser: Any,
    text: str,
    documents: int,
    characters: int,
) -> None:
    encoder = Encoder(
        written(tmp_path / "t.json", trained, normalizer=normaliser), backend="reference"
    )
    tally = Tally("count", rows_in=1)
    note_changes(encoder, [Document("1", text, "text", "Text", "s", "p")], tally)
    assert tally.notes == ({DOCUMENTS: 1, CHARACTERS: characters} if documents else {})
    line = changes_line([tally], encoder.normaliser)
    assert (line is None) == (normaliser is None)
    assert line is None or f"{documents} of 1 document, {characters} character" in line
