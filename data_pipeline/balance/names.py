"""Languages that `data.build.shares` names: do they exist, and does the corpus have them?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.balance.shares import OTHERS
from data_pipeline.langid.names import canonical, code_languages, is_known
from loopcoder.config.check_names import nearest
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import as_override, typed
from loopcoder.errors import Problem

_UNKNOWN = "unknown"
"""Code whose language nothing tells, with data.build.unknown_language=keep."""


def unknown_shares(data: DataConfig) -> list[Problem]:
    """Return a problem for every language that no document of the corpus could have.

    Rows may name any language (`language_field`), and a classifier has its own. There a name is
    refused only if it is a known one but for its case or the order of its letters;
    `missing_shares` says of the others that the corpus has none.
    """
    shares = data.build.shares
    if not isinstance(shares, Mapping) or not data.build.sources:
        return []
    known = {*code_languages(), _UNKNOWN}
    may_be_others = bool(data.build.language_classifier) or any(
        source.language_field for source in data.build.sources
    )
    problems = []
    for name in shares:
        if name == OTHERS or name in known:
            continue
        usual = canonical(name)
        meant = usual if usual in known else nearest(name, known)
        if may_be_others and not (meant and _is_misspelt(name, meant)):
            continue
        mended = {meant if n == name else n: w for n, w in shares.items()} if meant else {}
        problems.append(
            Problem(
                f"data.build.shares={as_override(shares)}: no code is in {name!r}",
                "it is prose, and the shares are those of code"
                if is_known(usual) and usual not in known
                else "the names and first lines of files tell languages, and no such is known; "
                "rows name theirs in language_field",
                typed(f"data.build.shares={as_override(mended)}")
                if mended
                else f"one of {', '.join(sorted(known))}",
            )
        )
    return problems


def _is_misspelt(name: str, meant: str) -> bool:
    """Tell a slip of the keyboard from another name: the same letters, or another case."""
    return sorted(name.lower()) == sorted(meant.lower()) or canonical(name) == meant


def missing_shares(data: DataConfig, languages: Iterable[Mapping[str, Any]]) -> str | None:
    """Return a line on the languages of a mapping that the corpus has nothing of, or None.

    Args:
        data: With the shares.
        languages: Rows of the plan.
    """
    if not isinstance(data.build.shares, Mapping):
        return None
    has = [row["language"] for row in languages if row["domain"] == "code" and row["supply_tokens"]]
    absent = [
        name
        for name, weight in data.build.shares.items()
        if weight and name != OTHERS and name not in has
    ]
    if not absent:
        return None
    return (
        f"data: warning: data.build.shares names {', '.join(absent)}, of which the corpus has "
        f"nothing; its code is in {', '.join(has)}"
    )
