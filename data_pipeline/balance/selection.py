"""Which documents of one chunk are taken for its quotas; nothing is known of other chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.balance.quotas import ChunkQuota, Plan
from data_pipeline.schema import Place, Tally
from loopcoder.errors import counted


def select(lengths: Sequence[int] | NDArray[np.integer], quota: ChunkQuota) -> NDArray[np.int64]:
    """Return the number of copies of each document of one language in one chunk.

    Error feedback: tokens owed grow by quota / supply * n with each document of n tokens; while
    they are n / 2 or more, a copy is taken. A document has floor(quota / supply) copies or one
    more.

    The documents are taken from the longest to the shortest, those of equal length in their order.
    In their order, a quota of 0.3 of the supply would take 62% of the short documents and 9% of
    the long ones, because short documents would absorb the whole deficit first; by length, every
    length gives its share, and the deficit at the end is of the size of the shortest.

    Args:
        lengths: Tokens of each document, in the order of the chunk.
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


class OtherContentError(Exception):
    """A chunk does not have the tokens that its quotas were planned for."""


def select_chunk(
    planned: Plan,
    kinds: Sequence[tuple[str, str]],
    lengths: Sequence[int] | NDArray[np.integer],
    place_of: Callable[[int], Place],
    tally: Tally,
) -> NDArray[np.int64]:
    """Decide on all documents of one chunk.

    Args:
        planned: The quotas of this chunk.
        kinds: (domain, language) of each document.
        lengths: Tokens of each document, EOD included.
        place_of: Returns the place of a document by its number.
        tally: Counts the documents.

    Returns:
        The number of copies of each document, which are numbered 1, 2, ...

    Raises:
        OtherContentError: with every language whose tokens are not those that were planned for.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    quotas = {(quota.domain, quota.language): quota for quota in planned.chunks}
    places: dict[tuple[str, str], list[int]] = {kind: [] for kind in quotas}
    for i, kind in enumerate(kinds):
        places.setdefault(kind, []).append(i)
    copies = np.zeros(len(tokens), dtype=np.int64)
    wrong = []
    for (domain, language), where in places.items():
        mine = tokens[where]
        quota = quotas.get((domain, language))
        if quota is None or int(mine.sum()) != quota.supply:
            planned_for = quota.supply if quota else 0
            found = f"{counted(int(mine.sum()), 'token')} of {language} ({domain})"
            wrong.append(f"{found}, where the plan says {planned_for:,}")
            continue
        copies[where] = select(mine, quota)
    if wrong:
        raise OtherContentError("; ".join(wrong))
    kept = int((copies > 0).sum())
    tally.rows_in += len(tokens)
    tally.rows_out += kept
    for number in np.flatnonzero(copies == 0).tolist():
        tally.drop("beyond_quota", place_of(number))
    tally.notes["copies"] += int(copies.sum()) - kept
    tally.check()
    return copies
