"""The turn of an assistant as people read it: reasoning, what it says, and calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from loopcoder.chat.calls import AnswerStream, Delta
from loopcoder.chat.conversation import written_call
from loopcoder.infer.request import Piece


class Transcript:
    """Reads an answer while it comes."""

    def __init__(self, reader: AnswerStream):
        self._reader = reader
        self._kind: str | None = None
        """Of what was printed last."""
        self._at_start = True
        """Of a line."""

    def add(self, piece: Piece) -> str:
        """Return what is to be printed of a piece: what is said as it stands, and headings where
        there is something besides."""
        deltas = self._reader.add(piece.text)
        if piece.finish is not None:
            deltas += self._reader.end()
        return "".join(text for delta in deltas for text in self._printed(delta))

    def fields(self) -> dict[str, Any]:
        """Return the parts of the whole answer."""
        answer = self._reader.answer
        return {
            "content": answer.content,
            "reasoning": answer.reasoning,
            "tool_calls": [written_call(call) for call in answer.tool_calls],
            "problems": self.problems(),
        }

    def problems(self) -> list[str]:
        """Return what is wrong with the whole answer, in words."""
        return [f"{p.reason}: {p.detail}" for p in self._reader.answer.problems]

    def _printed(self, delta: Delta) -> Iterator[str]:
        if delta.call is not None:
            arguments = json.dumps(delta.call.arguments, ensure_ascii=False)
            yield from self._as("call", f"[call] {delta.call.name} {arguments}")
        elif delta.reasoning:
            yield from self._as("reasoning", delta.reasoning, heading="[reasoning]\n")
        elif self._kind in (None, "answer"):
            yield from self._as("answer", delta.content)
        elif text := delta.content.lstrip("\n"):
            yield from self._as("answer", text, heading="[answer]\n")

    def _as(self, kind: str, text: str, heading: str = "") -> Iterator[str]:
        if kind != self._kind or kind == "call":
            yield ("" if self._at_start else "\n") + heading
        self._kind, self._at_start = kind, text.endswith("\n")
        yield text
