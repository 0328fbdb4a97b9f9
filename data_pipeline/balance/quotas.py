"""How much of every language goes into the corpus: token quotas by chunk, domain and language.

`filling.py` computes them, `selection.py` decides which documents fill them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Supply:
    """How much one chunk has of one language."""

    chunk: str
    domain: str
    language: str
    documents: int
    tokens: int
    """EOD of every document included."""


@dataclass(frozen=True)
class ChunkQuota:
    """How much is taken of one language from one chunk."""

    chunk: str
    domain: str
    language: str
    supply: int
    """Tokens in the chunk."""
    tokens: int
    """Tokens that are wanted of it; more than `supply` when documents are repeated."""
    phase: int
    """Start of the error feedback, in thousandths of the longest document, -500 to 499; other than
    0 where there are few documents. Without it, a language that has a document or two per chunk
    would give all of them or none."""


@dataclass(frozen=True)
class LanguageQuota:
    """How much is taken of one language."""

    domain: str
    language: str
    documents: int
    """Documents in the supply."""
    supply: int
    """Tokens in the supply."""
    cap: int
    """Most tokens that it may give: supply * allowed epochs."""
    wanted: float
    """Share of its domain that the config asks for."""
    tokens: int
    """Tokens that it gives."""

    @property
    def epochs(self) -> float:
        """Return how often its documents are seen on average."""
        return self.tokens / self.supply if self.supply else 0.0

    @property
    def binds(self) -> bool:
        """Return whether it gives all it may."""
        return self.tokens == self.cap


@dataclass(frozen=True)
class Plan:
    """Quotas of a corpus."""

    weights: Mapping[str, int]
    """Tokens of each domain in lowest terms, such as {text: 1, code: 1}."""
    languages: tuple[LanguageQuota, ...]
    """By domain, most tokens first."""
    chunks: tuple[ChunkQuota, ...]
    """By chunk, domain and language, quotas of 0 included."""
    largest_tokens: int
    """Largest total that the supplies can give."""

    @property
    def domain_tokens(self) -> dict[str, int]:
        """Return the tokens of each domain; they stand exactly in the proportion of `weights`."""
        return {
            domain: sum(q.tokens for q in self.languages if q.domain == domain)
            for domain in self.weights
        }

    @property
    def tokens(self) -> int:
        """Return the tokens of all domains."""
        return sum(q.tokens for q in self.languages)

    def shares(self) -> dict[str, dict[str, float]]:
        """Return the share of every language in its domain, as the corpus should have it."""
        totals = self.domain_tokens
        return {
            domain: {
                q.language: q.tokens / totals[domain] for q in self.languages if q.domain == domain
            }
            for domain in self.weights
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return what the manifest has of the plan: one row per language."""
        totals = self.domain_tokens
        return [
            {
                "domain": q.domain,
                "language": q.language,
                "supply_tokens": q.supply,
                "wanted_share": q.wanted,
                "share": q.tokens / totals[q.domain],
                "tokens": q.tokens,
                "epochs": q.epochs,
                "binds": q.binds,
            }
            for q in self.languages
        ]

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        content = {
            "weights": dict(self.weights),
            "largest_tokens": self.largest_tokens,
            "languages": [asdict(q) for q in self.languages],
            "chunks": _grouped(self.chunks),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote."""
        content = json.loads(text)
        return cls(
            weights=content["weights"],
            languages=tuple(LanguageQuota(**q) for q in content["languages"]),
            chunks=tuple(
                ChunkQuota(chunk, domain, language, *numbers)
                for chunk, domains in content["chunks"].items()
                for domain, languages in domains.items()
                for language, numbers in languages.items()
            ),
            largest_tokens=content["largest_tokens"],
        )


def _grouped(chunks: Iterable[ChunkQuota]) -> dict[str, dict[str, dict[str, list[int]]]]:
    grouped: dict[str, dict[str, dict[str, list[int]]]] = {}
    for q in chunks:
        domain = grouped.setdefault(q.chunk, {}).setdefault(q.domain, {})
        domain[q.language] = [q.supply, q.tokens, q.phase]
    return grouped
