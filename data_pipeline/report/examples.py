"""Some documents of a corpus to look at, drawn at random and decoded as training reads them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.report.values import Manifest, as_list, at
from loopcoder.data.indexed import read_document
from loopcoder.data.mask import read_mask
from loopcoder.data.places import TOKENIZER
from loopcoder.errors import counted
from loopcoder.page import Html, element, join

_MOST_TOKENS = 1200
"""Of a document that are decoded."""
_LINES, _CHARS = 12, 100
"""Of a document that are shown, and of a line."""
_IN_REPORT = 3
TRAINED = "\u27e6", "\u27e7"
"""Around what is trained of a conversation: double square brackets."""


@dataclass(frozen=True)
class Example:
    """The beginning of a document."""

    place: str
    """Where it is: shard and number, from 0."""
    language: str | None
    """None where the domain has several: a document of a corpus does not carry its own."""
    text: str
    """Shortened to some lines; special tokens are spelt out."""


def random_documents(
    folder: Path, manifest: Manifest, domain: str, number: int, seed: int
) -> list[Example]:
    """Draw documents to train on, each as likely as any other.

    Raises:
        OSError, ValueError, LookupError, TypeError: the folder or the manifest is damaged.
    """
    train = manifest["domains"][domain]["train"]
    ends = list(accumulate(int(shard["documents"]) for shard in train["shards"]))
    total = ends[-1] if ends else 0
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    vocab_size, eod = manifest["tokenizer"]["vocab_size"], manifest["tokenizer"]["eod_id"]
    languages = list(train.get("languages") or {})
    found = []
    for drawn_one in sorted(random.Random(seed).sample(range(total), min(number, total))):
        shard = next(i for i, end in enumerate(ends) if drawn_one < end)
        prefix = train["shards"][shard]["prefix"]
        index = drawn_one - (ends[shard - 1] if shard else 0)
        ids = read_document(folder / prefix, index, vocab_size=vocab_size, most=_MOST_TOKENS)
        whole = len(ids) > 0 and ids[-1] == eod
        read = ids[:-1] if whole else ids
        if "packed" in manifest:
            mask = read_mask(folder / prefix, index, most=len(read))
            text = _marked(tokenizer, read, mask)
        else:
            text = tokenizer.decode(read.tolist(), skip_special_tokens=False)
        language = str(languages[0]) if len(languages) == 1 else None
        found.append(Example(f"{prefix} {index}", language, shortened(text, whole=whole)))
    return found


def _marked(tokenizer: Tokenizer, ids: NDArray[Any], trained: NDArray[np.bool_]) -> str:
    """Return the text of ids; what is trained stands between TRAINED."""
    borders = np.flatnonzero(np.diff(trained, prepend=False, append=False)).tolist()
    parts = []
    for start, stop in pairwise([0, *borders, len(ids)]):
        text = tokenizer.decode(ids[start:stop].tolist(), skip_special_tokens=False)
        is_trained = stop > start and bool(trained[start])
        parts.append(f"{TRAINED[0]}{text}{TRAINED[1]}" if is_trained else text)
    return "".join(parts)


def shortened(text: str, *, whole: bool, most: int = _LINES) -> str:
    """Return the first lines of a text, and how many were left out.

    Args:
        text: What is known of it.
        whole: It is all of the text.
        most: Lines to return.
    """
    lines = text.splitlines()
    shown = [line if len(line) <= _CHARS else f"{line[:_CHARS]} ..." for line in lines[:most]]
    if len(lines) > most or not whole:
        left = len(lines) - len(shown)
        shown.append(f"... ({counted(left, 'line') if whole else f'{left:,} or more lines'})")
    return "\n".join(shown)


def drawn(folder: Path, manifest: Manifest) -> dict[str, list[Example]]:
    """Return some documents of every domain, the same ones each time; {} without a whole corpus."""
    if not (folder / TOKENIZER).is_file():
        return {}
    try:
        domains = list(manifest["domains"])
        return {d: random_documents(folder, manifest, d, _IN_REPORT, seed=0) for d in domains}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def origin(manifest: Manifest, domain: str) -> str:
    """Return what a corpus knows about the documents of a domain: languages and sources."""
    stats = at(manifest, "domains", domain, "train")
    languages = at(stats, "languages")
    count = at(stats, "documents")
    parts = [counted(count, "document")] if count else []
    if isinstance(languages, Mapping) and languages:
        parts.append(", ".join(_shares(languages)))
    sources = [
        str(source.get("name"))
        for source in as_list(at(manifest, "sources"))
        if source.get("domain") in (None, "auto", domain)
    ]
    return "; ".join([*parts, *([f"from {', '.join(sources)}"] if sources else [])])


def _shares(languages: Mapping[str, Any], most: int = 5) -> Iterator[str]:
    """Yield the languages with most tokens and their shares."""
    tokens = {str(name): at(stats, "tokens") or 0 for name, stats in languages.items()}
    total = sum(tokens.values())
    ordered = sorted(tokens, key=lambda name: (-tokens[name], name))
    for name in ordered[:most]:
        yield f"{name} {tokens[name] / total:.0%}" if total else name
    if len(ordered) > most:
        yield f"{len(ordered) - most} more"


def examples(shown: Mapping[str, Sequence[Example]]) -> Html:
    """Return documents of every domain as a part of the report."""
    parts = [
        element("p", "Drawn at random; `loopcoder data show DIR` draws others.", class_="soft")
    ]
    for domain, found in shown.items():
        parts.append(element("h3", domain[:1].upper() + domain[1:]))
        for example in found:
            name = example.place + (f", {example.language}" if example.language else "")
            parts += [element("p", name, class_="soft"), element("pre", example.text)]
    return join(parts)
