"""Which documents of one file are taken for its quotas; nothing is known of other files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.balance.quotas import FileQuota, Plan
from data_pipeline.schema import Tally
from loopcoder.errors import InputError, Problem

MAX_DOCUMENT_TOKENS = 65_536
"""Longer documents are split before they are counted: the error of a selection grows with them."""


def select(lengths: Sequence[int] | NDArray[np.integer], quota: FileQuota) -> NDArray[np.int64]:
    """Return the number of copies of each document of one language in one file.

    Error feedback: tokens owed grow by quota / supply * n with each document of n tokens; while
    they are n / 2 or more, a copy is taken. A document has floor(quota / supply) copies or one
    more.

    The documents are taken from the longest to the shortest, those of equal length in file order.
    In file order, a quota of 0.3 of the supply would take 62% of the short documents and 9% of the
    long ones, since short ones pay back first what is owed; by length, every length gives its
    share, and what is left owing at the end is of the size of the shortest.

    Args:
        lengths: Tokens of each document, in file order.
        quota: Of the same documents.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    copies = np.zeros(len(tokens), dtype=np.int64)
    if not len(tokens):
        return copies
    least, rest = divmod(quota.tokens, quota.supply)
    most = least + (rest > 0)
    if least == most:
        copies[:] = least
        return copies
    order = np.argsort(-tokens, kind="stable")
    # in tokens / supply, whole numbers without a limit
    owed = quota.phase * int(tokens.max()) * quota.supply // 1000
    taken = []
    for n in tokens[order].tolist():
        owed += quota.tokens * n
        one = n * quota.supply
        number = min(max((2 * owed + one) // (2 * one), least), most)
        owed -= number * one
        taken.append(number)
    copies[order] = taken
    return copies


def select_file(
    planned: Plan,
    file: str,
    kinds: Sequence[tuple[str, str]],
    lengths: Sequence[int] | NDArray[np.integer],
) -> tuple[NDArray[np.int64], Tally]:
    """Decide on all documents of one input file.

    Args:
        planned: The plan, made from this file as it is.
        file: Its name in the plan.
        kinds: (domain, language) of each document.
        lengths: Tokens of each document, EOD included.

    Returns:
        The number of copies of each document, which are numbered 1, 2, ..., and the tally.

    Raises:
        InputError: with every language whose tokens are not those that were planned for.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    quotas = {(q.domain, q.language): q for q in planned.files if q.file == file}
    places: dict[tuple[str, str], list[int]] = {kind: [] for kind in quotas}
    for i, kind in enumerate(kinds):
        places.setdefault(kind, []).append(i)
    copies = np.zeros(len(tokens), dtype=np.int64)
    problems = []
    for (domain, language), where in places.items():
        mine = tokens[where]
        quota = quotas.get((domain, language))
        if quota is None or int(mine.sum()) != quota.supply:
            planned_for = quota.supply if quota else 0
            problems.append(
                Problem(
                    f"{file} has {int(mine.sum()):,} tokens of {language} ({domain}), "
                    f"the plan says {planned_for:,}",
                    "its quotas were planned for other content, so the shares would be wrong",
                    "delete .NAME-HASH.work in the cache folder and start the same command again",
                )
            )
            continue
        copies[where] = select(mine, quota)
    if problems:
        raise InputError(problems)
    kept = int((copies > 0).sum())
    tally = Tally("quota", rows_in=len(tokens), rows_out=kept)
    tally.drops["beyond_quota"] = len(tokens) - kept
    tally.notes["copies"] = int(copies.sum()) - kept
    tally.check()
    return copies, tally


def split_at_lines(
    line_tokens: Sequence[int], max_tokens: int = MAX_DOCUMENT_TOKENS
) -> list[tuple[int, int]]:
    """Cut a document into runs of whole lines, each as long as fits.

    Args:
        line_tokens: Tokens of each line.
        max_tokens: Most tokens of a part, its EOD not counted. A single longer line stays whole.

    Returns:
        (first line, line after the last) of every part; together they are all lines.
    """
    parts: list[tuple[int, int]] = []
    start = used = 0
    for line, tokens in enumerate(line_tokens):
        if line > start and used + tokens > max_tokens:
            parts.append((start, line))
            start, used = line, 0
        used += tokens
    if start < len(line_tokens):
        parts.append((start, len(line_tokens)))
    return parts
