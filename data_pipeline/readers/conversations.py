"""Rows of conversations: each becomes a document whose text is its canonical form as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_pipeline.readers.base import LICENCES, ORIGIN, RowReader, document_id
from data_pipeline.readers.columns import message_columns
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document
from loopcoder.chat.conversation import Conversation, canonical, plain_text, restored
from loopcoder.chat.parsing import parse
from loopcoder.chat.unusable import Unusable
from loopcoder.config.mixture import CHAT

LANGUAGE = "Chat"
"""Of all conversations, where documents have a language."""
_MOST_CHARS = 64
"""Of a licence or an origin; what is longer is a text about it."""


class ConversationReader(RowReader):
    """Makes documents of the rows of one table of conversations, and counts every row once."""

    def document(self, row: object, number: int) -> Document | None:
        """Make a document of a row, or count why not; `number` is its place in the table."""
        if not isinstance(row, Mapping):
            self.reject("not_an_object", number)
            return None
        config = self.config
        try:
            found = parse(
                row,
                messages_field=config.messages_field,
                tools_field=config.tools_field,
                markup=config.markup,
            )
        except Unusable as why:
            if why.reason == "no_messages" and not self.tally.columns:
                self.tally.columns = message_columns(row)
            self.reject(why.reason, number)
            return None
        text = text_of(found)
        if len(text.encode()) > MAX_DOCUMENT_BYTES:
            self.reject("too_large", number)
            return None
        self.tally.rows_in += 1
        self.tally.rows_out += 1
        return Document(
            id=document_id(self.source, self.place or self.path, number),
            text=text,
            domain=CHAT,
            language=LANGUAGE,
            source=self.source,
            path=self.place or self.path,
            meta={"row": number} | self._about(row),
        )

    def _about(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return the licence and the origin that a row names."""
        own = self.config.licence_field
        licences = (row.get(name) for name in ((own,) if own else LICENCES))
        named = {"licence": next(filter(None, licences), None), "origin": row.get(ORIGIN)}
        return {
            name: value.strip()
            for name, value in named.items()
            if isinstance(value, str) and value.strip().isprintable()
            if 0 < len(value.strip()) <= _MOST_CHARS
        }


def text_of(conversation: Conversation) -> str:
    """Return a conversation as the text of its document: the same bytes for the same content."""
    return json.dumps(canonical(conversation), ensure_ascii=False, separators=(",", ":"))


def conversation_of(document: Document) -> Conversation:
    """Return the conversation of a document."""
    return restored(json.loads(document.text))


def told_apart_by(document: Document) -> str:
    """Return what makes a conversation another one: who says what, and calls what. One with another
    system prompt, other tools, ids of calls or messages that are not learned is a copy: held out
    in one form and trained on in another, it would be known."""
    turns = [
        [one.role, one.content, one.reasoning, [[c.name, c.arguments] for c in one.tool_calls]]
        for one in conversation_of(document).messages
        if one.role != "system"
    ]
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def said(document: Document) -> str:
    """Return what is said in the conversation of a document, without system prompt and tools, which
    a whole data set may share."""
    found = conversation_of(document)
    turns = tuple(message for message in found.messages if message.role != "system")
    return plain_text(Conversation(turns))
