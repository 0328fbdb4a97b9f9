"""Which part of a rendered text which message of the assistant says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopcoder.chat.conversation import Message
from loopcoder.chat.unusable import Unusable
from loopcoder.config.types import LearnedTurns


@dataclass(frozen=True)
class Answer:
    """A part of a text that the assistant says, in characters."""

    start: int
    end: int
    """Behind the last."""
    owner: int | None = None
    """Index of the message; None: not known."""

    def of(self, text: str) -> str:
        return text[self.start : self.end]


@dataclass(frozen=True)
class Marks:
    """A conversation whose assistant says marks in place of its content, and puts them in front of
    the functions that it calls: rendered once more, they show what is where."""

    messages: list[dict[str, Any]]
    sign: str
    """What marks are made of; it is nowhere in the text."""

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], text: str) -> Marks:
        """Mark a conversation.

        Args:
            text: Its rendering.
        """
        sign = "\ue000"  # private use
        while sign in text:
            sign += "\ue000"
        return cls([_marked(one, f"{sign}%s{i}{sign}") for i, one in enumerate(messages)], sign)

    def owner(self, said: str) -> int:
        """Return the index of the message that a marked part is of.

        Raises:
            Unusable: it is of none, or of several.
        """
        found = {int(i) for i in re.findall(f"{self.sign}[ac]([0-9]+){self.sign}", said)}
        if len(found) != 1:
            raise Unusable("turns_not_found", f"one block is of messages {sorted(found) or 'none'}")
        return found.pop()

    def before_content(self, owner: int, said: str, marked: str) -> int:
        """Return the characters in front of the content of an answer.

        Args:
            owner: Index of its message.
            said: A part of the text.
            marked: The same part, marked.

        Raises:
            Unusable: content is not where the marks are.
        """
        found = marked.find(f"{self.sign}a{owner}{self.sign}")
        if found < 0 or said[:found] != marked[:found]:
            raise Unusable("turns_not_found", f"reasoning of message {owner}")
        return found


def wanted_answers(messages: Sequence[Message], turns: LearnedTurns) -> dict[int, bool]:
    """Return for each message of the assistant whether it is learned."""
    turn_of, turn = {}, 0
    for place, message in enumerate(messages):
        turn += message.role == "user"
        if message.role == "assistant":
            turn_of[place] = turn
    numbers = sorted(set(turn_of.values()))
    chosen = {"all": numbers, "first": numbers[:1], "last": numbers[-1:]}[turns]
    return {place: messages[place].train and turn in chosen for place, turn in turn_of.items()}


def _marked(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    if message["role"] != "assistant":
        return dict(message)
    out = {**message, "content": mark % "a"}
    if calls := message.get("tool_calls"):
        out["tool_calls"] = [_marked_call(call, mark % "c") for call in calls]
    return out


def _marked_call(call: Mapping[str, Any], mark: str) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "name": mark + function["name"]}}
