"""Rows of data sets as conversations; what must not be trained on is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from loopcoder.chat.conversation import (
    THINK,
    THOUGHT,
    Conversation,
    Message,
    Role,
    restored_call,
    written,
)
from loopcoder.chat.forms import messages_of, tools_of
from loopcoder.chat.markup import read_markup
from loopcoder.chat.messages import NAME
from loopcoder.chat.unusable import Unusable

_ROLES = get_args(Role)


def parse(
    row: Mapping[str, Any],
    *,
    messages_field: str | None = None,
    tools_field: str | None = None,
    markup: Literal["read", "keep"] = "read",
) -> Conversation:
    """Return the conversation of a row.

    Messages are OpenAI's (content as text or text parts; calls with arguments as an object or as
    JSON in a string), ShareGPT's, or a question and its answer (`forms.messages_of`). Reasoning is
    a field of a message, or a `<think>` block that its content begins with. Calls and results may
    be spelled in contents (`markup.read_markup`). A message is trained
    unless it has `train: false` or `weight: 0`; what is neither true (1) nor false (0) is refused.

    The system speaks first or not at all. Users may speak twice in a row. The assistant answers a
    user or results of tools, once; its calls are followed by at most as many results, at least one,
    unless they end the conversation.

    Args:
        messages_field: Column with the messages; None: by their usual names.
        tools_field: Column with the tools; None: `tools` or `functions`.
        markup: Whether tags of calls, results and reasoning within contents are read, or stay text.

    Raises:
        Unusable: it is none of these, or not well-formed.
    """
    given, tools = messages_of(row, messages_field), tuple(tools_of(row, tools_field))
    for message in given:
        _check_thoughts(message)
    messages = tuple(map(_message, read_markup(given, tools) if markup == "read" else given))
    _check_order(messages)
    _check_calls(messages, {tool["function"]["name"] for tool in tools})
    conversation = Conversation(messages, tools)
    _check_text(conversation)
    return conversation


def _message(form: Mapping[str, Any]) -> Message:
    """Return a message of a normalised one."""
    role, content = form["role"], form["content"]
    if role not in _ROLES:
        raise Unusable("unknown_role", f"role={role!r}"[:100])
    calls = form.get("tool_calls", ())
    if not content.strip() and not calls and role in ("user", "assistant"):
        raise Unusable("empty_turn", f"role={role}")
    reasoning = form.get("reasoning_content") if role == "assistant" else None
    return Message(
        cast("Role", role),
        content,
        reasoning,
        tuple(map(restored_call, calls)),
        _name(form, "tool_call_id") if role == "tool" else None,
        _name(form, "name") if role == "tool" else None,
        train=_is_trained(form),
    )


def _check_thoughts(form: Mapping[str, Any]) -> None:
    """Refuse reasoning that would be read otherwise than it was written: a block that is not
    closed, or one within or behind another."""
    if form["role"] != "assistant":
        return
    reasoning = form.get("reasoning_content", "")
    if form["content"].lstrip().startswith(THINK):
        raise Unusable("bad_reasoning", f"an answer begins with {THINK}")
    if THINK in reasoning or THOUGHT in reasoning:
        raise Unusable("bad_reasoning", f"reasoning has {THINK} or {THOUGHT} in it")


def _is_trained(form: Mapping[str, Any]) -> bool:
    """Say whether a message is to be learned, by its `train` and `weight`."""
    for name in ("train", "weight"):
        value = form.get(name, 1)
        if not isinstance(value, int | float) or value not in (0, 1):
            raise Unusable("bad_train_flag", f"{name}={value!r}"[:100])
        if value == 0:
            return False
    return True


def _name(given: Mapping[str, Any], field: str) -> str | None:
    value = given.get(field)
    return None if value is None else str(value)


def _check_order(messages: Sequence[Message]) -> None:
    before, results = None, 0
    for place, message in enumerate(messages):
        results = results + 1 if message.role == "tool" else 0
        fits = {
            "system": before is None,
            "user": before is None or (before.role != "assistant" or not before.tool_calls),
            "assistant": before is not None and before.role in ("user", "tool"),
            "tool": before is not None and (before.role == "tool" or bool(before.tool_calls)),
        }[message.role]
        if not fits:
            behind = "nothing" if before is None else before.role
            raise Unusable("roles_out_of_order", f"message {place}: {message.role} after {behind}")
        if message.role == "tool" and results > len(messages[place - results].tool_calls):
            raise Unusable("roles_out_of_order", f"message {place}: a result without a call")
        before = message
    if not any(message.role == "assistant" for message in messages):
        raise Unusable("no_assistant_turn")


def _check_calls(messages: Sequence[Message], tools: set[str]) -> None:
    ids: set[str | None] = set()
    for message in messages:
        for call in message.tool_calls:
            if tools and call.name not in tools:
                raise Unusable("unknown_tool", f"{call.name!r}, not {sorted(tools)}"[:300])
            if odd := [name for name in call.arguments if not NAME.fullmatch(name)]:
                raise Unusable("invalid_tool_json", f"an argument of the name {odd[0]!r}"[:300])
        if message.role == "assistant":
            ids = {call.id for call in message.tool_calls}
        elif (
            message.tool_call_id is not None and None not in ids and message.tool_call_id not in ids
        ):
            raise Unusable(
                "roles_out_of_order", f"a result of the call {message.tool_call_id}"[:200]
            )


def _check_text(conversation: Conversation) -> None:
    """Refuse what UTF-8 or JSON cannot hold, wherever it stands."""
    messages = [written(message) for message in conversation.messages]
    for part, reason in ((messages, "invalid_tool_json"), (conversation.tools, "bad_tools")):
        try:
            json.dumps(part, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            raise Unusable("surrogate", str(error)[-100:]) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise Unusable(reason, str(error)[:200]) from error
