"""Which of the languages that share an extension a file is in, by what is in it.

The rules are linguist's (`table.py`) and own ones (`rules.py`), tried in order; the first that
holds decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from data_pipeline.langid.rules import OWN, THEIRS
from data_pipeline.langid.table import LINGUIST, Rule

SHARED = frozenset(LINGUIST.rules) | frozenset(OWN)
"""Extensions, in small letters, that rules decide."""
# Scilab's tests have own rules; tests of others are more frequent than both languages of linguist's
_NO_DEFAULT = {"tst"}
_DEFAULTS = {
    extension: rules[-1][0]
    for extension, rules in LINGUIST.rules.items()
    if rules[-1][0] and not rules[-1][1] and extension not in _NO_DEFAULT
} | {"typ": "Typst"}
_LINE_BYTES = 300
_BLANK_LINES = re.compile(rb"\n(?:[^\S\n]*\n)+")
# most files tell at once
_WINDOWS = (4 << 10, 50 << 10)


class _Patterns(NamedTuple):
    """Patterns one of which must be found, or must not."""

    is_absent: bool
    at_line: tuple[re.Pattern[bytes], ...]
    """Those that begin a line; they begin with its LF, which is found fast."""
    anywhere: tuple[re.Pattern[bytes], ...]

    def hold(self, text: bytes, after_lf: bytes) -> bool:
        found = any(p.search(after_lf) for p in self.at_line) or any(
            p.search(text) for p in self.anywhere
        )
        return found != self.is_absent


def decide(extension: str, head: bytes) -> str | None:
    """Return the language that the rules of an extension find in the start of a file.

    Returns:
        "" for a language that is not of the corpus, None if no rule holds.
    """
    for size in _WINDOWS:
        text = _plain(head[:size])
        after_lf = b"\n" + text
        is_whole = len(head) <= size or size == _WINDOWS[-1]
        for language, patterns in _rules(extension, is_whole):
            if all(_compiled(*p).hold(text, after_lf) for p in patterns):
                return language
        if is_whole:
            break
    return None


def _plain(head: bytes) -> bytes:
    """Return lines without CR, empty ones left out and long ones cut off.

    A CR hides the end of a line, and blanks and endless lines would make many rules quadratic.
    """
    text = head.replace(b"\r", b"\n") if b"\r" in head else head
    text = _BLANK_LINES.sub(b"\n", text.strip())
    lines = text.split(b"\n")
    if max(map(len, lines)) <= _LINE_BYTES:
        return text
    return b"\n".join([line[:_LINE_BYTES] for line in lines])


def default_of(extension: str) -> str | None:
    """Return the language of those files that no rule decides, where linguist names one."""
    return _DEFAULTS.get(extension)


@cache
def _rules(extension: str, is_whole: bool) -> tuple[Rule, ...]:
    """Return the rules of an extension; those after linguist's are for whole files alone."""
    theirs = LINGUIST.rules.get(extension, ())
    rules: list[Rule] = []
    for rule in OWN.get(extension, (THEIRS,)):
        if rule == THEIRS:
            rules += theirs
            if not is_whole:
                break
        else:
            rules.append((rule[0], ((False, "|".join(rule[1:])),)))
    # one that holds for every file is a default
    return tuple((language, patterns) for language, patterns in rules if patterns)


@cache
def _compiled(is_absent: bool, pattern: str) -> _Patterns:
    parts = list(_alternatives(pattern))
    at_line = [rf"\n{part[1:]}" for part in parts if part.startswith("^")]
    joined = ["|".join(at_line)] if at_line else []
    others = [part for part in parts if not part.startswith("^")]
    at, anywhere = (
        tuple(re.compile(p.encode(), re.MULTILINE) for p in ps) for ps in (joined, others)
    )
    return _Patterns(is_absent, at, anywhere)


def _tokens(pattern: str) -> Iterator[tuple[str, int, bool]]:
    """Yield the tokens of a pattern, each with the brackets that are open after it, and whether it
    is one of a class such as `[|(]`, where signs mean themselves."""
    depth = 0
    in_class = False
    for token in re.findall(r"\\.|.", pattern, re.S):
        is_literal = in_class
        if in_class:
            in_class = token != "]"
        elif token == "[":
            in_class = True
        elif token in "()":
            depth += 1 if token == "(" else -1
        yield token, depth, is_literal


def _alternatives(pattern: str) -> Iterator[str]:
    """Yield the alternatives of a pattern, those of one in brackets too."""
    found = [""]
    for token, depth, is_literal in _tokens(pattern):
        if token == "|" and depth == 0 and not is_literal:
            found.append("")
        else:
            found[-1] += token
    if len(found) > 1:
        for part in found:
            yield from _alternatives(part)
    elif inner := _bracketed(pattern):
        yield from _alternatives(inner)
    else:
        yield pattern


def _bracketed(pattern: str) -> str:
    """Return what a pattern that is one pair of brackets holds, or ""."""
    start = re.match(r"\((?:\?:)?(?!\?)", pattern)
    if not start or not pattern.endswith(")"):
        return ""
    *inner, _ = _tokens(pattern)
    if any(token == ")" and depth == 0 and not literal for token, depth, literal in inner):
        return ""
    return pattern[start.end() : -1]
