"""Tokenizers that were trained elsewhere: what they are, or why they cannot be used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer.encoder import EOD, NAMED_SPECIALS, Encoder
from loopcoder.errors import InputError, Problem
from loopcoder.storage.digest import file_digest


@dataclass(frozen=True)
class ImportedTokenizer:
    """What a tokenizer that was trained elsewhere is."""

    path: Path
    xxh3_128: str
    """Hash of the file, as a corpus records it."""
    vocab_size: int
    eod_id: int
    specials: dict[str, int]
    """Control tokens and their ids: what text never becomes."""
    missing: tuple[str, ...]
    """Control tokens of FIM, chat and repositories that it does not have."""
    normalizer: str | None
    """Type of its normaliser, if any: Unicode then comes out in another form than it went in."""
    lossless: bool
    """Whether ids give back the text to the byte."""


def import_tokenizer(path: Path) -> ImportedTokenizer:
    """Check a tokenizer.json, or say why a SentencePiece or tiktoken file cannot be used.

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
            "the tokenizer.json of the same model, or data.build.tokenizer=train",
        )
    if not start.lstrip().startswith(b"{"):
        raise InputError(_sentencepiece_problems(path))
    encoder = Encoder(path, backend="reference")
    normalizer = encoder.spec.get("normalizer")
    return ImportedTokenizer(
        path=path,
        xxh3_128=file_digest(path),
        vocab_size=encoder.vocab_size,
        eod_id=encoder.eod_id,
        specials=dict(encoder.markers),
        missing=tuple(t for t in NAMED_SPECIALS if t not in encoder.markers and t != EOD),
        normalizer=None if normalizer is None else str(normalizer["type"]),
        lossless=encoder.lossless,
    )


def _sentencepiece_problems(path: Path) -> list[Problem]:
    """Return why this SentencePiece model is no byte-level BPE: one reason at least."""
    fix = "the tokenizer.json of a byte-level BPE, or data.build.tokenizer=train"
    try:
        from sentencepiece import sentencepiece_model_pb2 as formats
    except ImportError as e:
        return [
            Problem(f"cannot look into {path}", str(e), "pip install 'loopcoder[data]', or " + fix)
        ]
    model: Any = vars(formats)["ModelProto"]()  # made at run time, unknown to mypy
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
