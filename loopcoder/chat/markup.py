"""Calls, results and reasoning that a row spells as text in what is said, as

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

in the content of a turn: read here as what they are, so that the template writes them its own way.

Data sets spell calls in more ways than the server reads: a model is to learn one of them, that of
its template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from reprlib import repr as shortened
from typing import Any

from loopcoder.chat.call_formats import BEGINNINGS, CLOSE, OPEN
from loopcoder.chat.calls import AnswerStream, Format
from loopcoder.chat.conversation import THINK, THOUGHT
from loopcoder.chat.messages import normalised_call
from loopcoder.chat.unusable import Unusable
from loopcoder.chat.values import DECODER, of_python

RESULT, RESULT_END = "<tool_response>", "</tool_response>"
"""Tags of what a tool returns."""
_NEXT_RESULT = re.compile(f"{RESULT_END}\\s*{RESULT}")
_GLAIVE = re.compile(r"<function_?call>(?=\s*[{\[])(.*?)(?:</function_?call>|\Z)", re.DOTALL)
"""A call as the sets of glaive spell it, up to the end of an answer."""
_QUOTED = re.compile(r"""(\{\s*"name":\s*"[^"]*",\s*"arguments":\s*)'(.*)'(\s*\})""", re.DOTALL)
"""Theirs has JSON in single quotes, in which nothing but such quotes is escaped once more."""
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_IN_A_STRING = ("Unterminated string", "Invalid \\uXXXX escape")
"""How the decoder's messages begin about JSON that may end within a string: the last escape of it
counts as half of one."""
_BLANKS = re.compile(r"\s*")
_STRAY = re.compile(
    rf"{CLOSE}|</?function[_-]?calls?>|<function=[^<>\s]+>|<invoke name="
    r"|</?tool_?calls>|</?TOOL_?CALLS?>|\[TOOL_CALLS\]"
    r"|<[|\uff5c]tool[_\u2581]calls?(?:[_\u2581]section)?(?:[_\u2581]begin)?[|\uff5c]>|<\|python_tag\|>"
)
"""Tags of calls that are none where they stand, or are spelled in ways that are not read."""
_BODY = re.compile(r"\s*[{\[(<]")
"""What a call may begin with behind such a tag."""


def read_markup(
    messages: Iterable[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return messages with the calls and results that their contents spell.

    Calls are read in answers, in whichever format they are; results in turns of a tool, and in
    those of a user behind a call. What a tool returns to calls that are not spelled is text where
    it only has such tags in it.

    Args:
        messages: Normalised ones, without the reasoning that answers begin with.
        tools: OpenAI's schemas.

    Raises:
        Unusable: tags are there, and not as they should be.
    """
    out: list[dict[str, Any]] = []
    spelled = True
    for message in messages:
        match message["role"]:
            case "assistant":
                out.append(_answer(message, tools))
                spelled = not message.get("tool_calls")
            case "tool":
                out += _results(message, spelled=spelled)
            case "user" if _is_result(message, out):
                out += _results({**message, "role": "tool"}, spelled=spelled)
            case _:
                out.append(dict(message))
    return out


def _answer(message: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    content, out = message["content"], dict(message)
    if OPEN not in content:
        content = _GLAIVE.sub(lambda found: f"{OPEN}{found[1]}{CLOSE}", content)
    if OPEN in content:
        if message.get("tool_calls"):
            raise Unusable("markup_in_text", f"tool_calls, and {OPEN} in the content")
        out["content"], out["tool_calls"] = _with_calls(content, tools)
    wrong = (THINK, THOUGHT, RESULT, RESULT_END)
    if left := next((tag for tag in wrong if tag in out["content"]), None):
        raise Unusable("markup_in_text", f"{left} within an answer")
    for stray in _STRAY.finditer(out["content"]):
        if tools or not _is_spoken_of(stray):
            raise Unusable("unreadable_call", f"{stray[0]} in an answer")
    if tools and not out.get("tool_calls") and _is_call(out["content"]):
        raise Unusable("unreadable_call", "an answer is a call without a tag")
    return out


def _is_spoken_of(tag: re.Match[str]) -> bool:
    """Say whether a tag stands in a sentence that only names it, where there are no tools."""
    line = tag.string[tag.string.rfind("\n", 0, tag.start()) + 1 : tag.start()]
    begins = not tag[0].startswith("</")
    return begins and bool(line.strip()) and not _BODY.match(tag.string, tag.end())


def _is_call(content: str) -> bool:
    """Say whether a content is nothing but a call, or a list of some, in JSON."""
    if not content.lstrip().startswith(("{", "[")):
        return False
    try:
        found = DECODER.decode(content.strip())
        for one in found if isinstance(found, list) else [found]:
            _spelled_call(one)
    except (ValueError, RecursionError, Unusable):
        return False
    return bool(found)


def _with_calls(
    content: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """Return what is said in front of the calls, and these."""
    is_json = not content.partition(OPEN)[2].lstrip().startswith(BEGINNINGS["qwen3_coder"])
    before, behind, calls = _in_json(content) if is_json else _in_tags(content, tools)
    if behind := behind.strip():
        raise Unusable("text_behind_call", behind[:100])
    return before.rstrip(), [normalised_call(call) for call in calls]


def _in_tags(
    content: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, str, list[dict[str, Any]]]:
    """Return what is said in front of calls as qwen3_coder has them and behind the first, and the
    calls."""
    stream = AnswerStream(Format("qwen3_coder"), tools, stops_at_a_problem=True)
    deltas = [*stream.add(content), *stream.end()]
    if problems := stream.answer.problems:
        raise Unusable("unreadable_call", problems[0].detail)
    first = next(place for place, delta in enumerate(deltas) if delta.call is not None)
    before, behind = ("".join(d.content for d in part) for part in (deltas[:first], deltas[first:]))
    calls = [{"name": call.name, "arguments": call.arguments} for call in stream.answer.tool_calls]
    return before, behind, calls


def _in_json(content: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Return what is said in front of calls as objects and behind the first, and the calls."""
    begun, at = content.find(OPEN), 0
    said: list[str] = []
    calls: list[dict[str, Any]] = []
    while begun >= 0:
        said.append(content[at:begun])
        found, at = _block(content, begun + len(OPEN))
        calls += map(_spelled_call, found if isinstance(found, list) else [found])
        begun = content.find(OPEN, at)
    if not calls:
        raise Unusable("unreadable_call", "a list of no calls")
    return said[0], "".join(said[1:]) + content[at:], calls


def _block(content: str, start: int) -> tuple[Any, int]:
    """Return what stands between `<tool_call>` and `</tool_call>`, which may be within a string
    before, and where that ends.

    Args:
        start: Behind `<tool_call>`.
    """
    end = content.find(CLOSE, start)
    if end < 0:
        raise Unusable("unreadable_call", f"no {CLOSE}")
    body = content[start:end].strip()
    try:
        return DECODER.decode(body), end + len(CLOSE)
    except (ValueError, RecursionError) as error:
        why = str(error)
    if why.startswith(_IN_A_STRING) and (longer := _beyond(content, start)):
        return longer
    end += len(CLOSE)
    try:
        if quoted := _QUOTED.fullmatch(body):
            bare = _ESCAPED.sub(lambda one: "'" if one[1] == "'" else one[0], quoted[2])
            return DECODER.decode(quoted[1] + bare + quoted[3]), end
    except (ValueError, RecursionError):
        pass
    try:
        return of_python(body), end
    except ValueError:
        raise Unusable("unreadable_call", why[:300]) from None


def _beyond(content: str, start: int) -> tuple[Any, int] | None:
    """Return the same of a block with `</tool_call>` within a string; None: it is no such JSON."""
    try:
        found, end = DECODER.raw_decode(content, _blanks_end(content, start))
    except (ValueError, RecursionError):
        return None
    end = _blanks_end(content, end)
    return (found, end + len(CLOSE)) if content.startswith(CLOSE, end) else None


def _blanks_end(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    assert blanks is not None
    return blanks.end()


def _spelled_call(found: Any) -> dict[str, Any]:
    """Return a call of what a block has; its arguments may be JSON in a string."""
    names = found.keys() if isinstance(found, dict) else set()
    for arguments in ("arguments", "parameters"):
        if names == {"name", arguments}:
            return {"name": found["name"], "arguments": found[arguments]}
    raise Unusable("unreadable_call", f"no object of name and arguments: {shortened(found)}")


def _is_result(message: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a turn of the user is what tools return: blocks of results, and nothing else."""
    asked = bool(before) and (before[-1]["role"] == "tool" or bool(before[-1].get("tool_calls")))
    return asked and _is_block(message["content"].strip())


def _is_block(content: str) -> bool:
    return content.startswith(RESULT) and content.endswith(RESULT_END)


def _results(message: Mapping[str, Any], *, spelled: bool) -> Iterator[dict[str, Any]]:
    """Yield a message for each result in the content of one; a content without tags is one.

    Args:
        spelled: The calls were spelled in text, so that these tags are no text.
    """
    content = message["content"].strip()
    has_tags = RESULT in content or RESULT_END in content
    is_block = _is_block(content)
    if not has_tags or not (is_block or spelled):
        yield dict(message)
        return
    if not is_block:
        raise Unusable("markup_in_text", f"{RESULT} within what a tool returns")
    parts = _NEXT_RESULT.split(content.removeprefix(RESULT).removesuffix(RESULT_END))
    of_one = {} if len(parts) == 1 else {"tool_call_id": None, "name": None}
    for part in parts:
        if RESULT in part or RESULT_END in part:
            raise Unusable("markup_in_text", f"{RESULT} or {RESULT_END} within a result")
        yield {**message, "content": part.removeprefix("\n").removesuffix("\n"), **of_one}
