"""The arithmetic of quotas: from supplies and wanted shares to tokens per language and chunk.

It computes with integers and fractions, so that it is exact and the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from data_pipeline.balance.quotas import ChunkQuota, LanguageQuota, Plan, Supply
from data_pipeline.balance.shares import OTHERS
from loopcoder.config.mixture import MANY_PARTS, lowest_terms, without
from loopcoder.errors import InputError, Problem

_FEW_DOCUMENTS = 16
"""A chunk with fewer documents of a language carries over the rounding error of those before it;
with more documents the error is negligible."""

_NAMED_IN_ERRORS = 10


def plan(
    supply: Iterable[Supply],
    *,
    shares: Mapping[str, Mapping[str, float]],
    target_tokens: int | None,
    max_epochs: float | Mapping[str, float],
    mixture: Mapping[str, float],
) -> Plan:
    """Plan a corpus from its supplies and the wanted shares.

    Within a domain, language l gets min(cap_l, lambda * share_l) tokens, lambda such that they add
    up to the domain's part of the target: the others make up in proportion for a scarce language.

    Args:
        supply: Tokens by chunk, domain and language, in any order.
        shares: Weights of the languages of a domain; OTHERS stands for all that are not named, a
            weight of 0 leaves a language out. A domain without an entry is taken as it comes.
        target_tokens: Tokens of all domains, rounded down to a multiple of the mixture's lowest
            terms; None: the largest that the supplies can give.
        max_epochs: How often a document may be seen on average, for all domains or by domain.
        mixture: Weight of the tokens of each domain.

    Raises:
        InputError: with every reason for which there is no such plan, the largest total that there
            is one for, and the languages that bind.
    """
    weights = lowest_terms(mixture)
    tables, by_language = _collect(supply)
    pools = [_pool(domain, tables, shares, max_epochs, mixture) for domain in weights]
    unit = min(pool.largest() // weights[pool.domain] for pool in pools)
    total = sum(weights.values())
    wanted_unit = unit if target_tokens is None else target_tokens // total
    if not 0 < wanted_unit <= unit:
        raise _infeasible(pools, weights, wanted_unit, unit, is_asked=target_tokens is not None)
    languages: list[LanguageQuota] = []
    chunks: list[ChunkQuota] = []
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
            chunks += _split(by_language.get((pool.domain, name), []), documents, tokens, quota)
    order = {domain: i for i, domain in enumerate(weights)}
    return Plan(
        weights=weights,
        languages=tuple(sorted(languages, key=lambda q: (order[q.domain], -q.tokens, q.language))),
        chunks=tuple(sorted(chunks, key=lambda q: (q.chunk, order[q.domain], q.language))),
        largest_tokens=unit * total,
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
    """The languages of one domain."""

    domain: str
    caps: dict[str, int]
    """Most tokens that each may give, by name."""
    weights: dict[str, Fraction]
    """Wanted shares before they are scaled to a sum of 1, by name."""

    @property
    def names(self) -> list[str]:
        return sorted(self.caps)

    @property
    def wanted(self) -> list[Fraction]:
        """Shares of the domain, by name."""
        total = sum(self.weights.values(), Fraction(0))
        return [self.weights[name] / total for name in self.names]

    def largest(self) -> int:
        """Return the most tokens that the domain can give."""
        return sum(self.caps[name] for name, weight in self.weights.items() if weight)

    def fill(self, target: int) -> list[int]:
        """Return the quotas by name; the target is feasible."""
        caps = [self.caps[n] for n in self.names]
        exact = water_fill(caps, [self.weights[n] for n in self.names], target)
        assert exact is not None
        return largest_remainder(exact)

    def binding(self, target: int) -> list[str]:
        """Return the languages that a target above the largest takes whole, the scarcest first."""
        gaps = {
            name: share * target - self.caps[name]
            for name, share in zip(self.names, self.wanted, strict=True)
            if share and self.caps[name]
        }
        return sorted(gaps, key=lambda name: (-gaps[name], name))


def _collect(
    supply: Iterable[Supply],
) -> tuple[dict[tuple[str, str], tuple[int, int]], dict[tuple[str, str], list[Supply]]]:
    """Return (documents, tokens) and the chunks of every (domain, language), chunks by name."""
    by_language: dict[tuple[str, str], list[Supply]] = {}
    for entry in sorted(supply, key=lambda s: (s.domain, s.language, s.chunk)):
        group = by_language.setdefault((entry.domain, entry.language), [])
        if group and group[-1].chunk == entry.chunk:
            raise ValueError(f"{entry} and {group[-1]} are the same chunk and language")
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
    mixture: Mapping[str, float],
) -> _Pool:
    epochs = Fraction(str(max_epochs[domain] if isinstance(max_epochs, Mapping) else max_epochs))
    table = shares.get(domain, {OTHERS: 1})
    supply = {language: tokens for (s, language), (_, tokens) in tables.items() if s == domain}
    if not supply or epochs <= 0 or min(table.values()) < 0 or not any(table.values()):
        raise InputError.of(
            f"domain {domain!r}: {sum(supply.values()):,} tokens, {float(epochs):g} epochs, "
            f"shares {dict(table)}",
            "a domain of the mixture needs documents, a positive number of epochs and shares",
            f"add documents of {domain}, or "
            f"{without(mixture, domain) or 'a data.mixture without it'}",
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
) -> Iterable[ChunkQuota]:
    """Split a language's quota over its chunks in proportion to their supplies."""
    quotas = largest_remainder([Fraction(quota * s.tokens, tokens) for s in supplies])
    before = 0
    for entry, share in zip(supplies, quotas, strict=True):
        # the chunks before give before / mean documents; the fraction of one is owed here
        given = 1000 * before * documents // tokens
        phase = (given + 500) % 1000 - 500 if entry.documents < _FEW_DOCUMENTS else 0
        yield ChunkQuota(entry.chunk, entry.domain, entry.language, entry.tokens, share, phase)
        before += share


def _infeasible(
    pools: Sequence[_Pool],
    weights: Mapping[str, int],
    wanted_unit: int,
    unit: int,
    *,
    is_asked: bool,
) -> InputError:
    less = f"data.build.target_tokens={unit * sum(weights.values())} or less, "
    less = less if is_asked and unit else ""
    plainer = "a plainer data.mixture, " if sum(weights.values()) > MANY_PARTS else ""
    total = sum(weights.values())
    problems = []
    for pool in pools:
        target = max(1, wanted_unit) * weights[pool.domain]
        largest = pool.largest()
        if target <= largest:
            continue
        names = pool.binding(target)
        if not names and any(pool.caps.values()):
            has = ", ".join(sorted(pool.caps, key=lambda n: -pool.caps[n])[:_NAMED_IN_ERRORS])
            problems.append(
                Problem(
                    f"data.build.shares gives {pool.domain} no language that the corpus has",
                    f"it has {has}",
                    "data.build.shares=supply, or the share of one of these, or of '*'",
                )
            )
            continue
        shown = ", ".join(f"{name} ({pool.caps[name]:,})" for name in names[:_NAMED_IN_ERRORS])
        shown = shown or "none has any"
        more = len(names) - _NAMED_IN_ERRORS
        problems.append(
            Problem(
                f"{target:,} tokens of {pool.domain} are wanted, its languages can give "
                f"{largest:,}",
                f"the largest feasible total of all domains is {unit * total:,} tokens; these "
                f"languages give all they may: {shown}" + (f" and {more} more" if more > 0 else ""),
                f"{less}{plainer}a larger data.build.epochs, or more input",
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
