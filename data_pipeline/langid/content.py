"""Which of the languages that share an extension a file is in, by what is in it.

The rules are linguist's (`table.py`) and own ones (`rules.py`), tried in order; the first that
holds decides.
"""

from __future__ import annotations

from functools import cache

from data_pipeline.langid.patterns import Head, Way, is_found, ways_of
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
# most files tell at once
_WINDOWS = (4 << 10, 50 << 10)


def decide(extension: str, head: bytes) -> str | None:
    """Return the language that the rules of an extension find in the start of a file.

    Returns:
        "" for a language that is not of the corpus, None if no rule holds.
    """
    for size in _WINDOWS:
        start = Head(head[:size])
        is_whole = len(head) <= size or size == _WINDOWS[-1]
        for language, patterns in _rules(extension, is_whole):
            for is_absent, ways in patterns:
                if is_found(start, ways) == is_absent:
                    break
            else:
                return language
        if is_whole:
            break
    return None


def default_of(extension: str) -> str | None:
    """Return the language of those files that no rule decides, where linguist names one."""
    return _DEFAULTS.get(extension)


@cache
def _rules(
    extension: str, is_whole: bool
) -> tuple[tuple[str, tuple[tuple[bool, tuple[Way, ...]], ...]], ...]:
    """Return the rules of an extension; those after linguist's are for whole files alone."""
    theirs = LINGUIST.rules.get(extension, ())
    rules: list[Rule] = []
    for rule in OWN.get(extension, (THEIRS,)):
        if rule == THEIRS:
            rules += theirs
            if not is_whole:
                break
        else:
            rules.append((rule[0], ((False, "|".join(rule[1:])),)))
    # one that holds for every file is a default
    return tuple(
        (language, tuple((is_absent, ways_of(pattern)) for is_absent, pattern in patterns))
        for language, patterns in rules
        if patterns
    )
