"""How much of every language goes into the corpus: token quotas for every (file, domain, language).

All arithmetic is on integers and fractions, so that it is exact and the same everywhere. Which
documents that takes, `selection.py` decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from loopcoder.config.mixture import lowest_terms
from loopcoder.errors import InputError, Problem

FORMAT_VERSION = 1

OTHERS = "*"
"""Stands for all languages that are not named; they share in proportion to their capped supply."""

PUBLISHED_CODE_SHARES: Mapping[str, float] = {
    "Java": 10.3,
    "Python": 10.1,
    "JavaScript": 9.4,
    "Markdown": 8.7,
    "TypeScript": 8.3,
    "C": 5.2,
    "C++": 5.0,
    "PHP": 4.7,
    "C#": 4.0,
    "HTML": 3.7,
    OTHERS: 30.5,
    "unknown": 0,
}
"""Percent of the tokens of the code domain. Rounded as published they add up to 99.9; shares are
weights, so every one of them still rounds to what is published."""

SHARES: Mapping[str, Mapping[str, float]] = {"code": PUBLISHED_CODE_SHARES}

_FEW_DOCUMENTS = 16
"""A file with fewer documents of a language starts in the phase that the files before it leave.
With more, what short documents leave owing is so little that a phase would only add to it."""

_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class Supply:
    """What one input file has of one language."""

    file: str
    domain: str
    language: str
    documents: int
    tokens: int
    """EOD of every document included."""


@dataclass(frozen=True)
class FileQuota:
    """What is taken of one language from one file."""

    file: str
    domain: str
    language: str
    supply: int
    """Tokens in the file."""
    tokens: int
    """Tokens that are wanted of it; more than `supply` when documents are repeated."""
    phase: int
    """Where the error feedback starts, in thousandths of the longest document, -500 to 499; other
    than 0 where there are few documents. Without it, a language that has a document or two in every
    file would give all of them or none."""


@dataclass(frozen=True)
class LanguageQuota:
    """What is taken of one language."""

    domain: str
    language: str
    documents: int
    """Documents in the supply."""
    supply: int
    """Tokens in the supply."""
    cap: int
    """Most tokens that it may give: supply * allowed epochs."""
    wanted: float
    """Share of its domain that was asked for."""
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
    files: tuple[FileQuota, ...]
    """By file, domain and language, quotas of 0 included."""
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
        """Return the report: one row a language."""
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

    def table(self) -> str:
        """Return the report for people."""
        head = ("domain", "language", "supply", "wanted", "got", "tokens", "epochs")
        cells = [
            head,
            *(
                (
                    q.domain,
                    q.language,
                    f"{q.supply:,}",
                    f"{q.wanted:.3%}",
                    f"{q.tokens / self.domain_tokens[q.domain]:.3%}",
                    f"{q.tokens:,}",
                    f"{q.epochs:.3f}",
                )
                for q in self.languages
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        )

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        content = {
            "format_version": FORMAT_VERSION,
            "weights": dict(self.weights),
            "largest_tokens": self.largest_tokens,
            "languages": [asdict(q) for q in self.languages],
            "files": _grouped(self.files),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is no plan, or one of another version.
        """
        try:
            content = json.loads(text)
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version {version}, this code reads {FORMAT_VERSION}")
            return cls(
                weights=content["weights"],
                languages=tuple(LanguageQuota(**q) for q in content["languages"]),
                files=tuple(
                    FileQuota(file, domain, language, *numbers)
                    for file, domains in content["files"].items()
                    for domain, languages in domains.items()
                    for language, numbers in languages.items()
                ),
                largest_tokens=content["largest_tokens"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise InputError.of(
                "this is no plan of a corpus", f"{type(e).__name__}: {e}", "plan the corpus again"
            ) from e


def plan(
    supply: Iterable[Supply],
    *,
    shares: Mapping[str, Mapping[str, float]] = SHARES,
    target_tokens: int | None = None,
    max_epochs: float | Mapping[str, float] = 1,
    mixture: Mapping[str, float] | None = None,
    keep_shares: bool = False,
) -> Plan:
    """Plan a corpus from what there is and what is wanted.

    Within a domain, language l gets min(cap_l, lambda * share_l) tokens, lambda such that they add
    up to the domain's part of the target: what a scarce language lacks, the others give in
    proportion.

    Args:
        supply: Tokens by file, domain and language, in any order.
        shares: Weights of the languages of a domain; OTHERS stands for all that are not named, a
            weight of 0 leaves a language out. A domain without an entry is taken as it comes.
        target_tokens: Tokens of all domains, rounded down to a multiple of the mixture's lowest
            terms; None: the largest that the supplies can give.
        max_epochs: How often a document may be seen on average, for all domains or by domain.
        mixture: Tokens of each domain; None: text and code 1 : 1.
        keep_shares: Refuse a target that scarce languages cannot meet at their shares, instead of
            filling up from the others.

    Raises:
        InputError: with every reason for which there is no such plan, the largest total that there
            is one for, and the languages that bind.
    """
    weights = lowest_terms(mixture or {"text": 1, "code": 1})
    tables, by_language = _collect(supply)
    pools = [_pool(domain, tables, shares, max_epochs) for domain in weights]
    unit = min(pool.largest(keep_shares) // weights[pool.domain] for pool in pools)
    total = sum(weights.values())
    wanted_unit = unit if target_tokens is None else target_tokens // total
    if not 0 < wanted_unit <= unit:
        raise _infeasible(pools, weights, wanted_unit, unit, keep_shares)
    languages: list[LanguageQuota] = []
    files: list[FileQuota] = []
    for pool in pools:
        domain_target = wanted_unit * weights[pool.domain]
        quotas = dict(zip(pool.names, pool.fill(domain_target), strict=True))
        for name, wanted in zip(pool.names, pool.wanted, strict=True):
            documents, tokens = tables.get((pool.domain, name), (0, 0))
            cap = pool.caps[name]
            quota = quotas[name]
            languages.append(
                LanguageQuota(pool.domain, name, documents, tokens, cap, float(wanted), quota)
            )
            files += _split(by_language.get((pool.domain, name), []), documents, tokens, quota)
    order = {domain: i for i, domain in enumerate(weights)}
    return Plan(
        weights=weights,
        languages=tuple(sorted(languages, key=lambda q: (order[q.domain], -q.tokens, q.language))),
        files=tuple(sorted(files, key=lambda q: (q.file, order[q.domain], q.language))),
        largest_tokens=min(p.largest(False) // weights[p.domain] for p in pools) * total,
    )


def water_fill(
    caps: Sequence[int], weights: Sequence[Fraction], target: int
) -> list[Fraction] | None:
    """Return min(cap_l, lambda * weight_l) with the sum `target`, or None if the caps are below it.

    Exact: in the order of cap / weight, a language is at its cap as long as the level that the rest
    would need is above it.
    """
    if sum(cap for cap, weight in zip(caps, weights, strict=True) if weight) < target:
        return None
    filled = [Fraction(0)] * len(caps)
    open_ = [i for i, weight in enumerate(weights) if weight]
    open_.sort(key=lambda i: caps[i] / weights[i])
    left, left_weight = Fraction(target), sum((weights[i] for i in open_), Fraction(0))
    for place, i in enumerate(open_):
        if caps[i] * left_weight > left * weights[i]:
            for j in open_[place:]:
                filled[j] = left * weights[j] / left_weight
            break
        filled[i] = Fraction(caps[i])
        left -= caps[i]
        left_weight -= weights[i]
    return filled


def largest_remainder(exact: Sequence[Fraction]) -> list[int]:
    """Round to whole numbers with the same (whole) sum; of equal remainders the first wins."""
    floors = [part.numerator // part.denominator for part in exact]
    missing = int(sum(exact, Fraction(0))) - sum(floors)
    by_remainder = sorted(range(len(exact)), key=lambda i: floors[i] - exact[i])
    for i in by_remainder[:missing]:
        floors[i] += 1
    return floors


@dataclass(frozen=True)
class _Pool:
    """One domain: its languages by name, what they may give and what is wanted of them."""

    domain: str
    caps: dict[str, int]
    weights: dict[str, Fraction]

    @property
    def names(self) -> list[str]:
        return sorted(self.caps)

    @property
    def wanted(self) -> list[Fraction]:
        """Shares of the domain, by name."""
        total = sum(self.weights.values(), Fraction(0))
        return [self.weights[name] / total for name in self.names]

    def largest(self, keep_shares: bool) -> int:
        """Return the most tokens that the domain can give."""
        used = [n for n, weight in self.weights.items() if weight]
        if not keep_shares:
            return sum(self.caps[n] for n in used)
        total = sum(self.weights.values(), Fraction(0))
        return min(self.caps[n] * total // self.weights[n] for n in used)

    def fill(self, target: int) -> list[int]:
        """Return the quotas by name; the target is feasible."""
        caps = [self.caps[n] for n in self.names]
        exact = water_fill(caps, [self.weights[n] for n in self.names], target)
        assert exact is not None
        return largest_remainder(exact)

    def short(self, target: int, keep_shares: bool) -> list[str]:
        """Return the languages that cannot give their share of `target`, the scarcest first."""
        gaps = {
            name: share * target - self.caps[name]
            for name, share in zip(self.names, self.wanted, strict=True)
            if share and (share * target > self.caps[name] if keep_shares else self.caps[name])
        }
        return sorted(gaps, key=lambda name: (-gaps[name], name))


def _collect(
    supply: Iterable[Supply],
) -> tuple[dict[tuple[str, str], tuple[int, int]], dict[tuple[str, str], list[Supply]]]:
    """Return (documents, tokens) and the files of every (domain, language), files by name."""
    by_language: dict[tuple[str, str], list[Supply]] = {}
    for entry in sorted(supply, key=lambda s: (s.domain, s.language, s.file)):
        group = by_language.setdefault((entry.domain, entry.language), [])
        if group and group[-1].file == entry.file:
            raise ValueError(f"{entry} and {group[-1]} are the same file and language")
        if not 0 < entry.documents <= entry.tokens:
            raise ValueError(f"{entry} is no supply: every document has at least its EOD")
        group.append(entry)
    tables = {
        key: (sum(s.documents for s in group), sum(s.tokens for s in group))
        for key, group in by_language.items()
    }
    return tables, by_language


def _pool(
    domain: str,
    tables: Mapping[tuple[str, str], tuple[int, int]],
    shares: Mapping[str, Mapping[str, float]],
    max_epochs: float | Mapping[str, float],
) -> _Pool:
    epochs = Fraction(str(max_epochs[domain] if isinstance(max_epochs, Mapping) else max_epochs))
    table = shares.get(domain, {OTHERS: 1})
    supply = {language: tokens for (s, language), (_, tokens) in tables.items() if s == domain}
    if not supply or epochs <= 0 or min(table.values()) < 0 or not any(table.values()):
        raise InputError.of(
            f"domain {domain!r}: {sum(supply.values()):,} tokens, {float(epochs):g} epochs, "
            f"shares {dict(table)}",
            "a domain of the mixture needs documents, a positive number of epochs and shares",
            f"add documents of {domain}, or leave it out of the mixture",
        )
    caps = {language: int(tokens * epochs) for language, tokens in supply.items()}
    weights = {name: Fraction(str(w)) for name, w in table.items() if name != OTHERS}
    others = [language for language in caps if language not in weights]
    others_cap = sum(caps[language] for language in others)
    others_weight = Fraction(str(table.get(OTHERS, 0)))
    for language in others:
        weights[language] = others_weight * Fraction(caps[language], max(1, others_cap))
    if others_weight and not others_cap:
        weights[OTHERS] = others_weight  # wanted, and reported as not there
    return _Pool(domain, {name: caps.get(name, 0) for name in weights}, weights)


def _split(
    supplies: Sequence[Supply], documents: int, tokens: int, quota: int
) -> Iterable[FileQuota]:
    """Split a language's quota over its files in proportion to their supplies."""
    quotas = largest_remainder([Fraction(quota * s.tokens, tokens) for s in supplies])
    before = 0
    for entry, share in zip(supplies, quotas, strict=True):
        # The files before give before / mean documents; what exceeds a whole number is owed here.
        given = 1000 * before * documents // tokens
        phase = (given + 500) % 1000 - 500 if entry.documents < _FEW_DOCUMENTS else 0
        yield FileQuota(entry.file, entry.domain, entry.language, entry.tokens, share, phase)
        before += share


def _infeasible(
    pools: Sequence[_Pool],
    weights: Mapping[str, int],
    wanted_unit: int,
    unit: int,
    keep_shares: bool,
) -> InputError:
    total = sum(weights.values())
    problems = []
    for pool in pools:
        target = max(1, wanted_unit) * weights[pool.domain]
        largest = pool.largest(keep_shares)
        if target <= largest:
            continue
        short = pool.short(target, keep_shares)
        names = ", ".join(
            f"{'others' if n == OTHERS else n} ({pool.caps[n]:,})" for n in short[:_NAMED_IN_ERRORS]
        )
        more = len(short) - _NAMED_IN_ERRORS
        at_shares = " at the wanted shares" if keep_shares else ""
        problems.append(
            Problem(
                f"{target:,} tokens of {pool.domain} are wanted, its languages can give "
                f"{largest:,}{at_shares}",
                f"the largest feasible total of all domains is {unit * total:,} tokens; these "
                f"languages bind (most that they may give): {names}"
                + (f" and {more} more" if more > 0 else ""),
                f"data.build.target_tokens={unit * total} or less, a larger data.build.epochs, or "
                "more input"
                + (", or keep_shares=False to fill up from other languages" * keep_shares),
            )
        )
    if not problems:
        problems = [
            Problem(
                f"the target is less than the mixture's lowest terms, {dict(weights)}",
                "every domain needs at least its part of one token",
                f"data.build.target_tokens={unit * total} or less, but at least {total}",
            )
        ]
    return InputError(problems)


def _grouped(files: Iterable[FileQuota]) -> dict[str, dict[str, dict[str, list[int]]]]:
    grouped: dict[str, dict[str, dict[str, list[int]]]] = {}
    for q in files:
        domain = grouped.setdefault(q.file, {}).setdefault(q.domain, {})
        domain[q.language] = [q.supply, q.tokens, q.phase]
    return grouped
