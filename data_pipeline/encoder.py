"""Byte-level BPE: training, import, and encoding in which text never becomes a control token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from loopcoder.errors import InputError

EOD = "<|endoftext|>"
NUM_SPECIAL_TOKENS = 64
MIN_VOCAB_SIZE = 256 + NUM_SPECIAL_TOKENS

_NAMED_SPECIALS = (
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
SPECIAL_TOKENS = _NAMED_SPECIALS + tuple(
    f"<|reserved_{i}|>" for i in range(NUM_SPECIAL_TOKENS - len(_NAMED_SPECIALS))
)
"""They take the last ids, so that a vocabulary may grow without moving those of text."""

# The split of Qwen2 (cl100k's, but digits stand alone).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL = re.compile(r"<.*>|\[.*\]", re.S)


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train a byte-level BPE without normaliser and write its tokenizer.json.

    Args:
        texts: What it is trained on; read once.
        vocab_size: Ids in all, 64 special tokens included; fewer come out if the texts have no more
            pairs to merge.
        path: File to write.

    Raises:
        InputError: vocab_size leaves no room for the 256 bytes and the special tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError.of(
            f"data.tokenizer_vocab_size is {vocab_size}",
            f"256 bytes and {NUM_SPECIAL_TOKENS} special tokens need {MIN_VOCAB_SIZE} ids",
            f"data.tokenizer_vocab_size={MIN_VOCAB_SIZE} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS]
    )
    # not tokenizer.save, which reports a full disk as a bare Exception
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def _byte_of_char() -> dict[str, int]:
    """Invert GPT-2's table, which writes every byte as one printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Encoder:
    """A tokenizer.json that encodes plain text only.

    A document that contains the text `<|endoftext|>` keeps it as text. HF's `encode_special_tokens`
    does that for the added tokens that are flagged special; all that look like markers are flagged
    so here, since Qwen's FIM markers are not. Added tokens that are no markers, such as runs of
    spaces, are part of how the tokenizer splits text, and stay in use.
    """

    def __init__(self, path: Path) -> None:
        """Read tokenizer.json.

        Raises:
            InputError: it is unreadable, no byte-level BPE, or has no end-of-document token.
        """
        self.path = path
        self._spec = _read_spec(path)
        self._markers = {
            t["content"]: int(t["id"])
            for t in self._spec["added_tokens"]
            if t["special"] or _CONTROL.fullmatch(t["content"])
        }
        vocab: dict[str, int] = self._spec["model"]["vocab"]
        eod_id = self._markers.get(EOD, vocab.get(EOD))
        if eod_id is None:
            raise InputError.of(
                f"{path} has no token {EOD}",
                "every document of the corpus ends with it",
                f"add {EOD} to its added_tokens, or data.tokenizer=train",
            )
        self.eod_id = eod_id
        added = [int(t["id"]) for t in self._spec["added_tokens"]]
        self.vocab_size = max(*vocab.values(), *added, 0) + 1
        plain = self._spec | {
            "added_tokens": [
                t | {"special": t["content"] in self._markers} for t in self._spec["added_tokens"]
            ],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self._tokenizer = Tokenizer.from_str(json.dumps(plain, ensure_ascii=False))
        self._tokenizer.encode_special_tokens = True

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes that each id stands for, [vocab_size]; 0 for special and unused ids."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, token_id in self._spec["model"]["vocab"].items():
            # a character of the table is one byte, whatever its own UTF-8 length
            lengths[token_id] = len(token)
        for token in self._spec["added_tokens"]:
            is_marker = token["content"] in self._markers
            lengths[token["id"]] = 0 if is_marker else len(token["content"].encode())
        lengths[self.eod_id] = 0
        return lengths

    def encode_documents(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Encode documents, each ended by one EOD.

        Returns:
            The ids of all documents one after the other, and the tokens of each (EOD included).

        Raises:
            InputError: the tokenizer made an EOD out of text.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [[*encoding.ids, self.eod_id] for encoding in encodings]
        lengths = np.array([len(i) for i in ids], dtype=np.int32)
        flat = np.fromiter((t for i in ids for t in i), dtype=np.int32, count=int(lengths.sum()))
        if int((flat == self.eod_id).sum()) != len(texts):
            raise InputError.of(
                f"{self.path} encodes some plain text as {EOD}",
                "a document would end in its middle",
                "use a tokenizer whose EOD is an added token, or data.tokenizer=train",
            )
        return flat, lengths


def _read_spec(path: Path) -> dict[str, Any]:
    fix = "data.tokenizer=train, or the path of a tokenizer.json of a byte-level BPE"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        Tokenizer.from_file(str(path))
    except OSError as e:
        raise InputError.of(f"cannot read the tokenizer {path}", str(e), fix) from e
    except Exception as e:  # tokenizers raises bare Exception
        raise InputError.of(f"{path} is no tokenizer.json", str(e), fix) from e
    parts = json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    table = _byte_of_char()
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
    return dict(spec)
