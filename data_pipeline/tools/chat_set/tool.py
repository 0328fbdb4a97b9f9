"""A tool that an assistant may call: its name, what it does, its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_PARAMETERS = 7
NEVER_SAID = re.compile(
    r"token|marker|secret|password|credential|dry.?run|if.?match|^(out|kwargs|args|dtype)$", re.I
)
"""Names of parameters that nobody gives in words."""


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool."""

    name: str
    schema: Mapping[str, Any]
    """JSON schema of its values, without the description."""
    required: bool
    description: str = ""


@dataclass(frozen=True)
class Tool:
    """A tool, and where it was found."""

    name: str
    summary: str
    """One sentence."""
    act: str
    """The same as what someone asks for: `list the files of a folder`."""
    parameters: Sequence[Parameter]
    source: str
    licence: str
    kind: str
    """`function`, `program`, `api` or `computed`."""

    def plain(self) -> dict[str, Any]:
        """Return it in the form of OpenAI's chat completions."""
        properties = {
            p.name: {**p.schema, **({"description": p.description} if p.description else {})}
            for p in self.parameters
        }
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        required = [p.name for p in self.parameters if p.required]
        if required:
            parameters["required"] = required
        function = {"name": self.name, "description": self.summary, "parameters": parameters}
        return {"type": "function", "function": function}


def words(name: str) -> str:
    """Return a name as words: `max_depth`, `MaxDepth` and `--max-depth` are `max depth`."""
    if len(name) == 1:
        return name
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    spaced = " ".join(re.split(r"[\s_.-]+", spaced.strip("-_")))
    return " ".join(w if w.isupper() and len(w) > 1 else w.lower() for w in spaced.split())


def first_sentence(text: str, limit: int = 160) -> str:
    """Return the first sentence of a description, or "" if it is longer than that."""
    text = " ".join(text.split()).replace("``", "`")
    text = re.sub(r":[\w:]+:`[~!]?([^`]+)`", r"`\1`", text)
    match = re.match(r"(.+?[.!?])(?=\s|$)", text)
    sentence = match[1] if match else text
    is_odd = re.search(r"e\.g\.?$|i\.e\.?$|http|>>>|\s::", sentence) or sentence.count("`") % 2
    if is_odd or not 3 < len(sentence) <= limit or sentence.count("(") != sentence.count(")"):
        return ""
    return sentence if sentence[-1] in ".!?" else f"{sentence}."


def arranged(found: Sequence[Parameter]) -> list[Parameter]:
    """Return the parameters that a tool shows, those that it requires first; [] if too many are
    required, or one that nobody can give in words."""
    required = [p for p in found if p.required]
    optional = [p for p in found if not p.required and not NEVER_SAID.search(p.name)]
    if len(required) > MAX_PARAMETERS or any(NEVER_SAID.search(p.name) for p in required):
        return []
    return [*required, *optional][:MAX_PARAMETERS]
