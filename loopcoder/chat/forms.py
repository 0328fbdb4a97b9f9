"""The forms in which data sets keep conversations, brought into OpenAI's.

Nothing is judged here beyond what is needed to read a form; `conversation.parse` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopcoder.chat.messages import normalised, normalised_tools
from loopcoder.chat.unusable import Unusable
from loopcoder.chat.values import loaded

Row = Mapping[str, Any]

_LISTS = ("messages", "conversations", "conversation")
"""Columns with messages, OpenAI's (`role`, `content`) or ShareGPT's (`from`, `value`)."""
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
"""Columns of rows with one question and its answer."""
_INPUT, _CONTEXT = "input", "context"
"""Columns of what a question is about, Alpaca's (of an `instruction`) and Dolly's."""
_HISTORY, _SYSTEM = "history", ("system", "system_prompt")
_TOOLS = ("tools", "functions")
MESSAGES = tuple(dict.fromkeys([*_LISTS, *(name for pair in _PAIRS for name in pair)]))
"""Columns that hold messages, by their usual names."""
COLUMNS = (*MESSAGES, _INPUT, _CONTEXT, _HISTORY, *_SYSTEM, *_TOOLS)
"""All that `messages_of` and `tools_of` read by their usual names."""


def messages_of(row: Row, field: str | None = None) -> list[dict[str, Any]]:
    """Return the messages of a row, normalised.

    Args:
        field: Column with the messages; None: the first that is there of `messages`,
            `conversations`, `conversation`, `prompt` and `completion` (`response`), `instruction`
            (and `input`) and `output` (`response`), with what a column `context` has behind the
            question, and what `history` has in front of it.

    Raises:
        Unusable: there are none, or one is no message.
    """
    found: Any
    if field is not None:
        found = row.get(field)
    else:
        found = next((row[name] for name in _LISTS if row.get(name) is not None), None)
        if found is None:
            found = _pair(row)
    if isinstance(found, str):
        found = loaded(found, "no_messages")
    if not isinstance(found, list) or not found:
        names = ", ".join(map(str, row)) or "nothing"
        raise Unusable("no_messages", f"the row has {names}"[:300])
    messages = [normalised(one) for one in found]
    system = next((row[name] for name in _SYSTEM if row.get(name)), None)
    if system is not None and messages[0].get("role") != "system":
        if not isinstance(system, str):
            raise Unusable("content_not_text", f"system={system!r}"[:300])
        messages.insert(0, {"role": "system", "content": system})
    return messages


def tools_of(row: Row, field: str | None = None) -> list[Any]:
    """Return the tools of a row, each as OpenAI's `{type: function, function: {...}}`.

    Args:
        field: Their column; None: `tools` or `functions`. Text is read as JSON.

    Raises:
        Unusable: they are no list of schemas of functions with names of their own.
    """
    names = _TOOLS if field is None else (field,)
    found: Any = next((row[name] for name in names if row.get(name) is not None), [])
    if isinstance(found, str):
        found = loaded(found, "bad_tools") if found.strip() else []
    if found is None:
        return []
    if not isinstance(found, list):
        raise Unusable("bad_tools", f"tools={found!r}"[:300])
    return normalised_tools(found)


def _pair(row: Row) -> list[Any] | None:
    for asked, answered in _PAIRS:
        question, answer = row.get(asked), row.get(answered)
        if question is None or answer is None:
            continue
        about = (_INPUT, _CONTEXT) if asked == "instruction" else (_CONTEXT,)
        for name in about:
            if row.get(name):
                question = _behind(question, name, row[name])
        return [*_history(row), *_said("user", question), *_said("assistant", answer)]
    return None


def _behind(question: Any, name: str, text: Any) -> str:
    """Put what a question is about, a text or a list of some, behind it, as users do."""
    if isinstance(text, list) and all(isinstance(part, str) for part in text):
        text = "\n\n".join(part for part in text if part.strip())
    if not isinstance(question, str) or not isinstance(text, str):
        raise Unusable("content_not_text", f"{name}={text!r} behind {question!r}"[:300])
    return "\n\n".join(part for part in (question, text) if part.strip()) or question


def _history(row: Row) -> list[Any]:
    """Return the messages of earlier questions and answers, as rows of `instruction` keep them."""
    turns = row.get(_HISTORY) or []
    if not isinstance(turns, list) or not all(
        isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns
    ):
        raise Unusable("no_messages", f"history={turns!r}"[:300])
    return [
        one
        for question, answer in turns
        for one in (*_said("user", question), *_said("assistant", answer))
    ]


def _said(role: str, what: Any) -> list[Any]:
    return what if isinstance(what, list) else [{"role": role, "content": what}]
