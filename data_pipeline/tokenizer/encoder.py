"""Byte-level BPE: training, import, and encoding in which text never becomes a control token.

HF `tokenizers` is the reference. `fastokens` encodes the same ids some hundred times faster; that
they are the same is probed on an adversarial corpus whenever an Encoder is made.
"""

from __future__ import annotations

import json
import os
import random
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

from loopcoder.config.build import MIN_VOCAB_SIZE, NUM_SPECIAL_TOKENS
from loopcoder.errors import InputError, Problem

Backend = Literal["fast", "reference"]

EOD = "<|endoftext|>"

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
        texts: What it is trained on; read once.
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

    def __init__(
        self,
        path: Path,
        *,
        backend: Literal["auto", "fast", "reference"] = "auto",
        threads: int | None = None,
    ) -> None:
        """Read tokenizer.json and probe it.

        Args:
            path: The file.
            backend: What encodes: `fast` is fastokens, `reference` HF tokenizers, `auto` fastokens
                where it is installed. Which of them it is stands in `self.backend`.
            threads: Threads of fastokens, which fixes them for the process at its first use; by
                default what FASTOKENS_BPE_THREADS says, else 1, as wanted where processes are the
                unit of parallelism.

        Raises:
            InputError: the file is unreadable, no byte-level BPE, loses text, or has no
                end-of-document token; fastokens is asked for and missing, or encodes differently.
        """
        self.path = path
        self.spec = _read_spec(path)
        self.markers: dict[str, int] = {
            t["content"]: int(t["id"])
            for t in self.spec["added_tokens"]
            if t["special"] or _CONTROL.fullmatch(t["content"])
        }
        """Ids of the tokens that text never becomes, by their names."""
        vocab: dict[str, int] = self.spec["model"]["vocab"]
        eod_id = self.markers.get(EOD, vocab.get(EOD))
        if eod_id is None:
            raise InputError.of(
                f"{path} has no token {EOD}",
                "every document of the corpus ends with it",
                f"add {EOD} to its added_tokens, or data.build.tokenizer=train",
            )
        self.eod_id = eod_id
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
        """What encodes: `fast` or `reference`."""
        self.threads = _fix_threads(threads) if self.backend == "fast" else None
        self._fast: Any = _fast_tokenizer(as_json, path) if self.backend == "fast" else None
        self.lossless = self._probe()
        """Whether ids give back the text to the byte; else the tokenizer has a normaliser."""

    @property
    def engine(self) -> str:
        """The package that encodes and its version."""
        package = "fastokens" if self.backend == "fast" else "tokenizers"
        return f"{package} {version(package)}"

    @cached_property
    def _pieces(self) -> list[bytes]:
        """UTF-8 that each id stands for, in full for markers; empty for unused ids."""
        table = _byte_of_char()
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
                "it would become text that a model cannot tell from what documents say",
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
                f"{self.path} encodes some plain text as {EOD}",
                "a document would end in its middle",
                "use a tokenizer whose EOD is an added token, or data.build.tokenizer=train",
            )
        return ids, ends

    def _encode_fast(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        # uint32 ids and uint64 offsets in bytes objects: no Python object a token
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
            f"{self.path} has something that it does not do as HF tokenizers do",
            "data.build.tokenizer_backend=reference",
        )


def resolve_backend(choice: str) -> Backend:
    """Return what `auto`, `fast` or `reference` means on this machine.

    Raises:
        InputError: fastokens is asked for and not installed, or there is no such choice.
    """
    if choice not in ("auto", "fast", "reference"):
        raise InputError.of(
            f"backend is {choice!r}",
            "fastokens and HF tokenizers are what there is",
            "data.build.tokenizer_backend=auto, fast or reference",
        )
    installed = find_spec("fastokens") is not None
    if choice == "fast" and not installed:
        raise InputError.of(
            "backend is 'fast'",
            "the package fastokens is not installed",
            "pip install 'loopcoder[data]', or data.build.tokenizer_backend=reference",
        )
    return "fast" if choice != "reference" and installed else "reference"


def _fix_threads(threads: int | None) -> int:
    """Set the environment variable that fastokens reads once; return the threads."""
    found = os.environ.setdefault(_THREADS, str(threads or 1))
    if not found.isdecimal() or int(found) < 1 or threads not in (None, int(found)):
        raise InputError.of(
            f"{_THREADS} is {found!r}" + (f", but threads is {threads}" if threads else ""),
            "fastokens reads it once, at its first use in the process",
            f"unset {_THREADS}, or the same threads for all encoders of a process",
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


_BLANKS = (0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x3000)
_PROBE_FIXED = (
    "",
    "def loop(x: int) -> int:\n\treturn x**2 + 0x1F  # it's 'quoted'; we'LL see\r\n\n\n    pass\n",
    '#include <a.h>\n#define M(x) ((x)<<3)\nint main(){for(int i=0;i<10;++i)printf("%d\\n",i);}',
    "I'm sure they've said we'd DON'T; naïve café façade. “Quotes” — dashes…",
    "漢字とかなカナ混じり文。中文字符没有空格\uff0c한국어 텍스트 ภาษาไทย हिन्दी १२३ ٣٤٥ Ⅷ ½ ²",
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇩🇪🇫🇷 1\ufe0f\u20e3 ☺\ufe0f a👩\u200d💻b",
    "שנה טבה \u202eמערב abc\u202c العربية ١٢٣ \u200f.",
    "e\u0301 a\u0308\u0323 \u0301start Z\u0351\u036b\u0343\u036a\u0302 क्षि ก็ Å\u212b ﬁ ﷺ",
    "".join(map(chr, range(0xA0))) + "a\x00b\x00\x00c\x7f\x1b[0m",
    "".join(f"x{chr(c)}y {chr(c)}{chr(c)}z" for c in (*range(9, 14), *range(28, 33), 0x85, 0xA0)),
    "".join(f"x{chr(c)}y {chr(c)}{chr(c)}" for c in _BLANKS),
    "a\rb\r\rc\r\n\rd\n\re \r f\r",
    "".join(f"{b * n}{end}" for b in " \t\n\r" for n in (*range(1, 20), 300) for end in "a "),
    " \t \n \t\n\n  \r\n \u3000 \xa0 \n",
    " " * 4096,
    "0 12 345 6789 01234567890123456789 3.14e-10 1_000_000 ٠١٢ \U0001d7d8\U0001d7d9 ①②",
    # noncharacters, and text that once was UTF-8 read as Latin-1
    "\ufffd\ufffe\uffff\U0010ffff\U0001fffe\ue000\ufeffÃ©â\u201a¬ï¿½\xc0\x80\xed\xff\ud7ff\U00010000",
    '!!!???...;;;---===###@@@$$$%%%^^^&&&***(((()))){{{}}}[[[]]]|||\\\\\\///<<<>>>~~~```"""',
    "a" * 5000 + "ab" * 2000 + "漢" * 1000 + "=" * 5000,
)
_PROBE_CLASSES = (
    "abcdefghijklmnopqrstuvwxyzABCDEF",
    "  \t\n\r",
    "0123456789",
    "äßñçœ\u0301\u0327",
    "漢字かな한글",
    "🙂🜁👩\u200d\ufe0f",
    "\u2028\x00\ufeff\xad\x85\xa0",
    ".,;:'\"()[]{}<>|/\\-_=+*&^%$#@!~`",
    "'st're'll",
)


def probe_texts(spec: dict[str, Any]) -> list[str]:
    """Return the adversarial corpus for a tokenizer.json: fixed texts, its tokens, and noise.

    It is the same for the same tokenizer, about 0.2 MB.
    """
    rng = random.Random(0)
    names = [t["content"] for t in spec["added_tokens"]] + list(SPECIAL_TOKENS)
    spelled = [
        "".join(names),
        " ".join(names),
        "".join(f"a{n}b  {n}  {n[:-1]}\n{n}\n" for n in names),
    ]
    table = _byte_of_char()
    tokens = [
        bytes(map(table.__getitem__, token))
        for token in spec["model"]["vocab"]
        if table.keys() >= set(token)
    ]
    # tokens in any order: merges compete across their borders
    shuffled = [b"".join(rng.choices(tokens, k=1000)).decode(errors="replace") for _ in range(8)]
    noise = [
        "".join(rng.choice(rng.choice(_PROBE_CLASSES)) for _ in range(rng.randrange(1, 4000)))
        for _ in range(8)
    ]
    words = "".join(rng.choices(_PROBE_CLASSES[0] + _PROBE_CLASSES[2] + '  ,"{}:_', k=70_000))
    return [*_PROBE_FIXED, *spelled, *shuffled, *noise, words]


def _shortened(text: str, position: int = 0, width: int = 60) -> str:
    """Return the repr of a text, of a long one only what is around `position`."""
    if len(text) <= 2 * width:
        return repr(text)
    start = max(0, position - width)
    return f"{text[start : start + 2 * width]!r} (from character {start} of {len(text):,})"


def _read_spec(path: Path) -> dict[str, Any]:
    fix = "data.build.tokenizer=train, or the path of a tokenizer.json of a byte-level BPE"
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
    missing = table.keys() - spec["model"]["vocab"].keys()
    if missing:
        raise InputError.of(
            f"{path} has no tokens for {len(missing)} of the 256 bytes",
            "text with one of them would vanish without a word",
            fix,
        )
    # that of the decoder says nothing about encoding
    if '"add_prefix_space": true' in json.dumps(spec.get("pre_tokenizer")):
        raise InputError.of(
            f"{path} puts a blank before every text",
            "the ids would stand for a byte that no document has",
            "add_prefix_space: false in its pre_tokenizer",
        )
    return dict(spec)
