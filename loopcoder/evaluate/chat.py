"""Held-out conversations of a chat corpus: whether a model answers in the format of its template,
and calls tools as they are declared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from loopcoder.chat.calls import Answer as Read
from loopcoder.chat.conversation import Conversation, Message, ToolCall, restored, written
from loopcoder.chat.tool_checks import check_call
from loopcoder.config.benchmarks import ChatTaskConfig
from loopcoder.data.places import CHAT_TEMPLATE, HELD_OUT
from loopcoder.errors import InputError
from loopcoder.evaluate.in_process import InProcess
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Answer, Request
from loopcoder.storage.digest import fingerprint

TASK = "chat"
Metrics = dict[str, float]


@dataclass(frozen=True)
class Turn:
    """What an assistant is to write."""

    conversation: int
    before: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    reference: Message
    """What is written there."""


@dataclass(frozen=True)
class Written:
    """What a model wrote in its place."""

    turn: Turn
    read: Read
    ended: bool
    """By the end of a turn or document, and not for want of room."""
    text: str

    @property
    def is_well_formed(self) -> bool:
        """It says something or calls a tool, in the format, and ends."""
        says = bool(self.read.content.strip() or self.read.tool_calls)
        return self.ended and says and not self.read.problems

    @property
    def tries_to_call(self) -> bool:
        """It has a call, or what began as one."""
        return bool(self.read.tool_calls) or any(
            p.reason in ("invalid_call", "unclosed_call") for p in self.read.problems
        )

    @property
    def wrong_calls(self) -> list[str]:
        """What is wrong with its calls by the tools that there are."""
        found = (check_call(call, self.turn.tools) for call in self.read.tool_calls)
        return [wrong for wrong in found if wrong is not None]

    @property
    def calls_well(self) -> bool:
        """It calls declared tools with arguments of their schemas, in the format."""
        return self.is_well_formed and bool(self.read.tool_calls) and not self.wrong_calls

    @property
    def calls_alike(self) -> bool:
        """It calls what the reference calls, with the same arguments."""
        own, wanted = self.read.tool_calls, self.turn.reference.tool_calls
        return self.is_well_formed and sorted(map(_key, own)) == sorted(map(_key, wanted))

    @property
    def calls_nothing(self) -> bool:
        """It answers in words: a call that cannot be read, or does not end, is none of these."""
        return self.is_well_formed and not self.read.tool_calls

    def as_dict(self) -> dict[str, Any]:
        turn = self.turn
        return {
            "conversation": turn.conversation,
            "before": [written(message) for message in turn.before],
            "tools": list(turn.tools),
            "reference": written(turn.reference),
            "answer": self.text,
            "problems": [f"{p.reason}: {p.detail}" for p in self.read.problems],
            "wrong_calls": self.wrong_calls,
            "ended": self.ended,
            "well_formed": self.is_well_formed,
        }


@dataclass(frozen=True)
class HeldOutTurns:
    """What models are asked."""

    turns: list[Turn]
    template: str
    """Of the corpus, in which every model is asked and is to answer, whatever its own is."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that the answers depend on besides the model."""
        turns = [(t.conversation, [*map(written, (*t.before, t.reference))]) for t in self.turns]
        return fingerprint([self.template, turns, [turn.tools for turn in self.turns]])


def held_out(corpora: Sequence[Path], limit: int | None) -> HeldOutTurns:
    """Return the trained answers of the held-out conversations of chat corpora.

    Args:
        corpora: Folders; several are read one after the other, and those of documents left out.
        limit: Of conversations, the first ones of all; None: all.

    Raises:
        InputError: one is no chat corpus, they have several templates, or nothing is held out.
    """
    chats = [one for one in corpora if len(corpora) == 1 or (one / HELD_OUT).is_file()]
    kept: list[Conversation] = []
    templates: list[str] = []
    for corpus in chats:
        conversations, template = _read(corpus, limit)
        kept += conversations
        templates.append(template)
    names = ", ".join(map(str, chats or corpora))
    if len(set(templates)) > 1:
        raise InputError.of(
            f"tasks={TASK}: {names} have {len(set(templates))} chat templates",
            "a model is asked in one",
            "chat.corpus= of one of them",
        )
    found = [turn for number, one in enumerate(kept[:limit]) for turn in _turns(number, one)]
    if not found:
        raise InputError.of(
            f"tasks={TASK}: {names} has no answer to be written",
            "data.build.val_fraction held out none, or all are train: false",
            "chat.corpus= of a corpus that holds some out",
        )
    return HeldOutTurns(found, templates[0])


def _read(corpus: Path, limit: int | None) -> tuple[list[Conversation], str]:
    try:
        with (corpus / HELD_OUT).open(encoding="utf-8") as file:
            kept = [restored(json.loads(line)) for line in islice(file, limit)]
        return kept, (corpus / CHAT_TEMPLATE).read_text(encoding="utf-8")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError.of(
            f"tasks={TASK}: the corpus {corpus} cannot be read: {error}",
            "answers are compared with those of the held-out conversations of a corpus that "
            "data=chat built",
            "chat.corpus=FOLDER of such a one",
        ) from error


def _turns(number: int, conversation: Conversation) -> Iterator[Turn]:
    for at, message in enumerate(conversation.messages):
        if message.role == "assistant" and message.train:
            yield Turn(number, conversation.messages[:at], conversation.tools, message)


class Exam:
    """Held-out turns as one model reads them."""

    def __init__(self, prompts: Prompts, asked: HeldOutTurns, config: ChatTaskConfig):
        """
        Args:
            prompts: Of the model, which need not be loaded.

        Raises:
            InputError: the template does not take a conversation.
        """
        self._prompts, self._turns = prompts.speaking(asked.template), asked.turns
        self._texts = [
            self._prompts.rendered([written(m) for m in turn.before], turn.tools)
            for turn in self._turns
        ]
        self.requests = [
            Request(prompts.of_text(text), config.max_tokens, shown=prompts.shown)
            for text in self._texts
        ]

    @property
    def room(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return max(len(request.ids) + request.max_tokens for request in self.requests)

    def put_to(self, model: InProcess) -> tuple[Metrics, list[Written]]:
        """Have a model write every turn, greedily; return metrics and what it wrote.

        `well_formed`: share of answers that are in the format, say something and end; what is not
        does none of what follows. `calls_well_formed`: of those that call or begin to, whether
        they should or not, that call declared tools with arguments of their schemas. `calls`: of
        those that should call a tool, that do so; `calls_alike`: that call what is called there,
        with the same arguments. `no_calls`: of those that have tools and should not call any, that
        answer in words. Each with its standard error.

        Raises:
            InputError: a prompt with its answer is longer than the model's room.
        """
        model.check_room(self.requests, "chat.max_tokens")
        said: list[Written] = []
        for first in range(0, len(self.requests), model.at_once):
            part = slice(first, first + model.at_once)
            answers = model.answers(self.requests[part])
            asked = zip(self._turns[part], self._texts[part], answers, strict=True)
            said += [self._written(*one) for one in asked]
        return _metrics(said), said

    def _written(self, turn: Turn, prompt: str, answer: Answer) -> Written:
        reader = self._prompts.reader(prompt, turn.tools)
        reader.add(answer.text)
        reader.end()
        return Written(turn, reader.answer, answer.finish == "stop", answer.text)


def _metrics(said: Sequence[Written]) -> Metrics:
    should = [w for w in said if w.turn.reference.tool_calls]
    should_not = [w for w in said if w.turn.tools and not w.turn.reference.tool_calls]
    found: Metrics = {}
    for name, held in (
        ("well_formed", [w.is_well_formed for w in said]),
        ("calls_well_formed", [w.calls_well for w in said if w.tries_to_call]),
        ("calls", [w.calls_well for w in should]),
        ("calls_alike", [w.calls_alike for w in should]),
        ("no_calls", [w.calls_nothing for w in should_not]),
    ):
        if held:
            share = sum(held) / len(held)
            found[name] = share
            found[f"{name}_stderr"] = (share * (1 - share) / len(held)) ** 0.5
    return found


def _key(call: ToolCall) -> str:
    return json.dumps([call.name, _plain(call.arguments)], sort_keys=True)


def _plain(value: Any) -> Any:
    """Write whole numbers alike: JSON knows no difference between 1 and 1.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
