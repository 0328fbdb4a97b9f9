"""Questions of Python's FAQ and their answers: reStructuredText turned into Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from data_pipeline.tools.chat_set.rows import BY_PEOPLE, Row, asked, is_whole

LICENCE = "PSF-2.0"
_UNDERLINE = re.compile(r"^([=\-~^\"'#*+])\1{3,}$")
_LANGUAGES = {"pycon": "python", "python3": "python", "shell-session": "console"}


def faq_rows(rst: str, source: str) -> Iterator[Row]:
    """Yield each heading that asks something, with the section below it as the answer."""
    for question, body in _sections(rst):
        answer = markdown(body)
        if question.endswith("?") and len(answer) > 40 and is_whole(answer):
            yield asked(
                "python_faq", _with_topic(inline(question)), answer,
                source=source, licence=LICENCE, made=BY_PEOPLE,
            )  # fmt: skip


def _with_topic(question: str) -> str:
    return question if re.search(r"python|idle|pip", question, re.I) else f"In Python: {question}"


def _sections(rst: str) -> Iterator[tuple[str, str]]:
    """Yield headings with what stands below them, until the next one."""
    lines = rst.split("\n")
    starts = [
        number
        for number in range(len(lines) - 1)
        if lines[number].strip()
        and not lines[number].startswith((" ", ".."))
        and _UNDERLINE.match(lines[number + 1])
        and len(lines[number + 1]) >= len(lines[number].rstrip())
    ]
    for start, stop in pairwise([*starts, len(lines)]):
        yield lines[start].strip(), "\n".join(lines[start + 2 : stop])


def markdown(rst: str) -> str:
    """Return paragraphs, lists and code blocks as Markdown; other directives are left out."""
    pieces = _Pieces()
    for block in re.split(r"\n[ \t]*\n", _without_targets(rst).expandtabs().strip("\n")):
        if not block.strip():
            continue
        directive = re.match(r"\s*\.\. ([\w-]+)::[ \t]*(.*)", block)
        if block[0] == " " and pieces.takes(block):
            pieces.code(block)
        elif directive and directive[1] in ("code-block", "sourcecode", "code"):
            language = directive[2].strip()
            pieces.language = _LANGUAGES.get(language, language or "python")
            lines = [x for x in block.split("\n")[1:] if not x.strip().startswith(":")]
            if lines:
                pieces.code("\n".join(lines))
        elif not re.match(r"\s*\.\.", block):
            pieces.prose(_list(block) if _is_list(block) else " ".join(block.split()))
    return "\n\n".join(pieces.done)


class _Pieces:
    """The paragraphs and code blocks so far."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.language: str | None = None
        """Of the indented blocks that follow; None: these are quotations."""
        self._indent: int | None = None
        """Of the code block that the next one continues."""

    def takes(self, block: str) -> bool:
        return self.language is not None or block.lstrip().startswith(">>>")

    def code(self, block: str) -> None:
        block = block.strip("\n")
        self.language = self.language or "python"
        if self._indent is None:
            self._indent = len(block) - len(block.lstrip())
            self.done.append(f"```{self.language}\n{_outdented(block, self._indent)}\n```")
        else:
            before = self.done[-1].removesuffix("\n```")
            self.done[-1] = f"{before}\n\n{_outdented(block, self._indent)}\n```"

    def prose(self, text: str) -> None:
        self.language = self._indent = None
        if text.endswith("::"):
            self.language = "python"
            text = text[:-2].rstrip() if text.endswith(" ::") or text == "::" else text[:-1]
        if text:
            self.done.append(inline(text))


def _outdented(block: str, indent: int) -> str:
    lines = block.split("\n")
    return "\n".join(line[min(indent, len(line) - len(line.lstrip())) :] for line in lines)


def _is_list(block: str) -> bool:
    return bool(re.match(r"\s*([*-]|\d+\.|#\.) ", block))


def _list(block: str) -> str:
    """Return the items of a list, each in one line."""
    items: list[str] = []
    for line in textwrap.dedent(block).split("\n"):
        if re.match(r"\s*([*-]|\d+\.|#\.) ", line) or not items:
            items.append(re.sub(r"^(\s*)([*]|#\.) ", r"\1- ", line.rstrip()))
        else:
            items[-1] += " " + line.strip()
    return "\n".join(re.sub(r"(?<=\S)  +", " ", item) for item in items)


def _without_targets(rst: str) -> str:
    return re.sub(r"^\s*\.\. _[^\n]*$|^\.\. (XXX|comment)[^\n]*$", "", rst, flags=re.M)


def inline(text: str) -> str:
    """Return roles, literals and links as Markdown writes them."""
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.S)
    text = re.sub(r":(?:ref|term|doc):`([^`<]+?)\s*<[^>`]+>`", r"\1", text)
    text = re.sub(r":(?:ref|term|doc):`([^`]+)`", r"\1", text)
    text = re.sub(r":pep:`(\d+)`", r"PEP \1", text)
    text = re.sub(r":source:`([^`]+)`", r"`\1`", text)
    text = re.sub(r":[\w:]+:`[!~]?([^`]+?)(?:\s*<[^>`]+>)?`", r"`\1`", text)
    text = re.sub(r"`([^`<]+?)\s+<(https?://[^>`]+)>`__?", r"\1 (\2)", text)
    text = re.sub(r"`<(https?://[^>`]+)>`__?", r"\1", text)
    return re.sub(r"`([^`]+)`__?(?!\w)", r"\1", text)
