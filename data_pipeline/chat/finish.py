"""The manifest of a corpus of conversations, and what the user is told of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from data_pipeline.chat.packed import Packed, Split, reasons_told
from data_pipeline.chat.rendered import TOO_LONG, Rendered
from data_pipeline.chat.stages import Assembled, Checked, HeldOut
from data_pipeline.chat.template import Template, renderer_of
from data_pipeline.manifest_parts import (
    Tallies,
    check_chain,
    common,
    dropped_entry,
    file_entries,
    settings,
    split_entry,
)
from data_pipeline.origins import origins_of
from data_pipeline.readers.columns import key_of
from data_pipeline.readers.ingest import CHAT_TALLIES, Listed, Read
from data_pipeline.report.dropped import warnings_of
from data_pipeline.schema import Tally
from data_pipeline.sealing import Finished, seal
from data_pipeline.shuffle.frequencies import counts_file
from data_pipeline.shuffle.shards import Written
from data_pipeline.tasks.origins import Origins
from data_pipeline.tasks.work import Output, Result, Work
from loopcoder.chat.unusable import REASONS, fix_of
from loopcoder.config.mixture import CHAT
from loopcoder.data.corpus import UNIGRAM_ENTROPY
from loopcoder.data.manifest import MANIFEST
from loopcoder.data.places import CHAT_TEMPLATE, HELD_OUT
from loopcoder.data.unigram import unigram_entropy
from loopcoder.errors import counted

MUCH_PADDING = 0.02
"""Share of the sequences that is worth a word."""
_ASIDE = {TOO_LONG, "nothing_to_train"}
"""Reasons for which conversations are left out as they should be, or that have a line of their
own."""
_SETTINGS = ("chat", "near_dedup", "decontaminate")


def finish(work: Work, kinds: Sequence[type[Result]]) -> Output:
    """Complete the folder of the corpus, and seal it with its manifest.

    Args:
        work: All stages before this one are done.
        kinds: Of these stages, in their order.

    Raises:
        InputError: the corpus is not what it should be.
    """
    manifest = seal(work, partial(_manifest, work, kinds))
    told = [
        *in_words(manifest),
        *(f"warning: {warning}" for warning in warnings_of(manifest["origins"])),
    ]
    return Output(Finished(told), files=[work.corpus / MANIFEST])


def in_words(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a user should know of a corpus of conversations, a line each."""
    packed, chat = manifest["packed"], manifest["chat"]
    train, lengths = chat["train"], chat["percentiles"]
    length = packed["seq_length"]
    yield (
        f"{counted(train['conversations'], 'conversation')} with {train['turns']:,} messages in "
        f"{counted(packed['sequences'], 'sequence')} of {length:,} tokens, "
        f"{packed['padding']:.2%} of them padding; {packed['trained']:.1%} of the tokens are "
        f"trained; {counted(chat['val']['conversations'], 'conversation')} held out"
    )
    yield "tokens of a conversation: " + ", ".join(
        f"{_percentile(p)} {lengths[p]:,}" for p in lengths
    )
    by_source: dict[str, Counter[str]] = {}
    for row in chat["kinds"]:
        name = f"{row['source']}/{row['origin']}" if row["origin"] else row["source"]
        licence = row["licence"] or "no licence named"
        by_source.setdefault(name, Counter())[licence] += row["conversations"]
    most = sorted(by_source.items(), key=lambda item: (-item[1].total(), item[0]))
    for name, licences in most[:10]:
        shares = ", ".join(f"{licence} {n:,}" for licence, n in licences.most_common(3))
        yield f"{name}: {counted(licences.total(), 'conversation')} ({shares})"
    if len(most) > 10:
        yield f"and {counted(len(most) - 10, 'origin')} more, in {MANIFEST}"
    for stage in manifest["stages"]:
        name, _, source = stage["stage"].partition(" ")
        if stage["drops"] and (name == "ingest" or stage["stage"] == "render"):
            yield from _left_out(stage, source)
    if hidden := chat["left_out_of_text"]:
        yield (
            f"the template writes no {', '.join(hidden)}: a conversation that has any is left out"
        )
    if packed["padding"] > MUCH_PADDING and packed["sequences"] > 1:
        yield (
            f"warning: {packed['padding']:.1%} of the sequences is padding: no "
            f"conversations fill up what others leave of {length:,} tokens; "
            "another data.seq_length may suit them better"
        )
    if dropped := chat["too_long"]:
        yield (
            f"warning: {counted(dropped, 'conversation')} of more than {length:,} tokens left out; "
            + (
                "not even their first turns fit"
                if manifest["config"]["chat"]["too_long"] == "cut"
                else "data.build.chat.too_long=cut keeps their first turns"
            )
        )


def _left_out(stage: Mapping[str, Any], source: str) -> Iterator[str]:
    """Yield what a stage left out, and what to do about the commonest reason.

    Args:
        source: Whose rows the stage reads; "" if it takes those of all.
    """
    what = counted(stage["rows_in"], "row" if source else "conversation")
    of_whom = f" of source {source}" if source else ""
    yield f"left out of {what}{of_whom}: {reasons_told(stage['drops'], stage['notes'])}"
    if mendable := stage["drops"].keys() & (REASONS.keys() - _ASIDE):
        most = max(sorted(mendable), key=lambda reason: stage["drops"][reason])
        fix = fix_of(most, key_of(source)) if source else fix_of(most)
        yield f"what helps against {most}: {fix}"


def _percentile(name: str) -> str:
    return {"50": "median", "100": "longest"}.get(name, f"{name}%")


def _manifest(work: Work, kinds: Sequence[type[Result]]) -> dict[str, Any]:
    packed = work.result(Packed)
    shards = [done.result.written for done in work.all_done(Assembled)]
    held = work.result(HeldOut)
    *trained, trained_held = (done.result.trained for done in work.all_done(Checked))
    splits: dict[Split, tuple[Written, list[Written]]] = {
        "train": (Written.total(shards), shards),
        "val": (held.written, [held.written]),
    }
    sequences = packed.sequences["train"]
    tokens = sequences * work.data.seq_length
    taken = Origins.total(done.result.origins for done in work.all_done(Rendered))
    tallies = _tallies(work)
    rendered = next(tally for tally in tallies if tally.stage == "render")
    return {
        **common(work, kinds),
        "config": settings(work, _SETTINGS),
        "stages": [tally.as_dict() for tally in tallies],
        "origins": origins_of(work, taken, taken),
        "dropped": dropped_entry(
            itertools.chain(
                (done.result.dropped for done in work.all_done(Read)),
                (done.result.dropped for done in work.all_done(Rendered)),
            )
        ),
        "lengths": {CHAT: packed.lengths},
        "labels": packed.labels,
        "packed": {
            "seq_length": work.data.seq_length,
            "sequences": sequences,
            "held_out_sequences": packed.sequences["val"],
            "padding": 1 - packed.counts["train"].tokens / tokens,
            "trained": sum(trained) / tokens,
            "trained_tokens": sum(trained),
            "held_out_trained_tokens": trained_held,
        },
        "chat": {
            "template": CHAT_TEMPLATE,
            "template_xxh3_128": work.result(Template).xxh3_128,
            "left_out_of_text": sorted(renderer_of(work)[0].hides),
            "held_out": HELD_OUT,
            "percentiles": packed.percentiles,
            "too_long": rendered.drops[TOO_LONG],
            **{split: asdict(counts) for split, counts in packed.counts.items()},
            "kinds": _kinds(work, packed),
        },
        "domains": {
            CHAT: {
                split: split_entry(split, total, parts) | {"sequences": packed.sequences[split]}
                for split, (total, parts) in splits.items()
            }
        },
        UNIGRAM_ENTROPY: {CHAT: _unigram_entropy(work)},
        "num_shards": len(shards),
        "files": dict(sorted(file_entries(work, (Assembled, HeldOut, Read, Rendered)))),
    }


def _kinds(work: Work, packed: Packed) -> list[dict[str, Any]]:
    """Return what is of each source, origin and licence, most tokens first; a source may name a
    licence for rows that name none."""
    of_source = {str(source["name"]): source["licence"] for source in work.result(Listed).sources}
    rows = [
        kind._asdict() | {"licence": kind.licence or of_source[kind.source]} | asdict(counts)
        for kind, counts in packed.kinds
    ]
    return sorted(rows, key=lambda row: -row["tokens"])


def _unigram_entropy(work: Work) -> float:
    """Return that of the trained tokens."""
    *train, val = (
        np.load(done.file(path), allow_pickle=False)
        for done, path in zip(work.all_done(Checked), _count_files(work), strict=True)
    )
    return unigram_entropy(np.sum(train, axis=0), val)


def _count_files(work: Work) -> Iterator[Any]:
    for shard in range(len(list(work.all_done(Assembled)))):
        yield counts_file(work, "train", shard)
    yield counts_file(work, "val", 0)


def _tallies(work: Work) -> list[Tally]:
    """Return the sum of the tallies of every step, checked, and checked against each other."""
    tallies = Tallies(work)
    for rendered in work.all_done(Rendered):
        tallies.add(rendered.result.tallies)
    tallies.add([work.result(Packed).tally])
    order = [*CHAT_TALLIES, "dedup", "render", "hold out"]
    found = tallies.total
    check_chain((a, found[a].rows_out, b, found[b].rows_in) for a, b in itertools.pairwise(order))
    return tallies.checked(CHAT_TALLIES)
