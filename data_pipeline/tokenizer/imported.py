"""Tokenizers that were trained elsewhere, or the reasons why they cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

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
        raise InputError.of(
            f"cannot read the tokenizer {path}", str(e), "the path of a tokenizer.json"
        ) from e
    if re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", start):
        raise InputError.of(
            f"{path} is a tiktoken file",
            "it names neither the pattern that splits text nor the control tokens",
            "the tokenizer.json of the same model, or data.tokenizer=train",
        )
    if not start.lstrip().startswith(b"{"):
        raise InputError(_sentencepiece_problems(path))
    return Encoder(path, backend=backend)


def _sentencepiece_problems(path: Path) -> list[Problem]:
    """Return why this SentencePiece model is no byte-level BPE: one reason at least."""
    fix = "the tokenizer.json of a byte-level BPE, or data.tokenizer=train"
    formats = require(
        "sentencepiece.sentencepiece_model_pb2",
        f"{path} is no tokenizer.json",
        "whether it is a SentencePiece model only the package sentencepiece can tell",
        "pip install 'loopcoder[data]', or " + fix,
    )
    model = formats.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as e:  # protobuf's DecodeError, whose place differs by version
        return [Problem(f"{path} is no tokenizer.json and no SentencePiece model", str(e), fix)]
    if not model.pieces:
        return [Problem(f"{path} is no tokenizer.json and no SentencePiece model", "empty", fix)]
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kind = trainer.ModelType.Name(trainer.model_type)
    what = f"{path} is a SentencePiece model ({kind}, {len(model.pieces):,} pieces)"
    problems = []
    if kind != "BPE":
        problems.append(
            Problem(
                what,
                f"{kind} chooses pieces by probability or words, which no list of merges repeats",
                fix,
            )
        )
    else:
        problems.append(
            Problem(
                what,
                "its merges are of characters over a whole line, not of bytes within a word; bytes "
                "are only the fallback for characters that it does not have",
                fix,
            )
        )
    if not trainer.byte_fallback:
        problems.append(
            Problem(
                f"{path} has no byte fallback", "characters that it does not have would vanish", fix
            )
        )
    changes = [
        name
        for name, on in (
            (f"normalises by {normalizer.name}", normalizer.name not in ("", "identity")),
            ("adds a blank in front", normalizer.add_dummy_prefix),
            ("removes blanks", normalizer.remove_extra_whitespaces),
            ("writes blanks as U+2581", normalizer.escape_whitespaces),
        )
        if on
    ]
    if changes:
        problems.append(
            Problem(
                f"{path} changes text: it {', '.join(changes)}",
                "documents, code above all, must come back to the byte",
                fix,
            )
        )
    return problems
