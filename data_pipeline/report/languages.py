"""The report's part on languages: shares wanted and got, epochs, lengths of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.report.charts import bars, columns
from data_pipeline.report.values import Manifest, as_list, as_number, at, trained_on
from loopcoder.page import Html, Number, element, figure, join, legend, missing, table

_BARS = 20
"""Languages of a domain in a chart; the table has them all."""


def languages(manifest: Manifest) -> Html:
    """Return shares and epochs of the languages of every domain."""
    rows = as_list(at(manifest, "plan", "languages"))
    trained = trained_on(manifest)
    if not rows and not trained:
        return element("p", missing("shares of languages"))
    domains = list(trained) or list(dict.fromkeys(str(row.get("domain")) for row in rows))
    parts = [
        _domain(
            domain, [row for row in rows if row.get("domain") == domain], trained.get(domain, {})
        )
        for domain in domains
    ]
    parts.append(
        element(
            "p",
            "Wanted is the share that was asked for; quota is the share that the supply allows "
            "within the permitted epochs; got is the share in the shards, and off is its distance "
            "from the quota in percentage points. A language at its cap gives all it may; the "
            "others make up for the rest in proportion.",
            class_="soft",
        )
    )
    return join(parts)


@dataclass(frozen=True)
class _Language:
    """One language of a domain; values that the manifest lacks are None."""

    name: str
    supply: float | None
    wanted: float | None
    quota: float | None
    got: float | None
    tokens: float | None
    documents: float | None
    epochs: float | None
    is_capped: bool

    def cells(self) -> tuple[object, ...]:
        has_both = self.got is not None and self.quota is not None
        off = 100 * ((self.got or 0) - (self.quota or 0)) if has_both else None
        return (
            self.name,
            Number(self.supply),
            Number(self.wanted, ".2%"),
            Number(self.quota, ".2%"),
            Number(self.got, ".2%"),
            Number(off, "+.3f"),
            Number(self.tokens),
            Number(self.documents),
            Number(self.epochs, ".2f"),
            "yes" if self.is_capped else "",
        )


def _of_domain(rows: Sequence[Mapping[str, Any]], train: Mapping[str, Any]) -> list[_Language]:
    """Return the languages that were planned or got, most tokens first."""
    whole = as_number(train.get("tokens"))
    planned = {str(row.get("language")): row for row in rows}
    languages = train.get("languages")
    got: Mapping[str, Any] = languages if isinstance(languages, Mapping) else {}
    found = []
    for name in {**planned, **got}:
        row = planned.get(name, {})
        is_left_out = bool(got) and name not in got
        tokens = 0 if is_left_out else as_number(at(got, name, "tokens"))
        found.append(
            _Language(
                name=str(name),
                supply=as_number(row.get("supply_tokens")),
                wanted=as_number(row.get("wanted_share")),
                quota=as_number(row.get("share")),
                got=tokens / whole if tokens is not None and whole else None,
                tokens=tokens,
                documents=0 if is_left_out else as_number(at(got, name, "documents")),
                epochs=as_number(row.get("epochs")),
                is_capped=bool(row.get("binds")) and bool(tokens),
            )
        )
    return sorted(found, key=lambda entry: (-(entry.tokens or 0), entry.name))


def _domain(domain: str, rows: Sequence[Mapping[str, Any]], train: Mapping[str, Any]) -> Html:
    found = _of_domain(rows, train)
    parts: list[object] = [element("h3", domain[:1].upper() + domain[1:])]
    if len(found) > 1:
        parts += [_shares(domain, found), _epochs(domain, found)]
    head = ("language", "supply", "wanted", "quota", "got", "off", "tokens", "documents")
    parts.append(table((*head, "epochs", "at cap"), [entry.cells() for entry in found]))
    return join(parts)


def _shares(domain: str, found: Sequence[_Language]) -> Html:
    drawn = []
    for entry in found[:_BARS]:
        if entry.got is None:
            continue
        shown = f"{entry.got:.1%}"
        lines = [("a", entry.got, shown)]
        if entry.wanted is not None:
            lines[0] = ("a", entry.got, f"{shown}, wanted {entry.wanted:.1%}")
            lines.append(("ghost", entry.wanted, f"{entry.wanted:.1%} wanted"))
        drawn.append((entry.name, lines))
    if not drawn:
        return element("p", missing("shares that were got"))
    key = legend(("a", "got, of the domain's tokens"), ("ghost", "wanted"))
    return figure(key, bars(drawn, f"Shares of languages of {domain}"))


def _epochs(domain: str, found: Sequence[_Language]) -> Html:
    drawn = [
        (entry.name, [("b", entry.epochs, f"{entry.epochs:.2f}")])
        for entry in found[:_BARS]
        if entry.epochs is not None
    ]
    if not drawn:
        return element("p", missing("epochs"))
    key = legend(("b", "epochs: how often the documents of a language are seen on average"))
    return figure(key, bars(drawn, f"Epochs of languages of {domain}"))


def _bin_names(number: int) -> list[str]:
    """Return the names of bins that end at 2, 4, 8, ... tokens."""
    ends = [2 ** (i + 1) for i in range(number)]
    return [
        f"{n // 1048576}M" if n >= 1048576 else f"{n // 1024}k" if n >= 1024 else f"{n}"
        for n in ends
    ]


def lengths(manifest: Manifest) -> Html:
    found = at(manifest, "lengths")
    domains = {
        str(domain): [as_number(n) or 0 for n in counts]
        for domain, counts in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(counts, list) and counts
    }
    if not domains or not any(map(any, domains.values())):
        return element("p", missing("lengths"))
    size = max(map(len, domains.values()))
    padded = {
        domain: [*counts, *[0.0] * (size - len(counts))] for domain, counts in domains.items()
    }
    filled = [i for i in range(size) if any(counts[i] for counts in padded.values())]
    span = slice(filled[0], filled[-1] + 1)
    names = _bin_names(size)[span]
    kinds = ("a", "b", "ghost")
    drawn = [(kinds[i % 3], counts[span]) for i, counts in enumerate(padded.values())]
    key = legend(*((kinds[i % 3], domain) for i, domain in enumerate(padded)))
    rows = [
        (f"up to {name}", *(Number(counts[span][i]) for counts in padded.values()))
        for i, name in enumerate(names)
    ]
    return join(
        (
            element(
                "p",
                "Documents by their tokens, before quotas; longer ones were split. Each column "
                "ends at the number below it and begins after that of the column before.",
                class_="soft",
            ),
            figure(key, columns(names, drawn, "Documents by their length in tokens")),
            table(("tokens", *padded), rows),
        )
    )
