"""The languages of GitHub's linguist: names, extensions and rules, read from linguist.json.

`make.py` made the file; it names its source, commit and licence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Rule = tuple[str, tuple[tuple[bool, str], ...]]
"""A language, "" for one that is not of the corpus, and patterns, each with whether it must be
absent. All of them must agree; without patterns the rule holds for every file."""


@dataclass(frozen=True)
class Table:
    """What linguist knows, with the names that languages have here."""

    code: frozenset[str]
    """Languages that count as code."""
    prose: frozenset[str]
    """Formats that count as text."""
    extensions: Mapping[str, tuple[str, ...]]
    """Languages of an extension; "" stands for those that are not of the corpus."""
    files: Mapping[str, str]
    """Languages of whole names of files, in small letters."""
    interpreters: Mapping[str, str]
    aliases: Mapping[str, str]
    """Languages by other names, in small letters."""
    rules: Mapping[str, tuple[Rule, ...]]
    """Rules of an extension, in the order in which they are tried."""


def _read() -> Table:
    found = json.loads(Path(__file__).with_name("linguist.json").read_text(encoding="utf-8"))
    return Table(
        code=frozenset(found["code"]),
        prose=frozenset(found["prose"]),
        extensions={e: tuple(names) for e, names in found["extensions"].items()},
        files=found["files"],
        interpreters=found["interpreters"],
        aliases=found["aliases"],
        rules={
            extension: tuple((name, tuple((bool(a), p) for a, p in ps)) for name, ps in rules)
            for extension, rules in found["rules"].items()
        },
    )


LINGUIST = _read()
