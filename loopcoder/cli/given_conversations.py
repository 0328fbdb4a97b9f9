"""Prompts of `generate --chat`: a message of the user, or a conversation from a file."""

from __future__ import annotations

import json
from typing import Any

from loopcoder.cli.given_prompts import GivenPrompt
from loopcoder.errors import InputError

Objects = list[dict[str, Any]]


def conversation_of(given: GivenPrompt, system: str | None) -> tuple[Objects, Objects]:
    """Return the messages of a prompt, and the tools that its file has.

    Args:
        system: The system's message, unless the conversation begins with one.

    Raises:
        InputError: a file has no conversation, or `system` is said twice.
    """
    messages: Objects = [{"role": "user", "content": given.text}]
    tools: Objects = []
    if given.is_conversation:
        messages, tools = _read(given)
    if system is None:
        return messages, tools
    if messages and messages[0].get("role") in ("system", "developer"):
        why = "the conversation begins with a message of the system"
        fix = "one of the two"
        raise InputError.of(f"generate.system and messages={given.file}", why, fix)
    return [{"role": "system", "content": system}, *messages], tools


def _read(given: GivenPrompt) -> tuple[Objects, Objects]:
    try:
        found = json.loads(given.text)
    except (ValueError, RecursionError) as error:
        raise _wrong(given, f"it is no JSON: {error}") from error
    if isinstance(found, list):
        found = {"messages": found}
    if not isinstance(found, dict):
        raise _wrong(given, "it is neither a list nor an object")
    messages, tools = found.get("messages"), found.get("tools") or []
    if not messages or not _are_objects(messages):
        raise _wrong(given, "its messages are no list of objects")
    if not _are_objects(tools):
        raise _wrong(given, "its tools are no list of objects")
    return messages, tools


def _are_objects(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(one, dict) for one in found)


def _wrong(given: GivenPrompt, why: str) -> InputError:
    return InputError.of(
        f"messages={given.file}",
        why,
        'a file of [{"role": "user", "content": "..."}], or of {"messages": [...], "tools": [...]}',
    )
