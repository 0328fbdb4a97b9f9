"""How much of a corpus comes from each source, and from each of its packages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from data_pipeline.schema import Document

_SEPARATOR = "\t"


@dataclass
class Origins:
    """Documents, bytes of UTF-8 and tokens by origin."""

    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """By `SOURCE`, a tab and the package's folder, which is "" outside packages."""

    def add(self, document: Document, documents: int, num_bytes: int, tokens: int) -> None:
        """Count some copies of a document."""
        package = document.meta.get("package", "")
        self._add(f"{document.source}{_SEPARATOR}{package}", (documents, num_bytes, tokens))

    def _add(self, origin: str, counts: tuple[int, int, int]) -> None:
        known = self.counts.get(origin, (0, 0, 0))
        self.counts[origin] = (known[0] + counts[0], known[1] + counts[1], known[2] + counts[2])

    @classmethod
    def total(cls, parts: Iterable[Origins]) -> Origins:
        """Add up."""
        total = cls()
        for part in parts:
            for origin, counts in part.counts.items():
                total._add(origin, counts)
        return total

    def of(self, source: str, package: str | None = None) -> tuple[int, int, int]:
        """Return documents, bytes and tokens of a source, or of one of its packages."""
        rows = [
            counts
            for origin, counts in self.counts.items()
            if origin.partition(_SEPARATOR)[0] == source
            and package in (None, origin.partition(_SEPARATOR)[2])
        ]
        return sum(r[0] for r in rows), sum(r[1] for r in rows), sum(r[2] for r in rows)
