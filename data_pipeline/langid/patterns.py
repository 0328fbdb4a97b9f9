"""Patterns of rules, compiled so that most of a file is skipped.

Whether one of many alternatives is in a text is asked, never where. So a pattern is cut into its
alternatives: those of the start of a text are tried there alone; those that begin a line become one
expression that looks at the first sign of each line; any other is sought only in texts that hold a
word without which it cannot be found.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from itertools import chain
from typing import Literal, NamedTuple

_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.S)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\}|\{,\d+\})[?+]?")
_GROUP = re.compile(r"\((\?:|\?i:|(?!\?))")
_INDENTS = (r"[ \t]*", r"\s*", "")
_MOST_WORDS = 4
_LINE_BYTES = 300

Where = Literal["line", "lines", "plain"]
"""Of the texts of a `Head`."""


class Head:
    """The start of a file, prepared for the rules as far as they need it.

    A CR hides the end of a line, and blanks and endless lines would make many rules quadratic.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @cached_property
    def line(self) -> bytes:
        """An LF and the first line."""
        start = self.raw.strip()[: _LINE_BYTES + 1].splitlines() or [b""]
        return b"\n" + start[0][:_LINE_BYTES]

    @cached_property
    def lines(self) -> bytes:
        """An LF and the lines without CR: as they are, for patterns of a line; plain, if one of
        them is long."""
        raw = self.raw.replace(b"\r", b"\n") if b"\r" in self.raw else self.raw
        text = b"\n" + raw.strip()
        end = 0
        while len(text) - end > _LINE_BYTES + 1:
            # the last end of a line that is near enough
            end = text.rfind(b"\n", end + 1, end + _LINE_BYTES + 2)
            if end < 0:
                return self.plain
        return text

    @cached_property
    def plain(self) -> bytes:
        """An LF and the lines without CR, empty ones left out and long ones cut off."""
        lines = self.raw.strip().splitlines()
        lines = [line for line in lines if line and not line.isspace()]
        if max(map(len, lines), default=0) > _LINE_BYTES:
            lines = [line[:_LINE_BYTES] for line in lines]
        return b"\n" + b"\n".join(lines)


class Way(NamedTuple):
    """A way in which a pattern may be found."""

    words: tuple[bytes, ...]
    """One of them is in all files in which it is found; () if that is not known."""
    seek: Callable[[bytes, int], re.Match[bytes] | None]
    start: int
    """0 if it begins with the LF before a line, which is found fast; 1 if it does not."""
    text: Where
    """Where it is sought: empty lines are no matter to what is found in one line."""


def is_found(head: Head, ways: tuple[Way, ...]) -> bool:
    """Tell whether a pattern is found in the start of a file."""
    for words, seek, start, text in ways:
        if words and not any(word in head.raw for word in words):
            continue
        if seek(getattr(head, text), start):
            return True
    return False


@cache
def ways_of(pattern: str) -> tuple[Way, ...]:
    """Return the ways in which a pattern may be found, one of which is enough; fast ones first."""
    at_start, anywhere = [], []
    lines: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for part in _alternatives(pattern):
        if part.startswith(r"\A"):
            # no text begins with a blank
            rest = part.removeprefix(r"\A").removeprefix(r"\s*")
            where: Where = "line" if _is_within_line(rest) else "plain"
            at_start.append(Way((), _compile(rest).match, 1, where))
        elif part.startswith("^"):
            indent = next(indent for indent in _INDENTS if part.startswith(indent, 1))
            rest = part[1 + len(indent) :]
            lines[indent, bool(_first(rest))].append(rest)
        else:
            found = _compile(_by_word(part.replace(r"\A", r"(?<=\A\n)")))
            where = "lines" if _is_within_line(part) else "plain"
            anywhere.append(Way(_encoded(_words(part)), found.search, 1, where))
    at_line = []
    for (indent, is_told), parts in lines.items():
        found = _compile(_line(indent, is_told, parts))
        words = _words(parts[0]) if len(parts) == 1 and not is_told else []
        # where lines may be empty, each of them would skip all that follow
        is_within = is_told and indent != r"\s*" and all(map(_is_within_line, parts))
        where = "lines" if is_within else "plain"
        at_line.append(Way(_encoded(words), found.search, 0, where))
    return (*at_start, *at_line, *anywhere)


def _encoded(words: list[str]) -> tuple[bytes, ...]:
    return tuple(word.encode() for word in words)


def _by_word(part: str) -> str:
    """Return an alternative that begins with a word so that the word is sought first."""
    if word := re.match(r"\\b([A-Za-z_]{2,})(?![A-Za-z_?*+{])", part):
        return rf"{word[1]}(?<!\w{word[1]}){part[word.end() :]}"
    if letter := re.match(r"\(\?i:\\b([A-Za-z])(?![?*+{])", part):
        either = f"[{letter[1]}{letter[1].swapcase()}]"
        return rf"{either}(?<!\w{either})(?i:{part[letter.end() :]}"
    return part


def _is_within_line(part: str) -> bool:
    """Tell whether all that an alternative finds is in one line, one LF at its ends apart."""
    inner = re.sub(r"^\[(?:\\.|[^\]\\])*\](?![?*+{])|^\\s(?![?*+{])", "", part)
    inner = re.sub(r"(?:\[(?:\\.|[^\]\\])*\]|\\s)$", "", inner)
    inner = re.sub(r"\[\^(?:\\.|[^\]\\])*?\\n(?:\\.|[^\]\\])*\]", "", inner)
    return not re.search(r"\\[sWDnrvfAZ]|\[\^|\(\?[^:i]", inner)


def _compile(pattern: str) -> re.Pattern[bytes]:
    return re.compile(pattern.encode(), re.MULTILINE)


def _line(indent: str, is_told: bool, parts: list[str]) -> str:
    """Return the pattern of a line that begins with one of some alternatives."""
    rest = f"(?:{'|'.join(parts)})"
    if not is_told:
        return rf"\n{indent}{rest}"
    signs = "".join(dict.fromkeys(map(_first, parts)))
    return rf"\n{indent}{'+' if indent else ''}(?=[{signs}]){rest}"


def _alternatives(pattern: str) -> Iterator[str]:
    """Yield the alternatives of a pattern, those of one in brackets too."""
    parts, atoms = [""], list(_atoms(pattern))
    for atom, quantifier in atoms:
        if atom == "|":
            parts.append("")
        else:
            parts[-1] += atom + quantifier
    opening = _GROUP.match(pattern) if len(atoms) == 1 and not atoms[0][1] else None
    if len(parts) > 1:
        for part in parts:
            yield from _alternatives(part)
    elif not opening:
        yield pattern
    elif opening[1] != "?i:":
        yield from _alternatives(pattern[opening.end() : -1])
    else:
        for part in _alternatives(pattern[opening.end() : -1]):
            start = re.match(r"\^?(?:\[ \\t\]\*|\\s\*)?", part)
            assert start
            yield f"{start[0]}(?i:{part[start.end() :]})"


def _atoms(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a pattern, groups and classes whole, each with its quantifier or ""."""
    at = 0
    while at < len(pattern):
        start, depth = at, 0
        while match := _ATOM.match(pattern, at):
            at = match.end()
            depth += {"(": 1, ")": -1}.get(match[0], 0)
            if not depth:
                break
        quantifier = _QUANTIFIER.match(pattern, at)
        yield pattern[start:at], quantifier[0] if quantifier else ""
        at = quantifier.end() if quantifier else at


def _first(part: str) -> str:
    """Return the signs that an alternative begins with, as the inside of a class; "" if one of them
    may be a blank, or that is hard to say."""
    found = ""
    for atom, quantifier in _atoms(part):
        if atom == r"\b":
            continue
        signs = _signs(atom)
        found += signs
        if not signs or not _may_be_left_out(quantifier):
            return found if signs else ""
    return ""


def _signs(atom: str) -> str:
    """Return the signs that a part of a pattern begins with, as `_first` does."""
    if opening := _GROUP.match(atom):
        firsts = [_first(part) for part in _alternatives(atom[opening.end() : -1])]
        signs = "".join(firsts) if all(firsts) else ""
        if opening[1] != "?i:":
            return signs
        return "" if "\\" in signs else signs + signs.swapcase()
    if atom.startswith("["):
        inside = atom[1:-1]
        return "" if inside.strip("^-") != inside or re.search(r"\\[A-Za-z]|\s", inside) else inside
    if sign := _sign(atom):
        return "" if sign.isspace() else re.escape(sign)
    return atom if atom in (r"\w", r"\d") else ""


def _words(part: str) -> list[str]:
    """Return words one of which is in every text that a pattern is found in; [] for no such."""
    best: list[str] = []
    run = ""
    for atom, quantifier in [*_atoms(part), ("", "")]:
        is_there = not _may_be_left_out(quantifier)
        sign = _sign(atom) if is_there else ""
        run += sign
        found = []
        if is_there and (opening := _GROUP.match(atom)) and opening[1] != "?i:":
            each = [_words(part) for part in _alternatives(atom[opening.end() : -1])]
            found = list(chain(*each)) if all(each) else []
        if run and (not sign or quantifier):
            best, run = max(best, [run], key=_rarity), ""
        best = max(best, found, key=_rarity)
    return best


def _rarity(words: list[str]) -> int:
    return min(map(len, words)) if 0 < len(words) <= _MOST_WORDS else 0


def _sign(atom: str) -> str:
    """Return the sign that a part of a pattern stands for, "" if it is not one alone."""
    if len(atom) == 1:
        return "" if atom in ".^$|" else atom
    return atom[1] if len(atom) == 2 and atom[0] == "\\" and not atom[1].isalnum() else ""


def _may_be_left_out(quantifier: str) -> bool:
    return quantifier[:1] in ("?", "*") or quantifier.startswith(("{0", "{,"))
