"""Cleaning: drops documents that are not worth learning from, and repairs the others.

`clean` is the stage; `FilterConfig` holds every threshold with its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from data_pipeline.filters.code import code_fault
from data_pipeline.filters.licence import licence_fault
from data_pipeline.filters.scrub import scrub
from data_pipeline.filters.text import repair_text, text_fault
from data_pipeline.schema import Document, Tally
from loopcoder.config.filters import PERMISSIVE_LICENCES, FilterConfig

__all__ = ["FILTERS_VERSION", "PERMISSIVE_LICENCES", "FilterConfig", "clean"]

FILTERS_VERSION = 1
"""Of what is dropped and repaired under the same settings; part of every corpus' fingerprint."""


def clean(documents: Iterable[Document], rules: FilterConfig, tally: Tally) -> Iterator[Document]:
    """Yield the documents that pass `rules`, repaired, in their order.

    A document's fate depends on it alone, so any split over workers gives the same result. Drops
    are counted by the first rule that is broken, repairs as notes: `javascript_notices_removed`,
    `unfinished_lines_removed`, `secrets_scrubbed`, `emails_scrubbed`, `ips_scrubbed` (each by
    occurrence), `documents_repaired`.

    Raises:
        InputError: the rules ask for linguist's, and enry is not installed.
    """
    for document in documents:
        tally.rows_in += 1
        if not rules.enabled:
            tally.rows_out += 1
            yield document
            continue
        fault = licence_fault(document, rules)
        text = document.text
        if not fault and document.domain == "text":
            text = repair_text(text, rules, tally.notes)
            fault = text_fault(text, rules)
        elif not fault:
            fault = code_fault(document, rules)
        if fault:
            tally.drop(fault, document.place)
            continue
        text = scrub(text, rules, tally.notes)
        tally.rows_out += 1
        if text != document.text:
            tally.notes["documents_repaired"] += 1
            document = replace(document, text=text)  # noqa: PLW2901
        yield document
