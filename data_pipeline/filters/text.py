"""Quality of prose: the rules of Gopher and C4, as far as they hold for documentation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from data_pipeline.filters.repetition import line_fault, ngram_fault
from data_pipeline.filters.words import Words
from loopcoder.config.filters import FilterConfig

_LONG = bytes(range(0xE0, 256))
"""First bytes of characters of three or four bytes."""
_MIN_VISIBLE = 0.1
"""Share of visible characters that every readable text has."""
# Thai, Lao, Tibetan, Burmese, Hangul, Khmer, kana, ideographs; Korean has spaces, but the words
# between them have two to four letters.
_SPACELESS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u318f\u31f0-\u31ff\u3400-\u9fff"
    "\ua960-\ua97f\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
_STOP_WORDS = tuple(
    frozenset(words.split())
    for words in (
        "the be to of and that have with",  # Gopher
        "der die das und ist nicht von mit",
        "le la les des et est une dans",
        "el los las que y es por una",
        "o os que e do da para uma",
        "il che di e per una non sono",
        "de het een en van is niet dat",
        "och att det som en på är av",
        "w i na nie się z do jest",
        "og det som på er til ikke av for",  # Norwegian, Danish
        "ja on ei se että joka oli myös",
        "je se na že pro jsou byl který",
        "je sa na že pre sú bol ktorý",
        "je in na da za so ki ali",
        "je na da se su za koji nije",
        "az és hogy nem egy ez meg vagy",
        "și în cu pe nu pentru este care",
        "ve bir bu için ile olarak daha değil",
        "yang dan dengan untuk dari ini tidak adalah",
        "và của là trong cho không được một",
        "el les amb per una els és que",
        "ir yra kad su iš į nuo bet",
        "un ir ar uz par no kas nav",
        "ja on ei see et kui oli ning",
        "dhe të në për një me që është",
        "la kaj de en estas al por ne",
    )
)
# PostScript and PDF, RTF, files as text (uuencode, BinHex, PEM), tables of fonts, markup, data
_NOT_PROSE = re.compile(
    r"\s*\x04?(?:%!(?!\s*TEX)|%%(?:Begin|BoundingBox|Creator|Title)|%PDF-|\{\\rtf\d"
    r"|begin(?:-base64)? [0-7]{3} \S|\(This file must be converted with BinHex"
    r"|-----BEGIN (?:PGP PUBLIC KEY|CERTIFICATE|[A-Z0-9 ]*PRIVATE KEY)"
    r"|StartFontMetrics\b|STARTFONT\b|\*PPD-Adobe|#FIG \d|/\* XPM \*/"
    r"|<\?xml\b|<!DOCTYPE\b|<html\b|<svg\b|\{\s*\"[^\"\n]+\"\s*:|\[\s*[\[{]\s*\")",
    re.I,
)
_HEADS_CHARS = (2_000, 20_000)
_BULLETS = ("-", "*", "•", "‣", "◦", "●", "▪", "–", "+ ")  # noqa: RUF001
_ELLIPSES = ("...", "…")
_TERMINAL = (".", "!", "?", '"', "”", "'", "’", "。", "！", "？", "؟", "।")  # noqa: RUF001
_JAVASCRIPT = re.compile(
    r"(?:enable|activate|turn on|requires?|need|without|disabled?|support)\W+(?:\w+\W+){0,4}?"
    r"javascript"
    r"|javascript\W+(?:\w+\W+){0,4}?"
    r"(?:disabled|enabled|required|turned off|not supported|must be)",
    re.I,
)
_PAGE_TALK = re.compile(r"\b(?:please|your|you|this (?:site|page|website|form))\b", re.I)


def repair_text(text: str, rules: FilterConfig, notes: Counter[str]) -> str:
    """Return prose without the lines that C4 removes, counting them in `notes`."""
    # str.lower only where it pays: it copies the document
    if rules.remove_javascript_notices and ("avascript" in text or "avaScript" in text):
        text = _without(text, _is_javascript_notice, "javascript_notices_removed", notes)
    if rules.require_terminal_punctuation:
        text = _without(text, _lacks_end, "unfinished_lines_removed", notes)
    return text


def text_fault(text: str, rules: FilterConfig) -> str:
    """Return the first rule that prose breaks, or ''; cheap rules come first."""
    if not text or text.isspace():
        return "empty"
    if rules.drop_other_formats and _NOT_PROSE.match(text):
        return "not_prose"
    if rules.drop_curly_brackets and "{" in text:
        return "curly_bracket"
    if rules.drop_lorem_ipsum and "orem" in text and "lorem ipsum" in text.lower():
        return "lorem_ipsum"
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    data = text.encode(errors="replace")
    words = None if _is_spaceless(text, data, rules) else Words(data)
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return (
        (_word_fault(text, data, words, rules) if words else "")
        or _shape_fault(text, lines, rules)
        or line_fault(text, lines, rules)
        or (ngram_fault(words, rules) if words else "")
    )


def _word_fault(text: str, data: bytes, words: Words, rules: FilterConfig) -> str:
    if rules.min_words is not None and len(words) < rules.min_words:
        return "few_words"
    if rules.max_words is not None and len(words) > rules.max_words:
        return "many_words"
    if rules.max_symbols_per_word is not None:
        limit = rules.max_symbols_per_word * len(words)
        if text.count("#") > limit and len(re.findall("#+", text)) > limit:
            return "symbols"
        if sum(map(text.count, _ELLIPSES)) > limit:
            return "symbols"
    if rules.min_alphabetic_words is not None:
        least = rules.min_alphabetic_words * words.num_alphanumeric
        if not words.num_with_letter or words.num_with_letter < least:
            return "few_alphabetic_words"
    mean = words.num_letters / max(words.num_with_letter, 1)
    if rules.min_mean_word_length is not None and mean < rules.min_mean_word_length:
        return "short_words"
    if rules.max_mean_word_length is not None and mean > rules.max_mean_word_length:
        return "long_words"
    # the lists are of languages in Latin script: most bytes are ASCII there
    if rules.min_stop_words is not None and _is_latin(text, data):
        # the head is enough for nearly every document, and the set of all words is slow
        for num_chars in (*_HEADS_CHARS, len(text)):
            different = set(text[:num_chars].split())
            if any(len(stop & different) >= rules.min_stop_words for stop in _STOP_WORDS):
                return ""
        return "few_stop_words"
    return ""


def _shape_fault(text: str, lines: list[str], rules: FilterConfig) -> str:
    if rules.max_bullet_lines is not None:
        # a ruler is no bullet, but rulers are rare and the limit is high
        limit = rules.max_bullet_lines * len(lines)
        # hardly any document has so many of these signs, wherever they stand
        if sum(text.count(bullet[0]) for bullet in _BULLETS) > limit and (
            sum(line.startswith(_BULLETS) for line in lines) > limit
        ):
            return "bullet_lines"
    if rules.max_ellipsis_lines is not None:
        limit = rules.max_ellipsis_lines * len(lines)
        # hardly any document has so many in all, wherever they stand
        if sum(map(text.count, _ELLIPSES)) > limit and (
            sum(line.endswith(_ELLIPSES) for line in lines) > limit
        ):
            return "ellipsis_lines"
    return ""


def _is_spaceless(text: str, data: bytes, rules: FilterConfig) -> bool:
    """Tell whether words cannot be found by blanks in much of a text."""
    if rules.max_spaceless is None or text.isascii():
        return False
    # they take three bytes or four: most documents end here, without a search of all characters
    num_long = len(data) - len(data.translate(None, _LONG))
    if num_long <= rules.max_spaceless * _MIN_VISIBLE * len(text):
        return False
    spaceless = sum(map(len, _SPACELESS.findall(text)))
    return spaceless > rules.max_spaceless * sum(map(len, text.split()))


def _is_latin(text: str, data: bytes) -> bool:
    return len(data) - len(text) < 0.5 * len(text)


def _is_javascript_notice(line: str) -> bool:
    # documentation explains JavaScript; a notice is short and talks to the visitor of a page
    return (
        len(line) < 300
        and "javascript" in line.lower()
        and _JAVASCRIPT.search(line) is not None
        and _PAGE_TALK.search(line) is not None
    )


def _lacks_end(line: str) -> bool:
    stripped = line.rstrip()
    return bool(stripped) and (not stripped.endswith(_TERMINAL) or stripped.endswith(_ELLIPSES))


def _without(text: str, is_removed: Callable[[str], bool], note: str, notes: Counter[str]) -> str:
    lines = text.split("\n")
    kept = [line for line in lines if not is_removed(line)]
    if len(kept) == len(lines):
        return text
    notes[note] += len(lines) - len(kept)
    return "\n".join(kept)
