"""Calls, results and reasoning that a row spells as text in what is said, as

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

in the content of a turn: read here as what they are, so that the template writes them its own way.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from loopcoder.chat.call_formats import BEGINNINGS, CLOSE, OPEN, CallFormat
from loopcoder.chat.calls import AnswerStream, Format
from loopcoder.chat.conversation import THINK, THOUGHT
from loopcoder.chat.messages import normalised_call
from loopcoder.chat.unusable import Unusable

RESULT, RESULT_END = "<tool_response>", "</tool_response>"
"""Tags of what a tool returns."""
_NEXT_RESULT = re.compile(f"{RESULT_END}\\s*{RESULT}")
_BLOCK = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)


def read_markup(
    messages: Iterable[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return messages with the calls and results that their contents spell.

    Calls are read in answers as the server reads them, in whichever format they are; results in
    turns of a tool, and in those of a user behind a call.

    Args:
        messages: Normalised ones, without the reasoning that answers begin with.
        tools: OpenAI's schemas.

    Raises:
        Unusable: tags are there, and not as they should be.
    """
    out: list[dict[str, Any]] = []
    for message in messages:
        match message["role"]:
            case "assistant":
                out.append(_answer(message, tools))
            case "tool":
                out += _results(message)
            case "user" if _is_result(message, out):
                out += _results({**message, "role": "tool"})
            case _:
                out.append(dict(message))
    return out


def _answer(message: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    content, out = message["content"], dict(message)
    if OPEN in content:
        if message.get("tool_calls"):
            raise Unusable("markup_in_text", f"tool_calls, and {OPEN} in the content")
        out["content"], out["tool_calls"] = _with_calls(content, tools)
    wrong = (THINK, THOUGHT, RESULT, RESULT_END)
    if left := next((tag for tag in wrong if tag in out["content"]), None):
        raise Unusable("markup_in_text", f"{left} within an answer")
    return out


def _with_calls(
    content: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """Return what is said in front of the calls, and these."""
    begun = content.partition(OPEN)[2].lstrip()
    form: CallFormat = "qwen3_coder" if begun.startswith(BEGINNINGS["qwen3_coder"]) else "hermes"
    stream = AnswerStream(Format(form), tools)
    if form == "hermes":
        content = _BLOCK.sub(_in_json, content)
    deltas = [*stream.add(content), *stream.end()]
    if problems := stream.answer.problems:
        raise Unusable("unreadable_call", problems[0].detail)
    places = [place for place, delta in enumerate(deltas) if delta.call is not None]
    before = "".join(delta.content for delta in deltas[: places[0]])
    if behind := "".join(delta.content for delta in deltas[places[0] :]).strip():
        raise Unusable("text_behind_call", behind[:100])
    calls = [{"name": call.name, "arguments": call.arguments} for call in stream.answer.tool_calls]
    return before.rstrip(), [normalised_call(call) for call in calls]


def _in_json(block: re.Match[str]) -> str:
    """Return a call in JSON that is written as a dict of Python, as in the sets of Hermes; any
    other as it is."""
    try:
        json.loads(block[1])
        return block[0]
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            call = ast.literal_eval(block[1].strip())
        return f"{OPEN}\n{json.dumps(call, ensure_ascii=False, allow_nan=False)}\n{CLOSE}"
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return block[0]


def _is_result(message: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a turn of the user is what tools return."""
    asked = bool(before) and (before[-1]["role"] == "tool" or bool(before[-1].get("tool_calls")))
    return asked and message["content"].lstrip().startswith(RESULT)


def _results(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a message for each result in the content of one; a content without tags is one."""
    content = message["content"].strip()
    if RESULT not in content and RESULT_END not in content:
        yield dict(message)
        return
    if not (content.startswith(RESULT) and content.endswith(RESULT_END)):
        raise Unusable("markup_in_text", f"{RESULT} within what a tool returns")
    parts = _NEXT_RESULT.split(content.removeprefix(RESULT).removesuffix(RESULT_END))
    of_one = {} if len(parts) == 1 else {"tool_call_id": None, "name": None}
    for part in parts:
        if RESULT in part or RESULT_END in part:
            raise Unusable("markup_in_text", f"{RESULT} or {RESULT_END} within a result")
        yield {**message, "content": part.removeprefix("\n").removesuffix("\n"), **of_one}
