"""Fill in the middle (Bavarian et al. 2022), offline; and files of a repository as one document.

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
REPO_NAME = "<|repo_name|>"
FILE_SEP = "<|file_sep|>"


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
    if len(text) < rules.min_chars or any(m in text for m in (PREFIX, MIDDLE, SUFFIX)):
        return None
    key = f"{rules.seed}\0{copy}\0{document_id}".encode()
    # four numbers of 64 bits: the rate, the layout and both ends
    numbers = [
        number
        for part in (0, 1)
        for number in divmod(xxhash.xxh3_128_intdigest(key, seed=part), 1 << 64)
    ]
    if numbers[0] >= rules.rate * 2.0**64:
        return None
    start, stop = sorted((number * (len(text) + 1)) >> 64 for number in numbers[2:])
    return Cut(start, stop, numbers[1] < rules.spm_share * 2.0**64)


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
    pieces: list[str] = []
    # control tokens: how many pieces come before each, and its id
    places: list[int] = []
    controls: list[int] = []
    # pieces and control tokens at the end of each document
    marks: list[tuple[int, int]] = []
    for text, document_id, copy in zip(texts, document_ids, copies, strict=True):
        found = cut(text, document_id, copy, rules)
        at = len(pieces)
        if found is None:
            pieces.append(text)
        else:
            prefix, suffix = text[: found.start], text[found.stop :]
            middle = text[found.start : found.stop]
            if found.suffix_first:
                pieces += [suffix, prefix, middle]
                places += [at, at, at + 1, at + 3]
            else:
                pieces += [prefix, suffix, middle]
                places += [at, at + 1, at + 2, at + 3]
            controls += [specials.prefix, specials.suffix, specials.middle, specials.end]
        places.append(len(pieces))
        controls.append(encoder.eod_id)
        marks.append((len(pieces), len(controls)))
    ids, ends = encoder.encode_pieces(pieces)
    borders = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    # np.insert keeps the order of what goes to the same place
    flat = np.insert(ids, borders[np.array(places, dtype=np.int64)], controls)
    of_pieces, of_controls = np.array(marks, dtype=np.int64).reshape(-1, 2).T
    totals = borders[of_pieces] + of_controls
    return flat, np.diff(totals, prepend=0).astype(np.int32)


def pack_repository(
    encoder: Encoder, name: str, files: Iterable[tuple[str, str]], max_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Encode the files of a repository as one document, or as few as the cap allows.

        <|repo_name|>name<|file_sep|>path\\ncontent<|file_sep|>path\\ncontent...<|endoftext|>

    Args:
        encoder: Encodes names and contents; text never becomes one of the markers.
        name: Of the repository; each document begins with it.
        files: (path, content) in the order wanted, best with imported files before their users.
        max_tokens: Files join a document up to this length, EOD included. One that is longer alone
            stays whole in a document of its own: nothing is cut or lost.

    Returns:
        The ids of all documents one after the other, and the tokens of each (EOD included).

    Raises:
        InputError: the tokenizer lacks a marker.
    """
    repo_name, file_sep = encoder.marker(REPO_NAME), encoder.marker(FILE_SEP)
    ids, ends = encoder.encode_pieces([name, *(f"{path}\n{content}" for path, content in files)])
    head, *bodies = np.split(ids, ends[:-1])
    documents: list[list[NDArray[np.int32]]] = []
    room = 0
    for body in bodies:
        part = np.insert(body, 0, file_sep)
        if not documents or len(part) > room:
            documents.append([np.insert(head, 0, repo_name)])
            room = max_tokens - len(head) - 2
        documents[-1].append(part)
        room -= len(part)
    eod = np.array([encoder.eod_id], dtype=np.int32)
    joined = [np.concatenate([*document, eod]) for document in documents]
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *joined])
    return flat, np.array([len(document) for document in joined], dtype=np.int32)
