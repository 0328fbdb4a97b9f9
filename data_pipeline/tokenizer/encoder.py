"""Byte-level BPE: training, and encoding in which text never becomes a control token.

HF `tokenizers` is the reference. `fastokens` encodes the same ids some hundred times faster; that
they are the same is probed on an adversarial corpus whenever an Encoder is made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.tokenizer.probe import probe_texts
from data_pipeline.tokenizer.spec import (
    SPECIAL_TOKENS,
    byte_of_char,
    read_spec,
)
from loopcoder.config.build import EOD, EODS, MIN_VOCAB_SIZE, NUM_SPECIAL_TOKENS
from loopcoder.errors import InputError, Problem

Backend = Literal["fast", "reference"]
Choice = Literal["auto", "fast", "reference"]

# The split of Qwen2 (cl100k's, but digits stand alone).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL = re.compile(r"<.*>|\[.*\]", re.S)
_THREADS = "FASTOKENS_BPE_THREADS"


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train a byte-level BPE without normaliser and write its tokenizer.json.

    Args:
        texts: Documents to train on; read once.
        vocab_size: Ids in all, 64 special tokens included; fewer come out if the texts have no more
            pairs to merge.
        path: File to write.

    Raises:
        InputError: vocab_size leaves no room for the 256 bytes and the special tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError.of(
            f"data.build.tokenizer_vocab_size is {vocab_size}",
            f"256 bytes and {NUM_SPECIAL_TOKENS} special tokens need {MIN_VOCAB_SIZE} ids",
            f"data.build.tokenizer_vocab_size={MIN_VOCAB_SIZE} or more",
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


class Encoder:
    """A tokenizer.json that encodes plain text only.

    A document that contains the text `<|endoftext|>` keeps it as text. HF's `encode_special_tokens`
    does that for the added tokens that are flagged special; all that look like markers are flagged
    so here, since Qwen's FIM markers are not. Added tokens that are no markers, such as runs of
    spaces, are part of how the tokenizer splits text, and stay in use.
    """

    def __init__(
        self,
        path: Path,
        *,
        backend: Choice = "auto",
        threads: int | None = None,
    ) -> None:
        """Read tokenizer.json and probe it.

        Args:
            path: The file.
            backend: `fast` is fastokens, `reference` HF tokenizers, `auto` fastokens if it is
                installed; `self.backend` has the choice.
            threads: Threads of fastokens, which fixes them for the process at its first use; by
                default FASTOKENS_BPE_THREADS, else 1, since processes work in parallel already.

        Raises:
            InputError: the file is unreadable, no byte-level BPE, loses text, or has no
                end-of-document token; fastokens is asked for and missing, or encodes differently.
        """
        self.path = path
        self.spec = read_spec(path)
        self.markers: dict[str, int] = {
            t["content"]: int(t["id"])
            for t in self.spec["added_tokens"]
            if t["special"] or _CONTROL.fullmatch(t["content"])
        }
        """Ids of the tokens that text never becomes, by their names."""
        vocab: dict[str, int] = self.spec["model"]["vocab"]
        self.eod, self.eod_id = _end_of_document(path, self.markers, vocab)
        """The token that ends every document, by its name and its id."""
        added = [int(t["id"]) for t in self.spec["added_tokens"]]
        self.vocab_size = max(*vocab.values(), *added, 0) + 1
        plain = self.spec | {
            "added_tokens": [
                t | {"special": t["content"] in self.markers} for t in self.spec["added_tokens"]
            ],
            "model": self.spec["model"] | {"dropout": None},
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        as_json = json.dumps(plain, ensure_ascii=False)
        self._tokenizer = Tokenizer.from_str(as_json)
        self._tokenizer.encode_special_tokens = True
        self.backend: Backend = resolve_backend(backend)
        """The backend that encodes: `fast` or `reference`."""
        self.threads = _fix_threads(threads) if self.backend == "fast" else None
        self._fast: Any = _fast_tokenizer(as_json, path) if self.backend == "fast" else None
        self.lossless = self._probe()
        """Whether ids give back the text to the byte; else the tokenizer has a normaliser."""

    @property
    def engine(self) -> str:
        """The package that encodes and its version."""
        package = "fastokens" if self.backend == "fast" else "tokenizers"
        return f"{package} {version(package)}"

    @property
    def normaliser(self) -> str | None:
        """What changes text before it is split, by its kind; None: nothing does."""
        normaliser = self.spec.get("normalizer")
        return None if self.lossless or normaliser is None else str(normaliser.get("type"))

    def normalised(self, text: str) -> str:
        """Return the text that the ids of a text stand for."""
        normaliser = self._tokenizer.normalizer
        return text if normaliser is None else str(normaliser.normalize_str(text))

    @cached_property
    def _pieces(self) -> list[bytes]:
        """UTF-8 that each id stands for, in full for markers; empty for unused ids."""
        table = byte_of_char()
        pieces = [b""] * self.vocab_size
        for token in self.spec["added_tokens"]:
            pieces[token["id"]] = token["content"].encode()
        added = {token["content"] for token in self.spec["added_tokens"]}
        # DeepSeek's markers are in the vocabulary as well, in characters outside the table
        for token, token_id in self.spec["model"]["vocab"].items():
            if token not in added:
                pieces[token_id] = bytes(map(table.__getitem__, token))
        return pieces

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes that each id stands for, [vocab_size]; 0 for special and unused ids."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, token_id in self.spec["model"]["vocab"].items():
            # a character of the table is one byte, whatever its own UTF-8 length
            lengths[token_id] = len(token)
        for token in self.spec["added_tokens"]:
            is_marker = token["content"] in self.markers
            lengths[token["id"]] = 0 if is_marker else len(token["content"].encode())
        lengths[self.eod_id] = 0
        return lengths

    def marker(self, name: str) -> int:
        """Return the id of a control token.

        Raises:
            InputError: the tokenizer has none of that name.
        """
        if name not in self.markers:
            raise InputError.of(
                f"{self.path} has no token {name}",
                "it would become text, which a model cannot tell from the text of documents",
                f"add {name} to its added_tokens, or data.build.tokenizer=train",
            )
        return self.markers[name]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the UTF-8 of ids; control tokens appear by their names."""
        pieces = self._pieces
        return b"".join([pieces[i] for i in ids])

    def encode_pieces(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Encode texts without EOD; none of them may have a lone surrogate, which is no UTF-8.

        Returns:
            The ids of all texts one after the other, and where those of each text end.

        Raises:
            InputError: the tokenizer made an EOD out of text.
        """
        if self._fast is not None:
            ids, ends = self._encode_fast(texts)
        else:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            lists = [encoding.ids for encoding in encodings]
            ends = np.cumsum([len(i) for i in lists], dtype=np.int64)
            count = int(ends[-1]) if lists else 0
            ids = np.fromiter((t for i in lists for t in i), dtype=np.int32, count=count)
        if (ids == self.eod_id).any():
            raise InputError.of(
                f"{self.path} encodes some plain text as {self.eod}",
                "a document would end in its middle",
                "use a tokenizer whose EOD is an added token, or data.build.tokenizer=train",
            )
        return ids, ends

    def _encode_fast(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        # uint32 ids and uint64 offsets in bytes objects: no Python object per token
        ids, offsets = self._fast.encode_batch_flat(list(texts), split_special_tokens=True)
        return np.frombuffer(ids, dtype=np.int32), np.frombuffer(offsets, dtype=np.int64)[1:]

    def encode_documents(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Encode documents, each ended by one EOD.

        Returns:
            The ids of all documents one after the other, and the tokens of each (EOD included).

        Raises:
            InputError: the tokenizer made an EOD out of text.
        """
        ids, ends = self.encode_pieces(texts)
        lengths = np.diff(ends, prepend=0) + 1
        return np.insert(ids, ends, self.eod_id), lengths.astype(np.int32)

    def _probe(self) -> bool:
        """Compare the backends on the probe, and the ids with its text; return `self.lossless`.

        Raises:
            InputError: the backends differ, or text is lost without a normaliser.
        """
        texts = probe_texts(self.spec)
        # one by one: a batch starts threads, which a later fork would not survive
        expected = [self._tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
        if self._fast is not None:
            ids, ends = self._encode_fast(texts)
            for text, want, got in zip(texts, expected, np.split(ids, ends[:-1]), strict=True):
                if want != got.tolist():
                    raise InputError([self._difference(text, want, got.tolist())])
        for text, want in zip(texts, expected, strict=True):
            if self.decode_bytes(want) == text.encode():
                continue
            if self.spec.get("normalizer") is not None:
                return False
            raise InputError.of(
                f"{self.path} loses text, such as in {_shortened(text)}",
                "its ids do not stand for the bytes of the text, though it has no normaliser",
                "remove what strips or adds blanks from it, or data.build.tokenizer=train",
            )
        return True

    def _difference(self, text: str, want: list[int], got: list[int]) -> Problem:
        pairs = enumerate(zip(want, got, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(want), len(got)))
        around = slice(max(0, first - 3), first + 5)
        position = len(self.decode_bytes(want[:first]).decode(errors="replace"))
        return Problem(
            f"fastokens encodes {_shortened(text, position)} differently: from token "
            f"{around.start} on {got[around]} in place of {want[around]}",
            f"fastokens does not do everything in {self.path} as HF tokenizers do",
            "data.build.tokenizer_backend=reference",
        )


def _end_of_document(path: Path, markers: dict[str, int], vocab: dict[str, int]) -> tuple[str, int]:
    for name in EODS:
        if name in markers:
            return name, markers[name]
    if EOD in vocab:  # GPT-2's is a token like others
        return EOD, vocab[EOD]
    raise InputError.of(
        f"{path} has no token {EOD}, nor one of {', '.join(EODS[1:])}",
        "every document of the corpus ends with it",
        f"add {EOD} to its added_tokens, or data.build.tokenizer=train",
    )


def resolve_backend(choice: str) -> Backend:
    """Return the backend that `auto`, `fast` or `reference` means on this machine.

    Raises:
        InputError: fastokens is asked for and not installed, or there is no such choice.
    """
    if choice not in ("auto", "fast", "reference"):
        raise InputError.of(
            f"backend is {choice!r}",
            "the backends are fast (fastokens) and reference (HF tokenizers)",
            "data.build.tokenizer_backend=auto, fast or reference",
        )
    installed = find_spec("fastokens") is not None
    if choice == "fast" and not installed:
        raise InputError.of(
            "backend is 'fast'",
            "the package fastokens is not installed",
            "pip install '.[data]', or data.build.tokenizer_backend=reference",
        )
    return "fast" if choice != "reference" and installed else "reference"


def _fix_threads(threads: int | None) -> int:
    """Set the environment variable that fastokens reads once; return the threads."""
    found = os.environ.setdefault(_THREADS, str(threads or 1))
    if not found.isdecimal() or int(found) < 1 or threads not in (None, int(found)):
        raise InputError.of(
            f"{_THREADS} is {found!r}" + (f", but threads is {threads}" if threads else ""),
            "fastokens reads it once, at its first use in the process",
            f"unset {_THREADS}, or ask for the same threads in all encoders of a process",
        )
    return int(found)


def _fast_tokenizer(as_json: str, path: Path) -> Any:
    import fastokens

    try:
        return fastokens.Tokenizer.from_json_str(as_json)
    except ValueError as e:
        raise InputError.of(
            f"fastokens cannot read {path}: {e}",
            "it knows fewer kinds of tokenizers than HF tokenizers",
            "data.build.tokenizer_backend=reference",
        ) from e


def _shortened(text: str, position: int = 0, width: int = 60) -> str:
    """Return the repr of a text, or of the part of a long one around `position`."""
    if len(text) <= 2 * width:
        return repr(text)
    start = max(0, position - width)
    return f"{text[start : start + 2 * width]!r} (from character {start} of {len(text):,})"
