"""A config holds no secrets: it is recorded, printed, copied to stores and to other services."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from loopcoder.errors import Problem
from loopcoder.storage.secrets import masked, secret_values

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WHY = "a run records its config, prints it and copies it to the store"


def check_secrets(config: DataclassInstance) -> Iterator[Problem]:
    """Yield the fields with a password in a URL, or with a secret of the environment."""
    yield from _exposed(_texts(dataclasses.asdict(config)))


def check_overrides(overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield the same of overrides, which a run records too."""
    parts = (override.partition("=") for override in overrides)
    yield from _exposed((key, value) for key, _, value in parts)


def _exposed(texts: Iterator[tuple[str, str]]) -> Iterator[Problem]:
    values = secret_values()
    for key, text in texts:
        if (shown := masked(text, ())) != text:
            yield Problem(f"{key}={masked(shown, values)} has a password", _WHY, _fix(text))
        elif name := next((values[value] for value in values if value in text), None):
            yield Problem(
                f"{key}={masked(text, values)} has the value of {name}",
                f"{_WHY}; this variable's name says that it is a secret",
                f"leave it out: what needs it reads the variable. If it is no secret, unset {name}",
            )


def _fix(text: str) -> str:
    found = re.search(r"(\w[\w+.-]*)://", text)
    protocol = found[1] if found else ""
    if protocol in ("http", "https"):
        return "download the files and give their folder, or a server that takes the machine"
    user, secret = ("key", "secret") if protocol == "s3" else ("username", "password")
    return (
        f'a file ~/.config/fsspec/{protocol}.json with {{"{protocol}": {{"{user}": ..., '
        f'"{secret}": ...}}}}, or export FSSPEC_{protocol.upper()}_{secret.upper()}=..., and '
        "the URL without it"
    )


def _texts(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text, keys of mappings too, with the dotted name of its place."""
    if isinstance(node, str):
        yield prefix, node
    elif isinstance(node, dict | list):
        named = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in named:
            yield from _texts(value, f"{prefix}.{name}" if prefix else str(name))
