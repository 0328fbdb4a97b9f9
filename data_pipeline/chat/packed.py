"""The plan of a corpus of conversations: what is held out, and what each sequence is made of.

WORK/pack/train.items, train.starts   conversations of every sequence, by their numbers (i8)
WORK/pack/val.items, val.starts       those of the held-out ones

A conversation's number counts those of all chunks, in their order. Memory: some 100 bytes for each
conversation, so that 5 million take half a GB; their tokens stay on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.chat.packing import Packing, pack
from data_pipeline.chat.rendered import ENTRY, SPELLS, TOO_LONG, Kind, Rendered, files_of
from data_pipeline.readers.conversations import LANGUAGE
from data_pipeline.readers.verdict import MAX_BAD_FRACTION, MIN_ROWS
from data_pipeline.schema import Tally
from data_pipeline.tasks.work import Output, Result, Work
from loopcoder.chat.unusable import fix_of
from loopcoder.config.mixture import CHAT
from loopcoder.data.labels import Label
from loopcoder.errors import InputError, counted
from loopcoder.storage.files import write_bytes

Split = Literal["train", "val"]
_PERCENTILES = (1, 10, 25, 50, 75, 90, 99, 100)
_MOST_LABELS = 50
"""Origins that have a label of their own."""
_MOST_TOKENS = 5
"""Special tokens that a message names."""


@dataclass(frozen=True)
class Counts:
    """What conversations come to."""

    conversations: int = 0
    turns: int = 0
    """Messages, of everybody."""
    tokens: int = 0
    """With the EOD of each."""
    trained: int = 0
    """Tokens that are learned as labels."""

    @classmethod
    def of(cls, entries: NDArray[np.void]) -> Counts:
        sums = (int(entries[name].sum(dtype=np.int64)) for name in ("turns", "length", "trained"))
        return cls(len(entries), *sums)


@dataclass(frozen=True)
class Packed(Result):
    """What is in the sequences."""

    stage: ClassVar[str] = "pack"
    tally: Tally
    """Of holding out."""
    sequences: dict[Split, int]
    counts: dict[Split, Counts]
    kinds: list[tuple[Kind, Counts]]
    """Of each kind of conversation, those that are held out included."""
    labels: list[Label]
    label_of: dict[str, int]
    """By `SOURCE/ORIGIN`."""
    percentiles: dict[str, int]
    """Tokens of a conversation, by percentile."""
    lengths: list[int]
    """Conversations with 2^i to 2^(i+1) - 1 tokens."""


@dataclass(frozen=True)
class Entries:
    """All conversations of a build."""

    entries: NDArray[np.void]
    """Of the type ENTRY; `kind` is that of its chunk. [conversations]"""
    bases: NDArray[np.int64]
    """Number of each chunk's first conversation, and of all. [chunks + 1]"""
    kinds: list[list[Kind]]
    """Of each chunk."""

    @classmethod
    def of(cls, work: Work) -> Entries:
        """Read them.

        Raises:
            InputError: a file is missing or was changed.
        """
        parts, kinds = [np.zeros(0, dtype=ENTRY)], []
        for chunk, done in enumerate(work.all_done(Rendered)):
            parts.append(np.fromfile(done.file(files_of(work, chunk)[2]), dtype=ENTRY))
            kinds.append(done.result.kinds)
        bases = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.concatenate(parts), bases, kinds)

    def numbers_by(self, number_of: Mapping[Kind, int]) -> NDArray[np.int64]:
        """Return a number for each conversation, by its kind. [conversations]"""
        found = np.empty(len(self.entries), dtype=np.int64)
        for chunk, kinds in enumerate(self.kinds):
            here = slice(int(self.bases[chunk]), int(self.bases[chunk + 1]))
            table = np.array([number_of[kind] for kind in kinds], dtype=np.int64)
            found[here] = table[self.entries["kind"][here]]
        return found


def plan(work: Work, _: int) -> Output:
    """Hold out and pack."""
    _judge(work)
    all_of_them = Entries.of(work)
    entries = all_of_them.entries
    held = _held_out(work, entries)
    files: list[Path] = []
    sequences: dict[Split, int] = {}
    splits: dict[Split, NDArray[np.bool_]] = {"train": ~held, "val": held}
    for split, chosen in splits.items():
        numbers = np.flatnonzero(chosen)
        lengths, hashes = (entries[name][chosen] for name in ("length", "content"))
        packing = pack(lengths, hashes, work.data.seq_length)
        sequences[split] = packing.sequences
        files += _write(work, split, packing._replace(items=numbers[packing.items]))
    shards = num_shards(work)
    if shards > sequences["train"]:
        raise InputError.of(
            f"data.build.shards={shards}, and the conversations make up "
            f"{counted(sequences['train'], 'sequence')} of {work.data.seq_length} tokens",
            "every shard has a sequence",
            "data.build.shards=null",
        )
    tally = Tally("hold out", rows_in=len(entries), rows_out=int((~held).sum()))
    tally.drops["held_out"] = int(held.sum())
    kinds = sorted({kind for of_chunk in all_of_them.kinds for kind in of_chunk})
    counts = _by_number(entries, all_of_them.numbers_by({k: i for i, k in enumerate(kinds)}))
    labels, label_of = _labels(dict(zip(kinds, counts, strict=True)))
    result = Packed(
        tally=tally,
        sequences=sequences,
        counts={"train": Counts.of(entries[~held]), "val": Counts.of(entries[held])},
        kinds=list(zip(kinds, counts, strict=True)),
        labels=labels,
        label_of=label_of,
        percentiles=_percentiles(entries["length"]),
        lengths=np.bincount(np.log2(entries["length"]).astype(np.int64)).tolist(),
    )
    return Output(result, files=files)


def num_shards(work: Work) -> int:
    """Return how many training shards there are."""
    return work.data.build.shards or 1


def packing_of(work: Work, split: Split) -> Packing:
    """Return what the sequences of a split are made of.

    Raises:
        InputError: a file is missing or was changed.
    """
    done = work.done(Packed)
    return Packing(*(np.fromfile(done.file(path), dtype="<i8") for path in _paths(work, split)))


def name_of(kind: Kind) -> str:
    """Return the source of a kind of conversations, with its origin if it has one."""
    return f"{kind.source}/{kind.origin}" if kind.origin else kind.source


def reasons_told(drops: Mapping[str, int], notes: Mapping[str, int]) -> str:
    """Return in words why conversations were not rendered, the commonest reason first.

    Args:
        notes: Of the same tally.
    """
    spelled = Counter(
        {name.removeprefix(SPELLS): n for name, n in notes.items() if name.startswith(SPELLS)}
    )
    tokens = ", ".join(token for token, _ in spelled.most_common(_MOST_TOKENS))
    return ", ".join(
        f"{n:,} {reason}" + (f" ({tokens})" if reason == "special_token_in_text" else "")
        for reason, n in Counter(drops).most_common()
    )


def _judge(work: Work) -> None:
    """Raise InputError if too many conversations could not be rendered."""
    total = Tally("render")
    for done in work.all_done(Rendered):
        total.add(done.result.tallies[-1])
    chosen = (TOO_LONG, "nothing_to_train")
    bad = sum(n for reason, n in total.drops.items() if reason not in chosen)
    told = reasons_told(total.drops, total.notes)
    most = next((reason for reason, _ in total.drops.most_common(1)), "")
    if total.rows_in >= MIN_ROWS and bad > MAX_BAD_FRACTION * total.rows_in:
        raise InputError.of(
            f"{bad:,} of {counted(total.rows_in, 'conversation')} cannot be rendered: {told}",
            f"more than {MAX_BAD_FRACTION:.0%} mean a template that does not suit them, or texts "
            "that a template has written already",
            fix_of(max(sorted(total.drops.keys() - set(chosen)), key=lambda one: total.drops[one])),
        )
    if total.rows_out < 2:
        raise InputError.of(
            f"{counted(total.rows_out, 'conversation')} can be trained on"
            + (f" ({told} of {total.rows_in:,})" if told else ""),
            "one is held out, and one at least is trained on",
            f"a larger data.seq_length than {work.data.seq_length}, or data.build.chat.too_long=cut"
            if total.drops[TOO_LONG]
            else (fix_of(most) if most else "more conversations"),
        )


def _held_out(work: Work, entries: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return which conversations are held out: by their content, one at least. [conversations]"""
    fraction = work.data.build.val_fraction
    contents = entries["content"]
    held: NDArray[np.bool_] = contents < np.uint64(int(fraction * 2**64))
    if not held.any():
        held = contents == contents.min()
    if held.all():
        raise InputError.of(
            f"all of {counted(len(entries), 'conversation')} are held out",
            f"data.build.val_fraction={fraction:g} of them are, by the hash of their content",
            "a smaller data.build.val_fraction, or more conversations",
        )
    return held


def _by_number(entries: NDArray[np.void], numbers: NDArray[np.int64]) -> list[Counts]:
    """Return what the conversations with each number come to."""
    conversations = np.bincount(numbers)
    sums = [np.bincount(numbers, entries[name]) for name in ("turns", "length", "trained")]
    return [Counts(*map(int, row)) for row in zip(conversations, *sums, strict=True)]


def _labels(kinds: Mapping[Kind, Counts]) -> tuple[list[Label], dict[str, int]]:
    """Return the labels of conversations, by source and origin, and the number of each name; the
    rarest of very many origins have that of their source."""
    tokens: Counter[str] = Counter()
    source_of: dict[str, str] = {}
    for kind, counts in kinds.items():
        tokens[name_of(kind)] += counts.tokens
        source_of[name_of(kind)] = kind.source
    frequent = set(sorted(tokens, key=lambda name: (-tokens[name], name))[:_MOST_LABELS])
    shown = {name: name if name in frequent else source_of[name] for name in tokens}
    number = {name: i for i, name in enumerate(sorted(set(shown.values())))}
    labels = [Label(CHAT, LANGUAGE, name) for name in number]
    return labels, {name: number[shown[name]] for name in shown}


def _percentiles(lengths: NDArray[np.integer]) -> dict[str, int]:
    found = np.percentile(lengths, _PERCENTILES, method="inverted_cdf").astype(int).tolist()
    return {str(p): n for p, n in zip(_PERCENTILES, found, strict=True)}


def _paths(work: Work, split: Split) -> list[Path]:
    return [work.folder / "pack" / f"{split}.{name}" for name in ("items", "starts")]


def _write(work: Work, split: Split, packing: Packing) -> list[Path]:
    paths = _paths(work, split)
    paths[0].parent.mkdir(exist_ok=True)
    for path, numbers in zip(paths, packing, strict=True):
        write_bytes(path, numbers.astype("<i8").tobytes())
    return paths
