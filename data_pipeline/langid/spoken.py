"""Names of no programming language that language columns hold: of plain text and of what people
speak."""

from __future__ import annotations

import re

_PLAIN = {
    *(
        "human",
        "human language",
        "literature",
        "n/a",
        "natural",
        "natural language",
        "none",
        "null",
    ),
    *("plain", "plain text", "plaintext", "prose", "raw text", "text", "txt", "unformatted"),
}
_NAMES = {
    *("afrikaans", "albanian", "arabic", "armenian", "azerbaijani", "basque", "bengali"),
    *("bulgarian", "catalan", "chinese", "croatian", "czech", "danish", "dutch", "english"),
    *("esperanto", "estonian", "finnish", "french", "galician", "georgian", "german", "greek"),
    *("gujarati", "hebrew", "hindi", "hungarian", "icelandic", "indonesian", "irish", "italian"),
    *("japanese", "kannada", "kazakh", "korean", "latin", "latvian", "lithuanian", "macedonian"),
    *("malay", "malayalam", "mandarin", "marathi", "mongolian", "nepali", "norwegian", "persian"),
    *("polish", "portuguese", "punjabi", "romanian", "russian", "serbian", "sinhala", "slovak"),
    *("slovenian", "spanish", "swahili", "swedish", "tagalog", "tamil", "telugu", "thai"),
    *("turkish", "ukrainian", "urdu", "uzbek", "vietnamese", "welsh"),
}
# ISO 639-1 and the most frequent of 639-2 and 639-3. Without cs, ml, pl, sh and ts, which stand for
# C#, OCaml, Perl, Shell and TypeScript in a column of programming languages.
_LETTERS = (
    "af am ar az be bg bn bs ca cy da de el en eo es et eu fa fi fr ga gl gu ha he hi hr hu hy id "
    "ig is it ja ka kk km kn ko ky la lo lt lv mg mk mn mr ms mt my nb ne nl nn no pa ps pt ro ru "
    "si sk sl so sq sr su sv sw ta te tg th tl tr uk ur uz vi xh yi yo zh zu "
    "ara ben ces chi cze dan deu dut ell eng fas fin fra fre ger heb hin hun ind ita jpn kor nld "
    "nor pol por ron rus spa swe tha tur ukr urd vie zho"
)
_CODES = frozenset(_LETTERS.split())
_CODE = re.compile(r"([a-z]{2,3})(?:[-_](?:[a-z]{2}|[a-z]{4}|\d{3}))*")
_UNDECIDED = {"other", "undefined", "undetermined", "unknown", "unspecified"}


def is_spoken(name: str) -> bool:
    """Tell whether a name, in small letters, is one of plain text or of a spoken language.

    Spoken languages are told by their English names and by ISO codes, with or without a country or
    a script: `english`, `en`, `en-us`, `zh_hans`.
    """
    code = _CODE.fullmatch(name)
    return name in _PLAIN or name in _NAMES or (code is not None and code[1] in _CODES)


def is_undecided(name: str) -> bool:
    """Tell whether a name, in small letters, says that the language is not known."""
    return name in _UNDECIDED
