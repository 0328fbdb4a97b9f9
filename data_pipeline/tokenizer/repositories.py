"""Documents of repositories as token ids, as those of Qwen2.5-Coder (Hui et al. 2024, 3.2.2).

    <|repo_name|>name\\n <|file_sep|>path\\ncontent <|file_sep|>path\\ncontent ... <|endoftext|>

With fill in the middle one file goes to the end, where a prompt has it:

    ... <|file_sep|>path\\n <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle
    <|im_end|> <|endoftext|>

Nothing is added to a content, which nearly always ends with a line end of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.repositories.layout import apart
from data_pipeline.schema import Document
from data_pipeline.tokenizer.encoder import Encoder
from data_pipeline.tokenizer.fim import (
    Cut,
    Specials,
    Stream,
    cut,
    drawn,
    rearranged,
    spells_a_marker,
)
from loopcoder.config.build import FimConfig

REPO_NAME = "<|repo_name|>"
FILE_SEP = "<|file_sep|>"


@dataclass(frozen=True)
class Separators:
    """Ids of the control tokens that separate what a document of a repository has."""

    repo_name: int
    file_sep: int

    @classmethod
    def of(cls, encoder: Encoder) -> Separators:
        """Look them up.

        Raises:
            InputError: the tokenizer lacks one.
        """
        return cls(encoder.marker(REPO_NAME), encoder.marker(FILE_SEP))


def cut_file(
    files: Sequence[tuple[str, str]], document_id: str, copy: int, rules: FimConfig
) -> tuple[int, Cut] | None:
    """Decide which file of a document is rearranged, and where it is cut; None: none is.

    Every file that is long enough is as likely. A document that spells one of the markers anywhere
    is left alone.

    Args:
        files: (path, content) of each.
        document_id: Of the document.
        copy: See `fim.cut`.
        rules: How often documents are rearranged, and how.
    """
    long_enough = [n for n, (_, text) in enumerate(files) if len(text) >= rules.min_chars]
    if not long_enough or any(spells_a_marker(text) for file in files for text in file):
        return None
    number, _ = drawn(document_id, copy, rules, 2)
    chosen = long_enough[(number * len(long_enough)) >> 64]
    found = cut(files[chosen][1], document_id, copy, rules)
    return None if found is None else (chosen, found)


def encode(
    encoder: Encoder,
    documents: Sequence[Document],
    copies: Sequence[int],
    rules: FimConfig,
    specials: Specials | None,
    separators: Separators,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Encode documents that `repositories.layout.join` made.

    Args:
        encoder: Encodes names, paths and contents; they never become one of the markers.
        documents: The documents.
        copies: The copy of each, see `fim.cut`.
        rules: How often documents are rearranged, and how.
        specials: `Specials.of(encoder)`; None rearranges none.
        separators: `Separators.of(encoder)`.

    Returns:
        The ids of all documents one after the other, and the tokens of each (EOD included).
    """
    stream = Stream()
    for document, copy in zip(documents, copies, strict=True):
        name, files = apart(document)
        found = cut_file(files, document.id, copy, rules) if specials else None
        last = None if found is None else files.pop(found[0])
        stream.add([f"{name}\n"], [(0, separators.repo_name)])
        for path, content in files:
            stream.add([f"{path}\n{content}"], [(0, separators.file_sep)])
        if last is not None and found is not None and specials is not None:
            stream.add([f"{last[0]}\n"], [(0, separators.file_sep)])
            stream.add(*rearranged(last[1], found[1], specials))
        stream.end(encoder.eod_id)
    return stream.encoded(encoder)
