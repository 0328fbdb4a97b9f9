"""Pages of HTML and other markup: what a reader sees of them, and whether it is prose."""

from __future__ import annotations

import html
import re

from loopcoder.config.filters import FilterConfig

# an open element reaches to the end, as in a browser; else each such tag would seek there
_HIDDEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|template|svg)\b.*?(?:</\1\s*>|\Z)", re.S | re.I
)
_SAMPLE_CHARS = 8_000
_TAG = re.compile(r"<[^<>]*>")
# five words in a row without a sign that sentences do not have, or eight signs of a script without
# spaces; possessive: linear in any input
_PROSE = re.compile(
    r"(?:[^\W\d_]+(?:['’-][^\W\d_]+)*+[,;:.!?)]*+ ){5,}+"  # noqa: RUF001
    r"|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{8,}+"
)


def visible_text(text: str, language: str) -> str:
    """Return what a reader sees of a page, blanks made one and entities left as they are.

    Of other markup than HTML everything is seen.
    """
    if language == "HTML":
        text = _TAG.sub(" ", _HIDDEN.sub(" ", text))
    return " ".join(text.split())


def is_prose(visible: str, rules: FilterConfig) -> bool:
    """Tell a page of sentences from lists of names, listings and indexes."""
    if rules.min_prose_chars is None:
        return False
    start = max(0, (len(visible) - _SAMPLE_CHARS) // 2)
    sample = html.unescape(visible[start : start + _SAMPLE_CHARS]) + " "
    num_chars = sum(match.end() - match.start() for match in _PROSE.finditer(sample))
    return num_chars >= max(rules.min_prose_chars, (rules.min_prose or 0.0) * len(sample))


def html_fault(text: str, rules: FilterConfig) -> str:
    """Return the rule on visible text that a page of HTML breaks, or ''."""
    if rules.min_visible_text is None and rules.min_visible_chars is None:
        return ""
    visible = visible_text(text, "HTML")
    if rules.min_visible_chars is not None and len(visible) < rules.min_visible_chars:
        return "little_visible_text"
    if rules.min_visible_text is not None:
        least = rules.min_visible_text * len(text)
        if len(visible) < least and (len(visible) < 0.5 * least or not is_prose(visible, rules)):
            return "little_visible_text"
    return ""
