"""What a document is, for the accounts of a run: its domain, language and source."""

from __future__ import annotations

from typing import NamedTuple


class Label(NamedTuple):
    """What the documents of a kind have in common."""

    domain: str
    language: str | None
    """None: the corpus does not keep it."""
    source: str | None
    """Name of the source that they come from, as in the manifest; None: the corpus does not keep
    it."""
