"""Fill in the middle (Bavarian et al. 2022), offline.

    PSM: <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|im_end|> <|endoftext|>
    SPM: <|fim_prefix|><|fim_suffix|> suffix <|fim_middle|> prefix middle <|im_end|> <|endoftext|>

The text is cut, and its pieces are encoded one by one, not its ids: a prompt at inference ends at
any character, also within a token of the whole text, and is encoded alone. Where a document is cut
is a pure function of (document id, copy, seed), so that it depends neither on order nor on the
number of workers, and the second copy of a document is cut elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.tokenizer.encoder import Encoder
from loopcoder.config.build import FimConfig

PREFIX = "<|fim_prefix|>"
MIDDLE = "<|fim_middle|>"
SUFFIX = "<|fim_suffix|>"
END = "<|im_end|>"


@dataclass(frozen=True)
class Specials:
    """Ids of the control tokens of FIM documents."""

    prefix: int
    middle: int
    suffix: int
    end: int

    @classmethod
    def of(cls, encoder: Encoder) -> Specials:
        """Look them up.

        Raises:
            InputError: the tokenizer lacks one.
        """
        return cls(*(encoder.marker(name) for name in (PREFIX, MIDDLE, SUFFIX, END)))


@dataclass(frozen=True)
class Cut:
    """Where a document is cut: text[:start], text[start:stop] (the middle), text[stop:]."""

    start: int
    stop: int
    suffix_first: bool
    """SPM, else PSM."""


def cut(text: str, document_id: str, copy: int, rules: FimConfig) -> Cut | None:
    """Decide about one document; None leaves it as it is.

    Both ends of the middle are uniform over the characters' borders, the outer ones included, so
    that any piece may be empty. A document that spells one of the markers is left alone.

    Args:
        text: The document.
        document_id: Its id, the same in every run.
        copy: 1 for the first time that the document is in the corpus, 2 for the second.
        rules: How often documents are rearranged, and how.
    """
    if len(text) < rules.min_chars or spells_a_marker(text):
        return None
    # the rate, the layout and both ends
    numbers = [n for part in (0, 1) for n in drawn(document_id, copy, rules, part)]
    if numbers[0] >= rules.rate * 2.0**64:
        return None
    start, stop = sorted((number * (len(text) + 1)) >> 64 for number in numbers[2:])
    return Cut(start, stop, numbers[1] < rules.spm_share * 2.0**64)


def spells_a_marker(text: str) -> bool:
    """Tell whether a text has one of the markers as text."""
    return any(marker in text for marker in (PREFIX, MIDDLE, SUFFIX))


def drawn(document_id: str, copy: int, rules: FimConfig, part: int) -> tuple[int, int]:
    """Return two numbers of 64 bits: a pure function of (document id, copy, seed) and `part`."""
    key = f"{rules.seed}\0{copy}\0{document_id}".encode()
    return divmod(xxhash.xxh3_128_intdigest(key, seed=part), 1 << 64)


def apply(
    encoder: Encoder,
    texts: Sequence[str],
    document_ids: Sequence[str],
    copies: Sequence[int],
    rules: FimConfig,
    specials: Specials,
    *,
    domain: str,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Encode documents as `encoder.encode_documents` does, with some of the code rearranged.

    Args:
        encoder: Encodes the pieces; text never becomes one of the markers.
        texts: The documents.
        document_ids: The id of each, see `cut`.
        copies: The copy of each, 1 or more.
        rules: How often documents are rearranged, and how.
        specials: `Specials.of(encoder)`.
        domain: Only documents of `code` are rearranged.

    Returns:
        The ids of all documents one after the other, and the tokens of each (EOD included).
    """
    if domain != "code" or not rules.rate:
        return encoder.encode_documents(texts)
    stream = Stream()
    for text, document_id, copy in zip(texts, document_ids, copies, strict=True):
        found = cut(text, document_id, copy, rules)
        if found is None:
            stream.add([text])
        else:
            stream.add(*rearranged(text, found, specials))
        stream.end(encoder.eod_id)
    return stream.encoded(encoder)


def rearranged(
    text: str, found: Cut, specials: Specials
) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the pieces of a text that is cut, and its control tokens for `Stream.add`."""
    prefix, suffix = text[: found.start], text[found.stop :]
    middle = text[found.start : found.stop]
    if found.suffix_first:
        pieces, before = [suffix, prefix, middle], (0, 0, 1, 3)
    else:
        pieces, before = [prefix, suffix, middle], (0, 1, 2, 3)
    controls = (specials.prefix, specials.suffix, specials.middle, specials.end)
    return pieces, list(zip(before, controls, strict=True))


class Stream:
    """Pieces of text, which are encoded one by one, and the control tokens among them."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        # control tokens: how many pieces come before each, and its id
        self._places: list[int] = []
        self._controls: list[int] = []
        # pieces and control tokens at the end of each document
        self._marks: list[tuple[int, int]] = []

    def add(self, pieces: Sequence[str], controls: Iterable[tuple[int, int]] = ()) -> None:
        """Append pieces.

        Args:
            pieces: Of text; it never becomes a control token.
            controls: How many of these pieces come before each control token, and its id.
        """
        at = len(self._pieces)
        for before, token in controls:
            self._places.append(at + before)
            self._controls.append(token)
        self._pieces += pieces

    def end(self, eod_id: int) -> None:
        """End a document."""
        self.add((), [(0, eod_id)])
        self._marks.append((len(self._pieces), len(self._controls)))

    def encoded(self, encoder: Encoder) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the ids of all documents one after the other, and the tokens of each."""
        ids, ends = encoder.encode_pieces(self._pieces)
        borders = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        # np.insert keeps the order of what goes to the same place
        flat = np.insert(ids, borders[np.array(self._places, dtype=np.int64)], self._controls)
        of_pieces, of_controls = np.array(self._marks, dtype=np.int64).reshape(-1, 2).T
        totals = borders[of_pieces] + of_controls
        return flat, np.diff(totals, prepend=0).astype(np.int32)
