"""The last stages of a corpus of conversations: write the sequences, check them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data_pipeline.chat.packed import Entries, Packed, Split, num_shards, packing_of
from data_pipeline.chat.rendered import Rendered, files_of
from data_pipeline.chat.shards import shard_files, write_sequences
from data_pipeline.chat.template import template_file
from data_pipeline.shuffle.frequencies import counts_file, save_counts
from data_pipeline.shuffle.shards import Written
from data_pipeline.shuffle.validate import label_problems, packing_problems, pair_problems
from data_pipeline.tasks.work import Output, Result, Work
from data_pipeline.tokenizer.count import Tokenizer
from loopcoder.config.mixture import CHAT
from loopcoder.data.mask import MASK
from loopcoder.data.places import CHAT_TEMPLATE, HELD_OUT
from loopcoder.data.unigram import count_tokens
from loopcoder.errors import InputError, Problem
from loopcoder.storage.files import whole_file


@dataclass(frozen=True)
class Assembled(Result):
    """A shard of the training sequences."""

    stage: ClassVar[str] = "assemble"
    written: Written


@dataclass(frozen=True)
class HeldOut(Result):
    """What is held out."""

    stage: ClassVar[str] = "hold_out"
    written: Written


@dataclass(frozen=True)
class Checked(Result):
    """A shard is sound: those of training first, then that of what is held out."""

    stage: ClassVar[str] = "validate"
    trained: int
    """Tokens that are learned as labels."""


def assemble(work: Work, shard: int) -> Output:
    """Write one shard of the training sequences."""
    total, shards = work.result(Packed).sequences["train"], num_shards(work)
    chosen = range(total * shard // shards, total * (shard + 1) // shards)
    prefix = _prefix(work, "train", shard)
    written = write_sequences(work, "train", chosen, prefix)
    return Output(Assembled(written), files=shard_files(prefix))


def hold_out(work: Work, _: int) -> Output:
    """Write the sequences that are held out, their conversations, and the template."""
    prefix = _prefix(work, "val", 0)
    sequences = work.result(Packed).sequences["val"]
    written = write_sequences(work, "val", range(sequences), prefix)
    lines = work.corpus / HELD_OUT
    _write_conversations(work, lines)
    shutil.copyfile(template_file(work), work.corpus / CHAT_TEMPLATE)
    files = [*shard_files(prefix), lines, work.corpus / CHAT_TEMPLATE]
    return Output(HeldOut(written), files=files)


def num_checked(work: Work) -> int:
    """Return how many shards there are in all."""
    return num_shards(work) + 1


def check(work: Work, index: int) -> Output:
    """Refuse a shard whose content is not sound; count its trained tokens while it is read."""
    is_train = index < num_shards(work)
    done = work.done(Assembled, index) if is_train else work.done(HeldOut)
    for name in done.files:
        done.file(done.folder / name)
    split: Split = "train" if is_train else "val"
    number = index if is_train else 0
    prefix = _prefix(work, split, number)
    written, tokenizer = done.result.written, work.result(Tokenizer)
    named = (written.documents, written.tokens)
    fix = f"delete {work.folder} and start the same command again"
    problems: list[Problem] = [
        *pair_problems(prefix, named, tokenizer.vocab_size, tokenizer.eod_id, fix),
        *packing_problems(prefix, named, work.data.seq_length, fix),
        *label_problems(prefix, named, work.result(Packed).labels, CHAT, fix),
    ]
    if problems:
        raise InputError(problems)
    mask = prefix.with_name(prefix.name + MASK)
    ids = prefix.with_name(f"{prefix.name}.bin")
    counts = count_tokens(ids, tokenizer.vocab_size, mask=mask)
    path = counts_file(work, split, number)
    save_counts(path, counts)
    return Output(Checked(int(counts.sum())), files=[path])


def _prefix(work: Work, split: Split, shard: int) -> Path:
    name = f"{CHAT}-{shard:05}" if split == "train" else CHAT
    return work.corpus / split / name


def _write_conversations(work: Work, path: Path) -> None:
    """Write the conversations that are held out, one per line."""
    entries = Entries.of(work)
    items = packing_of(work, "val").items
    held = set(entries.entries["content"][items].tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as out:
        for chunk, done in enumerate(work.all_done(Rendered)):
            with open(done.file(files_of(work, chunk)[3]), "rb") as lines:
                for line in lines:
                    content, text = json.loads(line)
                    if content in held:
                        out.write(text.encode() + b"\n")
