"""Questions of Perl's FAQ and their answers: POD turned into Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.tools.chat_set.rows import BY_PEOPLE, Row, asked, is_whole

LICENCE = "Artistic-1.0-Perl OR GPL-1.0-or-later"
_ESCAPES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "quot": '"', "amp": "&"}
_CODE = re.compile(r"([A-Z])(<{2,}) (.*?) (>{2,})|([A-Z])<([^<>]*)>", re.S)


def faq_rows(pod: str, source: str) -> Iterator[Row]:
    """Yield each question of a FAQ, a heading of the second order, with its answer."""
    for section in re.split(r"^=head2\s+", pod, flags=re.M)[1:]:
        heading, _, body = section.partition("\n\n")
        question = inline(" ".join(heading.split()))
        body = re.sub(r"\A\(contributed by [^)]*\)\s*", "", body)
        answer = markdown(re.split(r"^=head1 ", body, maxsplit=1, flags=re.M)[0])
        if is_whole(answer) and len(answer) > 40:
            yield asked(
                "perl_faq", _with_topic(question), answer,
                source=source, licence=LICENCE, made=BY_PEOPLE,
            )  # fmt: skip


def _with_topic(question: str) -> str:
    """Name Perl in a question that stands in its FAQ without it."""
    return question if re.search(r"perl|cpan", question, re.I) else f"In Perl: {question}"


def markdown(pod: str) -> str:
    """Return paragraphs, verbatim blocks and lists of POD as Markdown."""
    parts: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", pod.strip("\n")):
        if not paragraph.strip():
            continue
        if paragraph[0] in " \t":
            if parts and parts[-1].endswith("\n```"):
                parts[-1] = f"{parts[-1][:-4]}\n\n{_outdented(paragraph)}\n```"
            else:
                parts.append(f"```perl\n{_outdented(paragraph)}\n```")
        elif item := re.match(r"=item\s*(.*)", paragraph, re.S):
            title = re.sub(r"^\*\s*", "", item[1].strip())
            parts.append("-" if not title else f"- {inline(' '.join(title.split()))}")
        elif not re.match(r"=\w+", paragraph):
            text = inline(" ".join(paragraph.split()))
            if parts and parts[-1] == "-":
                parts[-1] = f"- {text}"
            else:
                parts.append(text)
    return "\n\n".join(parts)


def inline(text: str) -> str:
    """Return a text with the formatting codes of POD as Markdown, the inner ones first."""
    while (done := _CODE.sub(_code, text)) != text:
        text = done
    return text.translate({0xE000: "<", 0xE001: ">"})


def _code(match: re.Match[str]) -> str:
    letter, content = match[1] or match[5], match[3] if match[1] else match[6]
    if letter == "E":
        shown = _ESCAPES.get(content, chr(int(content)) if content.isdigit() else content)
        return shown.translate({ord("<"): 0xE000, ord(">"): 0xE001})
    content = content.translate({ord("<"): 0xE000, ord(">"): 0xE001})
    if letter == "L":
        title, bar, target = content.partition("|")
        is_address = "://" in (target if bar else content)
        if bar and is_address:
            return f"{title} ({target})"
        return title if bar or is_address else f"`{content.strip('/').replace('"', '')}`"
    if letter in "CF":
        return f"`{content}`"
    return {"B": f"**{content}**", "I": f"*{content}*", "X": "", "Z": ""}.get(letter, content)


def _outdented(block: str) -> str:
    lines = block.expandtabs().rstrip().split("\n")
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:] for line in lines)
