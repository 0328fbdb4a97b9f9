"""Questions on the functions of Node.js, from the Markdown of its manual."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from data_pipeline.tools.chat_set.rows import Row, asked, is_whole

LICENCE = "MIT"
_HEADING = re.compile(r"^#{2,4} `(new )?([\w.]+)(\([^`]*\))?`\n", re.M)
_QUESTIONS = (
    "How do I use `{name}` in Node.js? Please show an example.",
    "What does `{name}` do in Node.js, and how is it called?",
    "Explain `{name}` of Node.js with an example.",
)


def rows_of_page(text: str, source: str, rng: random.Random) -> Iterator[Row]:
    """Yield the functions whose section has an example."""
    links = dict(re.findall(r"^\[([^\]]+)\]: (https?://\S+)$", text, re.M))
    starts = list(_HEADING.finditer(text))
    for heading in starts:
        body = re.split(r"^#{2,5} ", text[heading.end() :], maxsplit=1, flags=re.M)[0]
        answer = markdown(body, links)
        if heading[3] and re.search(r"^```", answer, re.M) and is_whole(answer):
            name = f"{heading[1] or ''}{heading[2]}{heading[3]}"
            yield asked(
                "node_usage", rng.choice(_QUESTIONS).format(name=name), answer,
                source=source, licence=LICENCE,
                made="question by rule; the answer is a section of the manual, written by people",
            )  # fmt: skip


def markdown(body: str, links: dict[str, str]) -> str:
    """Return a section without its history, its links resolved; of two examples that say the
    same, for ES modules and CommonJS, the first."""
    text = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    text = re.split(r"^\[[^\]]+\]: ", text, maxsplit=1, flags=re.M)[0]
    text = re.sub(
        r"^```mjs\n(.*?)^```\s*^```cjs\n.*?^```", r"```js\n\1```", text, flags=re.M | re.S
    )
    text = re.sub(r"^```[mc]js$", "```js", text, flags=re.M)
    text = re.sub(
        r"^> Stability: (\d[^\n]*)\n(?:> [^\n]*\n)*", r"Stability: \1\n", text, flags=re.M
    )

    def link(match: re.Match[str]) -> str:
        address = links.get(match[2] or match[1])
        return f"{match[1]} ({address})" if address else match[1]

    text = re.sub(r"\[([^\[\]]+)\]\[([^\[\]]*)\]", link, text)
    text = re.sub(r"\[([^\[\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
