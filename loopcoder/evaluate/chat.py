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
from loopcoder.chat.calls import Format, read_answer
from loopcoder.chat.conversation import Conversation, Message, restored, written
from loopcoder.chat.tool_checks import check_call
from loopcoder.config.benchmarks import ChatTaskConfig
from loopcoder.data.places import CHAT_TEMPLATE, HELD_OUT
from loopcoder.errors import InputError, counted
from loopcoder.evaluate.in_process import InProcess
from loopcoder.infer.request import Answer, Request

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
    def calls_well(self) -> bool:
        """It calls declared tools with arguments of their schemas, in the format."""
        calls, tools = self.read.tool_calls, self.turn.tools
        return self.is_well_formed and bool(calls) and not any(check_call(c, tools) for c in calls)

    @property
    def calls_alike(self) -> bool:
        """It calls what the reference calls, with the same arguments."""
        own, wanted = self.read.tool_calls, self.turn.reference.tool_calls
        return sorted(map(_key, own)) == sorted(map(_key, wanted))

    def as_dict(self) -> dict[str, Any]:
        turn = self.turn
        return {
            "conversation": turn.conversation,
            "before": [written(message) for message in turn.before],
            "tools": list(turn.tools),
            "reference": written(turn.reference),
            "answer": self.text,
            "problems": [f"{p.reason}: {p.detail}" for p in self.read.problems],
            "ended": self.ended,
            "well_formed": self.is_well_formed,
        }


@dataclass(frozen=True)
class Asked:
    """What models are asked."""

    turns: list[Turn]
    template: str
    """Of the corpus, in which every model is asked and is to answer, whatever its own is."""


def held_out(corpus: Path, limit: int | None) -> Asked:
    """Return the trained answers of the first `limit` held-out conversations of a chat corpus.

    Raises:
        InputError: it is none, or holds nothing out.
    """
    path = corpus / HELD_OUT
    try:
        with path.open(encoding="utf-8") as file:
            kept = [restored(json.loads(line)) for line in islice(file, limit)]
        template = (corpus / CHAT_TEMPLATE).read_text(encoding="utf-8")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError.of(
            f"tasks={TASK}: the corpus {corpus} cannot be read: {error}",
            "answers are compared with those of the held-out conversations of a corpus that "
            "data=chat built",
            "chat.corpus=FOLDER of such a one",
        ) from error
    found = [turn for number, one in enumerate(kept) for turn in _turns(number, one)]
    if not found:
        raise InputError.of(
            f"{path} has no answer to be written",
            "data.build.val_fraction held out none, or all are train: false",
            "chat.corpus= of a corpus that holds some out",
        )
    return Asked(found, template)


def _turns(number: int, conversation: Conversation) -> Iterator[Turn]:
    for at, message in enumerate(conversation.messages):
        if message.role == "assistant" and message.train:
            yield Turn(number, conversation.messages[:at], conversation.tools, message)


def evaluate(
    model: InProcess, asked: Asked, config: ChatTaskConfig
) -> tuple[Metrics, list[Written]]:
    """Have a model write every turn, greedily; return metrics and what it wrote.

    `well_formed`: share of answers that are in the format and end. `calls`: of those that should
    call a tool, that call declared ones with arguments of their schemas; `calls_alike`: that call
    what is called there, with the same arguments. `no_calls`: of those that have tools and should
    not call any, that do not. Each with its standard error.

    Raises:
        InputError: a prompt with its answer is longer than the model's room.
    """
    speaking, turns = model.prompts.speaking(asked.template), asked.turns
    prompts = [speaking.rendered([written(m) for m in turn.before], turn.tools) for turn in turns]
    requests = [_request(model, prompt, config) for prompt in prompts]
    said: list[Written] = []
    for first in range(0, len(requests), model.at_once):
        part = slice(first, first + model.at_once)
        for turn, prompt, answer in zip(
            turns[part], prompts[part], model.answers(requests[part]), strict=True
        ):
            said.append(_written(speaking.format, turn, prompt, answer))
    return _metrics(said), said


def _request(model: InProcess, prompt: str, config: ChatTaskConfig) -> Request:
    ids = model.prompts.of_text(prompt)
    whole = len(ids) + config.max_tokens
    if whole > model.max_length:
        raise InputError.of(
            f"a conversation has {counted(len(ids), 'token')}, its answer up to "
            f"{config.max_tokens:,}, and a sequence {model.max_length:,}",
            "there is no room for the answer",
            f"tasks.max_length={whole}, or a lower chat.max_tokens",
        )
    return Request(ids, config.max_tokens, shown=model.prompts.shown)


def _written(format: Format, turn: Turn, prompt: str, answer: Answer) -> Written:
    read = read_answer(
        answer.text, format, turn.tools, in_reasoning=format.begins_in_reasoning(prompt)
    )
    return Written(turn, read, answer.finish == "stop", answer.text)


def _metrics(said: Sequence[Written]) -> Metrics:
    should = [w for w in said if w.turn.reference.tool_calls]
    should_not = [w for w in said if w.turn.tools and not w.turn.reference.tool_calls]
    found: Metrics = {}
    for name, held in (
        ("well_formed", [w.is_well_formed for w in said]),
        ("calls", [w.calls_well for w in should]),
        ("calls_alike", [w.calls_alike for w in should]),
        ("no_calls", [not w.read.tool_calls for w in should_not]),
    ):
        if held:
            share = sum(held) / len(held)
            found[name] = share
            found[f"{name}_stderr"] = (share * (1 - share) / len(held)) ** 0.5
    return found


def _key(call: Any) -> str:
    arguments: Mapping[str, Any] = call.arguments
    return json.dumps([call.name, arguments], sort_keys=True)
