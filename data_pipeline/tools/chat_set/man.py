"""Questions on Linux's manual pages: examples, prototypes and return values, from their roff."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from data_pipeline.tools.chat_set.rows import Row, asked, is_whole

_LICENCE = re.compile(r"SPDX-License-Identifier:\s*([\w.+-]+)")
_FONTS = {"B": "**", "I": "*", "R": "", "SM": "", "SB": "**"}
_GLYPHS = {
    "aq": "'", "dq": '"', "ga": "`", "ha": "^", "ti": "~", "rs": "\\", "bu": "-", "em": " - ",
    "en": "-", "lq": '"', "rq": '"', "oq": "'", "cq": "'", "mu": "x", "->": "->", "<=": "<=",
    ">=": ">=", "!=": "!=", "co": "(c)", "mc": "u", "at": "@", "+-": "+-", "**": "*", "or": "|",
    "lB": "[", "rB": "]", "Fo": "<<", "Fc": ">>", "*": "*",
}  # fmt: skip
_IGNORED = "ad nh hy sp in ns na ne br PD UE ti ft lg rm ss ll"
_KINDS = {
    "man_example": (("EXAMPLES", "EXAMPLE"), "Show an example of how {name} is used, in C."),
    "man_returns": (("RETURN VALUE",), "What does {name} return?"),
}


class _Unreadable(Exception):
    """A page uses what this reader does not know."""


def rows_of_page(roff: str, source: str) -> Iterator[Row]:
    """Yield what one page can answer; sections that cannot be read as text yield nothing."""
    roff = roff.replace("\r", "")
    licence, title = _LICENCE.search(roff), re.search(r"^\.TH (\S+) (\d\w*)", roff, re.M)
    if licence is None or title is None or title[2][0] not in "123":
        return
    sections = dict(re.findall(r"^\.SH \"?([A-Z ]+)\"?\n(.*?)(?=^\.SH |\Z)", roff, re.M | re.S))
    names, _, purpose = _escapes(" ".join(sections.get("NAME", "").split())).partition(" - ")
    if not purpose:
        return
    page = f"`{title[1]}({title[2]})`"
    of = {"source": source, "licence": licence[1]}
    made = "question by rule; the answer is a section of the page, written by people"
    for kind, (headings, question) in _KINDS.items():
        body = next((sections[heading] for heading in headings if heading in sections), "")
        answer = _readable(body)
        if len(answer) > 30 and is_whole(answer) and (kind != "man_example" or "```" in answer):
            yield asked(kind, question.format(name=page), answer, made=made, **of)
    prototypes = _prototypes(sections.get("SYNOPSIS", ""))
    if prototypes and title[2][0] in "23":
        question = f"Which function can {_lowered(purpose)} in C, and how is it declared?"
        listed = ", ".join(f"`{name.strip()}`" for name in names.split(","))
        answer = f"{listed}: {purpose}.\n\n```c\n{prototypes}\n```\n\nSee {page}."
        if is_whole(answer) and re.match(r"[a-z]+ ", purpose):
            yield asked("man_prototype", question, answer, made=made, **of)


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def _readable(body: str) -> str:
    try:
        return markdown(body)
    except _Unreadable:
        return ""


def _prototypes(body: str) -> str:
    """Return what a synopsis shows between .nf and .fi."""
    shown = re.search(r"^\.nf\n(.*?)^\.fi", body, re.M | re.S)
    try:
        text = "\n".join(_code_line(line) for line in shown[1].split("\n")) if shown else ""
    except _Unreadable:
        return ""
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    is_c = "(" in text and text.endswith(";") and "Deprecated" not in text
    return text if is_c and "#include" in text else ""


def markdown(roff: str) -> str:
    """Return the text of a section as Markdown.

    Raises:
        _Unreadable: it has a table or a macro that is not known.
    """
    page = _Page()
    for line in roff.split("\n"):
        page.add(line)
    page.flush()
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(page.parts)).strip()


class _Page:
    """The paragraphs so far, and the one that grows."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._words: list[str] = []
        self._code: list[str] | None = None
        self._item = ""
        self._is_tag = False

    def add(self, line: str) -> None:
        """Take a line of the source."""
        macro = re.match(r"[.'][ \t]*([A-Za-z]{1,2}|\\\"|\\}|\s*$)(.*)", line)
        name = macro[1] if macro else ""
        if self._code is not None:
            if name in ("EE", "fi"):
                text = "\n".join(self._code).rstrip()
                language = "console" if re.match(r"\s*[$#] ", text) else "c"
                self.parts += [f"```{language}\n{text}\n```"] if text.strip() else []
                self._code = None
            elif macro is None or name not in ("EX", "nf", '\\"', "in", "RS", "RE", "PP"):
                self._code.append(_code_line(line))
            return
        if line.startswith((".", "'")) and macro is None:
            raise _Unreadable(line)
        if macro is None:
            self._text(_escapes(line))
        elif name in ("PP", "P", "LP", "RE", "RS", ""):
            self.flush()
        elif name in ("EX", "nf"):
            self.flush()
            self._code = []
        elif name in ("TP", "TQ", "IP"):
            self.flush()
            tag = _arguments(macro[2])[:1] if name == "IP" else []
            self._item = "- " if name == "TP" or not tag else f"- {tag[0]} ".replace("- - ", "- ")
            self._is_tag = name != "IP"
        elif name in ("SS",):
            self.flush()
            self.parts.append(f"**{' '.join(_arguments(macro[2]))}**")
        elif name == "UR":
            self._text(_escapes(macro[2].strip()))
        elif name not in _IGNORED.split() and not name.startswith("\\"):
            self._text(_font(name, macro[2]))

    def _text(self, text: str) -> None:
        if not text.strip():
            return
        if self._is_tag:
            self._item, self._is_tag = f"- {text.strip()}: ", False
        else:
            self._words.append(text.strip())

    def flush(self) -> None:
        """End the paragraph."""
        if self._words or self._item.strip("- :"):
            self.parts.append(self._item + " ".join(self._words))
        self._words, self._item, self._is_tag = [], "", False


def _font(name: str, rest: str) -> str:
    """Return the arguments of .B, .I, .BR, ... with their fonts; names of functions as code."""
    if name not in _FONTS and not (len(name) == 2 and set(name) <= set("BIR")):
        raise _Unreadable(name)
    pieces = _arguments(rest)
    fonts = name if name not in _FONTS else ""
    if not fonts:
        return _styled(_FONTS[name], " ".join(pieces))
    if fonts in ("BR", "RB") and len(pieces) == 2 and re.match(r"\(\d?\w*\)", pieces[1]):
        call = re.match(r"(\(\d?\w*\))(.*)", pieces[1])
        return f"`{pieces[0]}{call[1]}`{call[2]}" if call else ""
    return "".join(_styled(_FONTS[fonts[n % 2]], piece) for n, piece in enumerate(pieces))


def _styled(mark: str, text: str) -> str:
    if not mark or not text.strip():
        return text
    if re.search(r"[_*<>=&|/]|^[A-Z]+$", text):
        return f"`{text}`"
    return f"{mark}{text}{mark}"


def _code_line(line: str) -> str:
    """Return a line of code; fonts mean nothing there."""
    macro = re.match(r"\.([A-Z]{1,2})[ \t]+(.*)", line)
    if macro and set(macro[1]) <= set("BIR"):
        return (" " if macro[1] in ("B", "I") else "").join(_arguments(macro[2]))
    if line.startswith((".PP", '.\\"', ".br")) or line == ".":
        return ""
    if line.startswith(".") and not re.match(r"\.[. ]?/", line):
        raise _Unreadable(line)
    return _escapes(line)


def _arguments(text: str) -> list[str]:
    """Return the arguments of a macro: a quoted one may hold spaces."""
    lexer = shlex.shlex(text.replace("\\ ", "\0"), posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape, lexer.quotes = True, "", "", '"'
    try:
        return [_escapes(piece.replace("\0", " ")) for piece in lexer]
    except ValueError as error:
        raise _Unreadable(text) from error


def _escapes(text: str) -> str:
    """Return a text with the escapes of roff as characters."""
    text = re.sub(r"\\\".*$", "", text)

    def one(match: re.Match[str]) -> str:
        glyph = match[1] or match[2]
        if glyph is not None:
            if glyph not in _GLYPHS:
                raise _Unreadable(match[0])
            return _GLYPHS[glyph]
        return {"e": "\\", "-": "-", " ": " ", "~": " ", "0": " ", "&": "", "\\": "\\"}.get(
            match[0][1], ""
        )

    pattern = r"\\\[([^\]]+)\]|\\\((..)|\\f(?:\[\w*\]|\(..|.)|\\s[+-]?\d|\\."
    return re.sub(pattern, one, text)
