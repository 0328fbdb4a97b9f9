"""Conversations of a chunk as tokens: rendered, encoded, cut or left out where they are too long.

WORK/chat/00003.ids       ids of all conversations one after the other, each with its EOD
WORK/chat/00003.mask      a byte for each: whether it is trained
WORK/chat/00003.entries   what is known of each conversation
WORK/chat/00003.held      those that may be held out, as JSON lines
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.chat.template import renderer_of
from data_pipeline.chat.tokens import prepared, tokenise
from data_pipeline.dedup import stages as dedup
from data_pipeline.readers.conversations import conversation_of, text_of, told_apart_by
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.dropped import DropList, Dropped
from data_pipeline.tasks.origins import Origins
from data_pipeline.tasks.work import Output, Result, Work
from data_pipeline.tokenizer.changes import note_changes
from data_pipeline.tokenizer.count import Tokenizer, encoder_of
from loopcoder.chat.conversation import Conversation
from loopcoder.chat.render import Renderer
from loopcoder.chat.unusable import Unusable
from loopcoder.config.chat import ChatConfig
from loopcoder.data.indexed import token_dtype
from loopcoder.storage.files import whole_file, write_bytes

TOO_LONG, END_INSIDE = "too_long", "end_of_document_inside"
_MOST_KINDS = 200
"""Origins and licences of a chunk that are kept apart."""
OTHER = "other"
SPELLS = "spells "
"""Note on a special token because of which conversations were left out; the token follows."""

ENTRY = np.dtype(
    [
        ("content", "<u8"),
        ("length", "<i4"),
        ("trained", "<i4"),
        ("bytes", "<i4"),
        ("turns", "<u2"),
        ("kind", "<u2"),
    ]
)
"""Of a conversation: hash of its content, tokens with its EOD, those that are trained, UTF-8 of its
canonical form, messages, and its kind (index in `Rendered.kinds`)."""


class Kind(NamedTuple):
    """Where a conversation is from, and what it is under."""

    source: str
    origin: str
    """Within the source, as its row names it; "" for none."""
    licence: str
    """"" for none."""


@dataclass(frozen=True)
class Rendered(Result):
    """What a chunk gives."""

    stage: ClassVar[str] = "render"
    tallies: list[Tally]
    """Of dropping copies, and of rendering."""
    kinds: list[Kind]
    origins: Origins
    """What is kept of each source."""
    dropped: Dropped


class Tokens(NamedTuple):
    """A conversation as it is trained on."""

    ids: NDArray[np.int32]
    """With the EOD that ends it. [tokens]"""
    trained: NDArray[np.bool_]
    """Whether each is learned as a label. [tokens]"""
    conversation: Conversation
    """What they say."""


@dataclass(frozen=True)
class Encoding:
    """How conversations become tokens."""

    renderer: Renderer
    tokenizer: Any
    chat: ChatConfig
    eod_id: int
    most: int
    """Tokens of a sequence."""

    @classmethod
    def of(cls, work: Work) -> Encoding:
        """Return that of a build; raises InputError if a file of it was changed."""
        eod = work.result(Tokenizer).eod_id
        return cls(*renderer_of(work), work.data.build.chat, eod, work.data.seq_length)

    def encode(self, conversation: Conversation, tally: Tally) -> Tokens:
        """Return the tokens of a conversation; without its last turns where it is too long and may
        be cut, which the tally notes.

        Raises:
            Unusable: nothing of it can be trained on.
        """
        conversation = prepared(conversation, self.chat)
        whole = self._tokens(conversation)
        if len(whole.ids) <= self.most:
            return whole
        if self.chat.too_long == "cut" and (found := self._cut(conversation)) is not None:
            tally.notes["cut_at_a_turn"] += 1
            tally.notes["tokens_cut_off"] += len(whole.ids) - len(found.ids)
            return found
        raise Unusable(TOO_LONG, f"{len(whole.ids):,} tokens")

    def _cut(self, conversation: Conversation) -> Tokens | None:
        """Return as many first turns as fit and have something to train; None: there are none.

        Which turn is the last one follows from what is left: with turns=last it is trained.
        """
        shorter = _beginnings(conversation)
        fitting = bisect_right(shorter, self.most, key=self._length)
        for beginning in reversed(shorter[:fitting]):
            try:
                return self._tokens(beginning)
            except Unusable as why:
                if why.reason != "nothing_to_train":
                    raise
        return None

    def _length(self, conversation: Conversation) -> int:
        """Return the tokens of a conversation, with its EOD."""
        text = self.renderer.whole(conversation)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return len(ids) + (ids[-1:] != [self.eod_id])

    def _tokens(self, conversation: Conversation) -> Tokens:
        ids, trained = tokenise(self.renderer, self.tokenizer, conversation, self.chat)
        if (ids[:-1] == self.eod_id).any():
            raise Unusable(END_INSIDE)
        if ids[-1] != self.eod_id:
            ids, trained = np.append(ids, np.int32(self.eod_id)), np.append(trained, np.False_)
        if trained[0]:  # nothing is before it, from which it could be told
            trained = trained & (np.arange(len(trained)) > 0)
        return Tokens(ids, trained, conversation)


def _beginnings(conversation: Conversation) -> list[Conversation]:
    """Return a conversation without its last turns, the shortest first: each ends where the
    assistant has answered, with no call of a tool left open."""
    messages = conversation.messages
    ends = [
        place
        for place in range(1, len(messages))
        if messages[place].role == "user"
        and messages[place - 1].role == "assistant"
        and not messages[place - 1].tool_calls
    ]
    return [replace(conversation, messages=messages[:end]) for end in ends]


def render(work: Work, chunk: int) -> Output:
    """Write the tokens of the conversations of a chunk."""
    encoding, encoder = Encoding.of(work), encoder_of(work)
    ids_file, mask_file, entries_file, held_file = files_of(work, chunk)
    ids_file.parent.mkdir(parents=True, exist_ok=True)
    out = _Collected(work)
    with DropList(work, Rendered.stage, chunk) as drops:
        copies, tally = drops.tally("dedup"), drops.tally("render")
        with whole_file(ids_file) as ids, whole_file(mask_file) as mask:
            for document in dedup.kept(work, chunk, copies):
                note_changes(encoder, [document], tally)
                tally.rows_in += 1
                try:
                    tokens = encoding.encode(conversation_of(document), tally)
                except Unusable as why:
                    tally.drop(why.reason, document.place)
                    if why.reason == "special_token_in_text":
                        tally.notes[SPELLS + why.detail] += 1
                    continue
                tally.rows_out += 1
                ids.write(tokens.ids.astype(out.dtype).tobytes())
                mask.write(tokens.trained.astype(np.uint8).tobytes())
                out.add(document, tokens)
    for one in (copies, tally):
        one.check()
    kinds, entries = out.finished()
    write_bytes(entries_file, entries.tobytes())
    write_bytes(held_file, b"".join(out.held_out()))
    result = Rendered([copies, tally], kinds, out.origins, drops.summary())
    return Output(
        result,
        files=[ids_file, mask_file, entries_file, held_file, *drops.files],
        bytes_in=work.text_bytes(chunk),
        left_out=tally.drops,
    )


class _Collected:
    """What is known of the conversations of a chunk."""

    def __init__(self, work: Work) -> None:
        self.dtype = token_dtype(work.result(Tokenizer).vocab_size)
        self.origins = Origins()
        self._threshold = int(work.data.build.val_fraction * 2**64)
        self._kinds: dict[Kind, int] = {}
        self._entries = array("Q")
        self._held: list[bytes] = []
        self._smallest: tuple[int, bytes] | None = None

    def add(self, document: Document, tokens: Tokens) -> None:
        meta = document.meta
        content = xxhash.xxh3_64_intdigest(told_apart_by(document).encode())
        kind = Kind(document.source, meta.get("origin", ""), meta.get("licence", ""))
        number = self._kinds.setdefault(kind, len(self._kinds))
        count, size = len(tokens.ids), len(document.text.encode())
        turns = min(len(tokens.conversation.messages), 0xFFFF)
        self._entries.extend((content, count, int(tokens.trained.sum()), size, turns, number))
        self.origins.add(document, 1, size, count)
        is_held = content < self._threshold
        if is_held or self._smallest is None or content < self._smallest[0]:
            line = json.dumps([content, text_of(tokens.conversation)]).encode() + b"\n"
            if is_held:
                self._held.append(line)
            else:
                self._smallest = content, line

    def held_out(self) -> list[bytes]:
        """Return the conversations that are held out, or the one that is if none is, as lines of
        [hash, text]."""
        return self._held or ([self._smallest[1]] if self._smallest else [])

    def finished(self) -> tuple[list[Kind], NDArray[np.void]]:
        """Return the kinds and the entries; what is rare of very many kinds is one of its source
        alone."""
        found = np.frombuffer(self._entries, dtype=np.uint64).reshape(-1, 6)
        entries = np.empty(len(found), dtype=ENTRY)
        for place, name in enumerate(("content", "length", "trained", "bytes", "turns")):
            entries[name] = found[:, place]
        numbers = found[:, 5].astype(np.int64)
        counts = np.bincount(numbers, minlength=len(self._kinds)).tolist()
        ordered = sorted(enumerate(self._kinds), key=lambda kind: (-counts[kind[0]], kind[1]))
        kinds: dict[Kind, int] = {}
        new = np.empty(len(ordered), dtype=np.uint16)
        for place, (number, kind) in enumerate(ordered):
            one = kind if place < _MOST_KINDS else Kind(kind.source, OTHER, OTHER)
            new[number] = kinds.setdefault(one, len(kinds))
        entries["kind"] = new[numbers]
        return list(kinds), entries


def files_of(work: Work, chunk: int) -> tuple[Path, Path, Path, Path]:
    """Return the files of a chunk: ids, mask, entries, and what may be held out."""
    folder, name = work.folder / "chat", f"{chunk:05d}"
    of_tokens = folder / f"{name}.ids", folder / f"{name}.mask"
    return *of_tokens, folder / f"{name}.entries", folder / f"{name}.held"
