"""A conversation of the set, how a set of them is balanced, and the table of what is in it."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from loopcoder.storage.files import whole_file

Message = dict[str, Any]
"""One message in the form of OpenAI's chat completions."""

BY_PEOPLE = "written by people"
MAX_ANSWER = 6_000
"""Most characters of an answer; a longer one is left out whole."""


@dataclass(frozen=True)
class Row:
    """One conversation, and where it comes from."""

    kind: str
    """What it teaches, such as `perl_faq` or `tool_call`."""
    messages: Sequence[Message]
    source: str
    """The package, its version and the place in it."""
    licence: str
    """Of the text that it is made of, as SPDX names it."""
    made: str
    """`written by people`, or by which rule the rest came to be."""
    tools: Sequence[dict[str, Any]] = field(default_factory=tuple)

    def plain(self, *, reasoning: bool) -> dict[str, Any]:
        """Return what is written of it, with or without the reasoning of its answers."""
        messages = [dict(message) for message in self.messages]
        reasoned = [message for message in messages if "reasoning_content" in message]
        made = self.made
        if reasoning and reasoned:
            made += "; reasoning by rule: it tells what the answer was derived from"
        for message in () if reasoning else reasoned:
            del message["reasoning_content"]
        return {
            "messages": messages,
            **({"tools": list(self.tools)} if self.tools else {}),
            "kind": self.kind,
            "source": self.source,
            "licence": self.licence,
            "made": made,
        }


def user(text: str) -> Message:
    """Return what a user says."""
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> Message:
    """Return what the assistant answers, and after which thoughts."""
    thoughts = {"reasoning_content": reasoning} if reasoning else {}
    return {"role": "assistant", "content": text, **thoughts}


def asked(
    kind: str, question: str, answer: str, *, source: str, licence: str, made: str,
    reasoning: str = "",
) -> Row:  # fmt: skip
    """Return a conversation of one question and its answer."""
    messages = (user(question), assistant(answer, reasoning))
    return Row(kind, messages, source, licence, made)


def is_whole(text: str) -> bool:
    """Tell whether a text has a usual length, ends as a text ends and closes its fences."""
    text = text.rstrip()
    closes = text.endswith((".", "!", "?", ")", "`", '"', "'", "]", "}", ";", "*"))
    return 0 < len(text) <= MAX_ANSWER and closes and text.count("```") % 2 == 0


def _key(row: Row) -> int:
    """Return what two conversations have in common that say the same."""
    said = [[m["role"], m.get("content"), m.get("tool_calls")] for m in row.messages]
    return xxhash.xxh3_64_intdigest(json.dumps(said).lower())


def chosen(rows: Iterable[Row], max_per_kind: int, seed: int) -> list[Row]:
    """Return at most so many rows of each kind, no two the same, mixed, by seed.

    Within a kind, the packages that rows come from take turns: one large package does not fill it.
    """
    by_kind: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        by_kind[row.kind][row.source.split(":")[0]].setdefault(_key(row), row)
    kept: list[tuple[int, Row]] = []
    for packages in by_kind.values():
        ordered = {
            name: sorted(found.items(), key=lambda entry: _mixed(entry[0], seed))
            for name, found in sorted(packages.items())
        }
        turns: Iterator[tuple[int, Row]] = (
            entries[turn]
            for turn in range(max(map(len, ordered.values())))
            for entries in ordered.values()
            if turn < len(entries)
        )
        kept += [entry for entry, _ in zip(turns, range(max_per_kind), strict=False)]
    # one conversation may be of two kinds
    return [row for _, row in sorted(dict(kept).items(), key=lambda e: _mixed(e[0], seed))]


def joined_licences(licences: Iterable[str]) -> str:
    """Return the licence of what is made of several texts, as SPDX writes it."""
    parts = {part.strip("()") for licence in licences for part in licence.split(" AND ")}
    if len(parts) == 1:
        return parts.pop()
    return " AND ".join(sorted(f"({part})" if " OR " in part else part for part in parts))


def _mixed(key: int, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(key.to_bytes(8), seed=seed)


def generator(seed: int, *of: str) -> random.Random:
    """Return a generator of its own for one thing of the set: others do not move its draws."""
    return random.Random(f"{seed} {' '.join(of)}")


def write(rows: Iterable[Row], path: Path, *, reasoning: bool) -> list[dict[str, Any]]:
    """Write a file of JSON lines and return what is in it."""
    plain = [row.plain(reasoning=reasoning) for row in rows]
    with whole_file(path) as file:
        for row in plain:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return plain


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return by kind how many rows and characters there are, and under which licences."""
    lines = [f"{'kind':<16} {'rows':>6} {'turns':>6} {'characters':>11}  licences"]
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row)
    for kind, found in [*sorted(by_kind.items()), ("all", list(rows))]:
        licences = Counter(row["licence"] for row in found)
        named = ", ".join(f"{name} {number:,}" for name, number in licences.most_common(5))
        more = f", {len(licences) - 5} more" if len(licences) > 5 else ""
        answers = [m for row in found for m in row["messages"] if m["role"] == "assistant"]
        size = sum(len(json.dumps(row["messages"], ensure_ascii=False)) for row in found)
        lines.append(f"{kind:<16} {len(found):>6,} {len(answers):>6,} {size:>11,}  {named}{more}")
    return "\n".join(lines)
