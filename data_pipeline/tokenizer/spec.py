"""What a tokenizer.json must be for a corpus: a byte-level BPE that loses no byte of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loopcoder.config.build import EOD, NUM_SPECIAL_TOKENS
from loopcoder.errors import InputError

NAMED_SPECIALS = (
    EOD,
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<pad>",
)
SPECIAL_TOKENS = NAMED_SPECIALS + tuple(
    f"<|reserved_{i}|>" for i in range(NUM_SPECIAL_TOKENS - len(NAMED_SPECIALS))
)
"""They take the last ids, so that a vocabulary may grow without moving those of text."""


def byte_of_char() -> dict[str, int]:
    """Invert GPT-2's table, which writes every byte as one printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_RARE = {
    **{byte: chr(byte) for byte in range(32) if chr(byte) not in "\t\n\r"},
    **dict.fromkeys((0xC0, 0xC1, *range(0xF5, 0x100)), ""),
    0xF1: "\U00040000-\U0007ffff",
    0xF2: "\U00080000-\U000bffff",
    0xF3: "\U000c0000-\U000fffff",
    0xF4: "\U00100000-\U0010ffff",
}
"""Bytes that tokenizers trained without an initial alphabet may lack: control characters, planes of
Unicode without characters, and what UTF-8 never has; and the characters that go with each."""


def _drop(characters: str, spec: dict[str, Any]) -> None:
    """Say in a tokenizer.json by a normaliser that characters go, which the model would drop
    without a word.

    Args:
        characters: And ranges of them; none where no text can have them.
    """
    if not characters:
        return
    pattern = {"Regex": f"[{characters}]"}
    drop = {"type": "Replace", "pattern": pattern, "content": ""}
    before = spec.get("normalizer")
    both = {"type": "Sequence", "normalizers": [before, drop]}
    spec["normalizer"] = drop if before is None else both


def read_spec(path: Path) -> dict[str, Any]:
    """Read a tokenizer.json.

    Raises:
        InputError: it cannot be read, or text would be changed or lost.
    """
    fix = "data.build.tokenizer=train, or the path of a tokenizer.json of a byte-level BPE"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        Tokenizer.from_file(str(path))
    except OSError as e:
        raise InputError.of(f"cannot read the tokenizer {path}", str(e), fix) from e
    except Exception as e:  # tokenizers raises bare Exception
        raise InputError.of(f"{path} is no tokenizer.json", str(e), fix) from e
    parts = json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    table = byte_of_char()
    if spec["model"].get("type") != "BPE" or '"ByteLevel"' not in parts:
        raise InputError.of(
            f"{path} is not a byte-level BPE",
            "only there does every token stand for a fixed number of bytes",
            fix,
        )
    added = {t["content"] for t in spec["added_tokens"]}
    foreign = [t for t in spec["model"]["vocab"] if t not in added and not table.keys() >= set(t)]
    # a marker within the vocabulary itself, such as GPT-2's EOD, is ASCII and passes
    if foreign:
        raise InputError.of(
            f"{path} has tokens that are no bytes, such as {foreign[0]!r}",
            "only in a byte-level BPE does every token stand for a fixed number of bytes",
            fix,
        )
    missing = {table[char] for char in table.keys() - spec["model"]["vocab"].keys()}
    if missing and missing <= _RARE.keys():
        _drop("".join(_RARE[byte] for byte in sorted(missing)), spec)
    elif missing:
        raise InputError.of(
            f"{path} has no tokens for {len(missing)} of the 256 bytes",
            "they would vanish from texts without a word",
            fix,
        )
    # that of the decoder says nothing about encoding
    if '"add_prefix_space": true' in json.dumps(spec.get("pre_tokenizer")):
        raise InputError.of(
            f"{path} puts a blank before every text",
            "the ids would stand for a byte that no document has",
            "write add_prefix_space: false in its pre_tokenizer",
        )
    return dict(spec)
