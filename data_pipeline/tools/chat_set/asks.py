"""A request that a tool can answer: the words, the arguments, what comes back."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.tools.chat_set.tool import Parameter, Tool, words
from data_pipeline.tools.chat_set.values import slug, spoken, value_of

_REQUESTS = (
    "{Act}, with {details}.",
    "Please {act}. Use {details}.",
    "Can you {act}? Take {details}.",
    "I want to {act}: {details}.",
    "{Act} ({details}).",
    "I need you to {act}, with {details}.",
    "Could you please {act} for me, with {details}?",
    "{Act} - {details}.",
)
_BARE = ("Please {act}.", "Can you {act}?", "I want to {act}.", "{Act}, please.", "{Act}.")


@dataclass(frozen=True)
class Ask:
    """One request and the call that answers it."""

    tool: Tool
    text: str
    """Of the request."""
    arguments: Mapping[str, Any]
    result: str
    """What the tool returns; "": nothing can be said of it by rule."""
    answer: str
    """What is said once the result is there."""
    details: Mapping[str, str]
    """By parameter, in which words the request gives it."""

    @property
    def reasoning(self) -> str:
        """Return which tool is chosen and where each argument comes from."""
        return f"{fits(self.tool)} {self.derived}"

    @property
    def derived(self) -> str:
        """Return where each argument comes from."""
        said = [f"`{name}` is {shown}" for name, shown in self.details.items()]
        left = [p.name for p in self.tool.parameters if p.name not in self.arguments]
        told = f"From the request: {', '.join(said)}." if said else "It needs no argument."
        if left:
            named = ", ".join(f"`{name}`" for name in left)
            told += f" Nothing is said about {named}, which may be left out."
        return told


def fits(tool: Tool) -> str:
    """Return why a tool is the right one."""
    return f"The user wants to {tool.act}. The tool `{tool.name}` does that."


def ask_of(tool: Tool, rng: random.Random) -> Ask:
    """Make a request for a tool, with all that it requires and some of what it may be given."""
    optional = [p for p in tool.parameters if not p.required]
    some = rng.sample(optional, min(len(optional), rng.choice((0, 0, 1, 1, 2))))
    given = [p for p in tool.parameters if p.required] + some
    rng.shuffle(given)
    values = {p.name: value_of(p, rng) for p in given}
    shown = {p.name: spoken(values[p.name], rng) for p in given}
    text = request(tool, given, shown, rng)
    ordered = {p.name: values[p.name] for p in tool.parameters if p.name in values}
    result, answer = _outcome(tool, ordered, rng)
    return Ask(tool, text, ordered, result, answer, shown)


def request(
    tool: Tool, given: Sequence[Parameter], shown: Mapping[str, str], rng: random.Random
) -> str:
    """Return a request in words that names these values."""
    style = rng.randrange(5)
    details = _joined([_detail(p, shown[p.name], style, rng) for p in given])
    template = rng.choice(_REQUESTS if details else _BARE)
    return template.format(act=tool.act, Act=capital(tool.act), details=details)


def capital(text: str) -> str:
    """Return a text that begins with a capital letter, unless it begins with code."""
    return text[:1].upper() + text[1:]


def _detail(parameter: Parameter, shown: str, style: int, rng: random.Random) -> str:
    named = words(parameter.name)
    if parameter.schema["type"] == "boolean" and style != 2:
        return rng.choice((f"{named} {'on' if shown == 'true' else 'off'}", f"{named} {shown}"))
    return (
        f"{named} {shown}",
        f"{shown} as the {named}",
        f"{parameter.name}={shown}",
        f"{named}: {shown}",
        f"`{parameter.name}` set to {shown}",
    )[style]


def _joined(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    separator = "; " if any(", " in part for part in parts) else ", "
    if separator == "; ":
        return separator.join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _outcome(tool: Tool, arguments: Mapping[str, Any], rng: random.Random) -> tuple[str, str]:
    """Return what the tool returns, and what is said then; nothing where only running it would
    tell."""
    verb = tool.act.split()[0]
    if tool.kind == "program":
        return '{"exit_code": 0, "stderr": ""}', f"`{tool.name}` ran and reported no error."
    if verb in ("list", "search", "enumerate", "query") and rng.random() < 0.8:
        names = [slug(rng) for _ in range(rng.randint(0, 4))]
        listed = ", ".join(f'"{name}"' for name in names)
        if not names:
            return '{"items": []}', "There are none: the list that came back is empty."
        shown = _joined([f"`{name}`" for name in names])
        counted = "There is one" if len(names) == 1 else f"There are {len(names)}"
        return f'{{"items": [{listed}]}}', f"{counted}: {shown}."
    if verb not in _DOING.split():
        return "", ""
    made = f"{words(tool.name).split()[-1]}-{rng.randrange(16**6):06x}"
    if verb in ("create", "start", "submit", "launch", "register") and rng.random() < 0.6:
        return f'{{"status": "ok", "id": "{made}"}}', rng.choice(
            (f"Done. Its id is `{made}`.", f"That worked; the id is `{made}`.")
        )
    return '{"status": "ok"}', rng.choice(
        (
            f"Done: `{tool.name}` reported success.",
            "That worked; the tool reported no error.",
            f"It is done. I called `{tool.name}` and got the status ok.",
        )
    )


_DOING = """
add apply associate attach cancel clear configure copy create delete detach disable disassociate
enable grant import insert install launch link lock merge move pack pause publish put register
reject remove rename replace reset resize restart restore revoke save schedule send set start
stop store subscribe swap tag terminate unlock unpack unregister unsubscribe untag update upload
write
"""
"""What is done and has no more to tell than that it was."""
