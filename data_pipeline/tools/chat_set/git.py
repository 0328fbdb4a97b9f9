"""Questions on git's commands: examples and options, from the AsciiDoc of its manual."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from data_pipeline.tools.chat_set.rows import Row, asked, is_whole

LICENCE = "GPL-2.0-only"
_COMMANDS = (
    "Which git command does this: {task}",
    "How do I do this with git? {task}",
    "Give me the git command for the following. {task}",
)

_TASK = re.compile(r"(?!Because|This|These|It|If|In|The|With|As)[A-Z][a-z]+ [^\n]{10,180}?[.]")
"""One sentence that says what to do."""


def rows_of_page(text: str, source: str, rng: random.Random) -> Iterator[Row]:
    """Yield the examples of a command both ways, what to type and what it does, and its options.

    Args:
        text: The page.
        source: Of the rows; it ends with the name of the file, `:git-log.txt`.
        rng: Draws the phrasing.
    """
    command = source.rpartition(":")[2].removesuffix(".txt")
    of = {"source": source, "licence": LICENCE}
    made = "question by rule; the answer is of the manual, written by people"
    for heading, body in _sections(text):
        for title, entry in _entries(body) if heading == "EXAMPLES" else ():
            answer = markdown(entry)
            if title.startswith("`git") and title.count("`") == 2 and is_whole(_ended(answer)):
                typed = f"```console\n$ {title.strip('`')}\n```"
                if _TASK.fullmatch(_ended(answer)) and "above" not in answer:
                    question = rng.choice(_COMMANDS).format(task=_ended(answer))
                    yield asked("git_command", question, typed, made=made, **of)
                question = f"What does {title} do?"
                yield asked("git_explained", question, _ended(answer), made=made, **of)
            elif "```" in answer and is_whole(answer):
                question = f"How do I do this with git: {title[0].lower()}{title[1:].rstrip('.:')}?"
                yield asked("git_command", question, answer, made=made, **of)
        for title, entry in _entries(body) if heading == "OPTIONS" else ():
            answer = markdown(entry)
            if title.startswith("-") and len(answer) > 30 and is_whole(_ended(answer)):
                question = f"What does the option `{title}` of `{command.replace('-', ' ', 1)}` do?"
                yield asked("git_option", question, _ended(answer), made=made, **of)


def _ended(text: str) -> str:
    return text if not text or text[-1] in ".!?`" else f"{text}."


def _sections(text: str) -> Iterator[tuple[str, str]]:
    pattern = r"^([A-Z][A-Z ]+)\n-{4,}\n(.*?)(?=^[A-Z][A-Za-z ]+\n[-~]{4,}\n|\Z)"
    for match in re.finditer(pattern, text, re.M | re.S):
        yield match[1].strip(), match[2]


def _entries(body: str) -> Iterator[tuple[str, str]]:
    """Yield the entries of a labelled list: a label, which ends in `::`, and what belongs to it.

    Of several labels of one entry the last is given, the long form of an option.
    """
    parts = re.split(r"^(\S[^\n]*)::[ \t]*$", body, flags=re.M)
    for title, entry in zip(parts[1::2], parts[2::2], strict=True):
        # what follows a paragraph at the left edge is of the section again
        inside = re.split(r"\n\n(?=[A-Za-z`])", entry.strip("\n"), maxsplit=1)[0]
        if inside.strip():
            yield title.strip(), inside


def markdown(text: str) -> str:
    """Return AsciiDoc as Markdown; "" if it has what is not known: tables, includes, macros."""
    if re.search(r"^\s*(include|ifdef|ifndef|endif|\|===|\[)", text, re.M) or "{" in text:
        return ""
    parts: list[str] = []
    # a block between two lines of dashes stands alone
    for number, piece in enumerate(re.split(r"^[ \t]*-{4,}[ \t]*$", text, flags=re.M)):
        if number % 2:
            lines = [line.rstrip().removeprefix("\t") for line in piece.strip("\n").split("\n")]
            parts.append("```console\n" + "\n".join(lines) + "\n```")
            continue
        for paragraph in re.split(r"\n[ \t]*\n|^[ \t]*\+[ \t]*$", piece, flags=re.M):
            notes = re.split(r"^(?=<\d+> )", paragraph.strip(), flags=re.M)
            parts += [_inline(" ".join(note.split())) for note in notes if note.strip()]
    return "\n\n".join(parts)


def _inline(text: str) -> str:
    text = re.sub(r"linkgit:([\w-]+)\[(\d)\]", r"`\1(\2)`", text)
    text = re.sub(r"(?:link:)?(https?://[^\s\[]+)\[([^\]]*)\]", r"\2 (\1)", text)
    text = re.sub(r"link:[^\s\[]+\[([^\]]+)\]", r"\1", text)
    text = re.sub(r"``(.+?)''", r'"\1"', text)
    text = re.sub(r"(?<![\w'])'([\w./:-]+)'(?![\w'])", r"`\1`", text)
    return re.sub(r"\\(--)", r"\1", text)
