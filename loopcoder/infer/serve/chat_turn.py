"""The turn of the assistant in a chat, as OpenAI's API tells it: whole or by deltas."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from loopcoder.chat.calls import AnswerStream, Delta
from loopcoder.chat.conversation import ToolCall
from loopcoder.infer.request import Piece


class ChatTurn:
    """Reads the pieces of one answer."""

    def __init__(self, reader: AnswerStream):
        self._reader = reader
        self._num_calls = 0
        """That were told by deltas."""

    def message(self, piece: Piece) -> dict[str, Any]:
        """Return the message of an answer that is one piece."""
        self._read(piece)
        answer = self._reader.answer
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
        if self._reader.format.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["content"] = answer.content or None
            message["tool_calls"] = [
                _opened(call) | {"function": _function(call)} for call in answer.tool_calls
            ]
        return message

    def deltas(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Yield what a piece adds: content, reasoning, or of a call its name, then its
        arguments."""
        for delta in self._read(piece):
            if delta.call is not None:
                yield from self._call(delta.call)
            elif delta.reasoning:
                yield {"reasoning_content": delta.reasoning}
            else:
                yield {"content": delta.content}

    def finish(self, piece: Piece) -> str | None:
        """Return why the turn ended with a piece that was read; None: it goes on."""
        is_a_call = piece.finish == "stop" and self._reader.answer.tool_calls
        return "tool_calls" if is_a_call else piece.finish

    def _read(self, piece: Piece) -> list[Delta]:
        deltas = self._reader.add(piece.text)
        return deltas if piece.finish is None else deltas + self._reader.end()

    def _call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        index, function = self._num_calls, _function(call)
        self._num_calls += 1
        arguments = function.pop("arguments")
        opening = _opened(call) | {"function": function | {"arguments": ""}}
        yield {"tool_calls": [{"index": index} | opening]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def _opened(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id or f"call_{uuid.uuid4().hex[:24]}", "type": "function"}


def _function(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
