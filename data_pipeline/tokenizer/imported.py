"""Tokenizers that were trained elsewhere, or the reasons why they cannot be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer.encoder import Choice, Encoder
from loopcoder.backends import require
from loopcoder.errors import InputError, Problem


def import_tokenizer(path: Path, backend: Choice) -> Encoder:
    """Open a tokenizer.json, or say why a SentencePiece or tiktoken file cannot be used.

    SentencePiece merges characters, not bytes, over whole lines, and writes U+2581 for a blank. No
    byte-level BPE has the same ids, whether by transformers' converters or by others.

    Raises:
        InputError: with each reason why an Encoder could not encode with it exactly.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as e:
        fix = "a file that this user can read, or data.build.tokenizer=train"
        raise InputError.of(f"cannot read the tokenizer {path}", str(e), fix) from e
    if re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", start):
        raise InputError.of(
            f"{path} is a tiktoken file",
            "it names neither the pattern that splits text nor the control tokens",
            "the tokenizer.json of the same model, or data.build.tokenizer=train",
        )
    if not start.lstrip().startswith(b"{"):
        raise InputError(_sentencepiece_problems(path))
    return Encoder(path, backend=backend)


def _sentencepiece_problems(path: Path) -> list[Problem]:
    """Return why this SentencePiece model is no byte-level BPE: one reason at least."""
    fix = "the tokenizer.json of a byte-level BPE, or data.build.tokenizer=train"
    formats = require(
        "sentencepiece.sentencepiece_model_pb2",
        f"{path} is no tokenizer.json",
        "whether it is a SentencePiece model can only be told by the package sentencepiece",
        "pip install '.[data]', or " + fix,
    )
    model = formats.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
        fault = "" if model.pieces else "it has no pieces"
    except Exception as e:  # protobuf's DecodeError, whose place differs by version
        fault = str(e)
    if fault:
        return [Problem(f"{path} is no tokenizer.json and no SentencePiece model", fault, fix)]
    kind = model.trainer_spec.ModelType.Name(model.trainer_spec.model_type)
    reason = (
        "its merges are of characters over a whole line, not of bytes within a word; bytes are "
        "only the fallback for characters that it does not have"
        if kind == "BPE"
        else f"{kind} chooses pieces by probability or words, which no list of merges repeats"
    )
    fact = f"{path} is a SentencePiece model ({kind}, {len(model.pieces):,} pieces)"
    problems = [Problem(fact, reason, fix)]
    if not model.trainer_spec.byte_fallback:
        fact = f"{path} has no byte fallback"
        problems.append(Problem(fact, "characters that it does not have would vanish", fix))
    changes = _changes(model.normalizer_spec)
    if changes:
        fact = f"{path} changes text: it {', '.join(changes)}"
        problems.append(Problem(fact, "documents, code above all, must come back to the byte", fix))
    return problems


def _changes(normalizer: Any) -> list[str]:
    """Return what the normaliser of a SentencePiece model does to text."""
    found = {
        f"normalises by {normalizer.name}": normalizer.name not in ("", "identity"),
        "adds a blank in front": normalizer.add_dummy_prefix,
        "removes blanks": normalizer.remove_extra_whitespaces,
        "writes blanks as U+2581": normalizer.escape_whitespaces,
    }
    return [change for change, is_on in found.items() if is_on]
