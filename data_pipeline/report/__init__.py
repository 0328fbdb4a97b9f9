"""The report of a corpus for people: one page of HTML with everything that its manifest says.

It is made from the manifest, and from some documents of the corpus to look at; it loads nothing.
Where a manifest lacks something, as an older one may, the page says that it is not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.report.conversations import conversations
from data_pipeline.report.details import settings, sources, versions
from data_pipeline.report.dropped import dropped, origins
from data_pipeline.report.examples import Example, drawn, examples
from data_pipeline.report.languages import languages, lengths
from data_pipeline.report.repositories import repositories
from data_pipeline.report.stages import costs, decontamination, drops, duplicates
from data_pipeline.report.values import Manifest, as_list, as_number, at, sum_of, trained_on
from loopcoder.page import Html, Number, element, join, missing, page, tiles
from loopcoder.storage.files import write_bytes

__all__ = ["render", "write_report"]


def write_report(manifest: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a corpus into its folder, whole or not at all, and return its path."""
    write_bytes(path, render(manifest, drawn(path.parent, manifest)).encode())
    return path


def render(manifest: Manifest, shown: Mapping[str, Sequence[Example]] | None = None) -> str:
    """Return the page; `shown` are documents to look at, by domain, if there are any."""
    name = at(manifest, "name")
    is_chat = at(manifest, "chat") is not None
    title = f"Corpus {name}" if name is not None else "Corpus without a name"
    return page(
        title,
        element("h1", title),
        _origin(manifest),
        _summary(manifest),
        _section("Some documents", examples(shown)) if shown else "",
        _section("Conversations", conversations(manifest)) if is_chat else "",
        "" if is_chat else _section("Languages", languages(manifest)),
        _section("Lengths of documents", lengths(manifest)),
        _section("What was dropped", drops(manifest)),
        _section("Dropped, for example", dropped(manifest)),
        _section("Duplicates", duplicates(manifest)),
        _section("Decontamination", decontamination(manifest)),
        _section("Repositories", repositories(manifest)) if at(manifest, "repositories") else "",
        _section("What each source gives", origins(manifest)),
        _section("Sources", sources(manifest)),
        _section("Cost", costs(manifest)),
        _section("Tokenizer and versions", versions(manifest)),
        _section("Settings", settings(manifest)),
    )


def _section(title: str, content: Html) -> Html:
    return element("section", element("h2", title), content)


def _origin(manifest: Manifest) -> Html:
    rows = [("fingerprint", "code"), ("created", "span"), ("command", "code")]
    return join(
        element(
            "p",
            element("span", f"{key} ", class_="soft"),
            missing() if at(manifest, key) is None else element(kind, at(manifest, key)),
        )
        for key, kind in rows
    )


def _summary(manifest: Manifest) -> Html:
    trained = trained_on(manifest)
    tokens = {domain: as_number(at(stats, "tokens")) for domain, stats in trained.items()}
    documents = [as_number(at(stats, "documents")) for stats in trained.values()]
    sequences = [as_number(at(stats, "sequences")) for stats in trained.values()]
    held = [as_number(at(manifest, "domains", domain, "val", "tokens")) for domain in trained]
    rows = as_list(at(manifest, "plan", "languages"))
    supply = sum_of([as_number(row.get("supply_tokens")) for row in rows])
    planned = sum_of([as_number(row.get("tokens")) for row in rows])
    epochs = planned / supply if planned is not None and supply else None
    return tiles(
        [
            ("tokens to train on", Number(sum_of(list(tokens.values())))),
            *((f"tokens of {domain}", Number(number)) for domain, number in tokens.items()),
            ("documents (copies counted)", Number(sum_of(documents))),
            ("sequences", Number(sum_of(sequences))),
            ("tokens per sequence", Number(as_number(at(manifest, "seq_length")))),
            ("epochs of the kept documents", Number(epochs, ",.2f")),
            ("shards of each domain", Number(as_number(at(manifest, "num_shards")))),
            ("tokens held out", Number(sum_of(held))),
        ]
    )
