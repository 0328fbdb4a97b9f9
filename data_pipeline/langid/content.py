"""Which of the languages that share an extension a file is in, by what is in it.

The rules are linguist's (`table.py`) and own ones (`rules.py`), tried in order; the first that
holds decides.
"""

from __future__ import annotations

import re
from functools import cache

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

_Compiled = tuple[str, tuple[tuple[bool, re.Pattern[bytes]], ...]]


def decide(extension: str, head: bytes) -> str | None:
    """Return the language that the rules of an extension find in the start of a file.

    Returns:
        "" for a language that is not of the corpus, None if no rule holds.
    """
    # blank lines and endless ones would make many rules quadratic; a CR would hide the end of one
    lines = [i[:_LINE_BYTES] for i in head.splitlines() if i and not i.isspace()]
    text = b"\n".join(lines)
    for language, patterns in _rules(extension):
        if all((pattern.search(text) is None) == absent for absent, pattern in patterns):
            return language
    return None


def default_of(extension: str) -> str | None:
    """Return the language of those files that no rule decides, where linguist names one."""
    return _DEFAULTS.get(extension)


@cache
def _rules(extension: str) -> tuple[_Compiled, ...]:
    theirs = LINGUIST.rules.get(extension, ())
    rules: list[Rule] = []
    for rule in OWN.get(extension, (THEIRS,)):
        rules += theirs if rule == THEIRS else [(rule[0], ((False, "|".join(rule[1:])),))]
    return tuple(
        (language, tuple((a, re.compile(p.encode(), re.MULTILINE)) for a, p in patterns))
        for language, patterns in rules
        # one that holds for every file is a default
        if patterns
    )
