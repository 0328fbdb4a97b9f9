"""Licences: SPDX expressions from a file's header, its row or its source, and an allow-list."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from data_pipeline.schema import Document
from loopcoder.config.filters import FilterConfig

_HEAD_CHARS = 4096
_HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]{1,200})")
_COMMENT_END = re.compile(r"\s*(?:\*/|-->|\*\)|#\}|--\]\]|[\"'`;]).*")
_TOKEN = re.compile(r"\s*([()]|[A-Za-z0-9.+:-]+)")
# data sets and SPDX write these for "nobody knows"
_UNKNOWN = {"", "none", "noassertion", "unknown", "other", "no_license", "unlicensed", "null"}


def licence_fault(document: Document, rules: FilterConfig) -> str:
    """Return why a document's licence forbids its use, or ''.

    The nearest statement counts: the SPDX line in its head, else `meta["licence"]` (an
    expression, or a list of which all must be allowed), else the licence of its source.
    """
    if rules.licence_policy == "any":
        return ""
    stated: object = spdx_header(document.text) or document.meta.get("licence")
    stated = stated or rules.source_licences.get(document.source)
    if isinstance(stated, str):
        stated = [stated]
    if not isinstance(stated, Iterable):
        return "licence_unknown"
    allowed = rules.allowed_by_source.get(document.source, rules.allowed_licences)
    verdicts = [is_allowed(str(expression), allowed) for expression in stated]
    if not verdicts or None in verdicts:
        return "licence_unknown"
    return "" if all(verdicts) else "licence_not_allowed"


def spdx_header(text: str) -> str | None:
    """Return the expression of the first SPDX-License-Identifier line in the head of a file."""
    match = _HEADER.search(text, 0, _HEAD_CHARS)
    return (_COMMENT_END.sub("", match[1]).strip() or None) if match else None


def is_allowed(expression: str, allowed: Collection[str]) -> bool | None:
    """Tell whether an SPDX expression can be met by allowed ids alone; None if it says nothing.

    `A OR B` needs one of both, `A AND B` needs both; `A WITH exception` is as good as A, since an
    exception only adds permissions. An unknown part makes everything unknown that depends on it.
    """
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != "".join(expression.split()):
        return None
    names = {name.lower() for name in allowed}
    verdict = _alternatives(tokens, names)
    return None if tokens else verdict


def _alternatives(tokens: list[str], allowed: set[str]) -> bool | None:
    verdict = _conjunction(tokens, allowed)
    while tokens and tokens[0].upper() == "OR":
        del tokens[0]
        other = _conjunction(tokens, allowed)
        if verdict or other:
            verdict = True
        elif verdict is None or other is None:
            verdict = None
    return verdict


def _conjunction(tokens: list[str], allowed: set[str]) -> bool | None:
    verdict = _licence(tokens, allowed)
    while tokens and tokens[0].upper() == "AND":
        del tokens[0]
        other = _licence(tokens, allowed)
        if verdict is False or other is False:
            verdict = False
        elif verdict is None or other is None:
            verdict = None
    return verdict


def _licence(tokens: list[str], allowed: set[str]) -> bool | None:
    if not tokens:
        return None
    token = tokens.pop(0)
    if token == "(":
        verdict = _alternatives(tokens, allowed)
        if not tokens or tokens.pop(0) != ")":
            return None
        return verdict
    name = token.lower()
    if len(tokens) >= 2 and tokens[0].upper() == "WITH":
        del tokens[:2]
    if name in _UNKNOWN or name in ("and", "or", "with", ")"):
        return None
    # a reference to a text that is not at hand
    if name.startswith(("licenseref-", "documentref-")) and name not in allowed:
        return None
    return name in allowed or name.removesuffix("+") in allowed
