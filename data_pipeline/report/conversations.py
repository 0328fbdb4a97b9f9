"""The report's part on conversations: how they fill the sequences, what is trained, licences."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.report.values import Manifest, as_list, as_number, at
from loopcoder.page import Html, Number, element, join, table, tiles


def conversations(manifest: Manifest) -> Html:
    """Return what a corpus of conversations comes to, and what of it is of each origin."""
    chat, packed = at(manifest, "chat"), at(manifest, "packed")

    def of(name: str, *keys: str) -> Number:
        return Number(as_number(at(chat, *keys, name)))

    cards: list[tuple[str, object]] = [
        ("conversations to train on", of("conversations", "train")),
        ("messages in them", of("turns", "train")),
        ("conversations held out", of("conversations", "val")),
        ("sequences", Number(as_number(at(packed, "sequences")))),
        ("of the sequences is padding", Number(as_number(at(packed, "padding")), ".2%")),
        ("of the tokens are trained", Number(as_number(at(packed, "trained")), ".1%")),
        ("too long, left out", of("too_long")),
    ]
    found = at(chat, "percentiles")
    percentiles: Mapping[str, object] = found if isinstance(found, Mapping) else {}
    head = tuple("longest" if name == "100" else f"{name}%" for name in percentiles)
    lengths = tuple(Number(as_number(value)) for value in percentiles.values())
    rows = [
        (
            row.get("source"),
            row.get("origin") or "",
            row.get("licence") or element("span", "none named", class_="soft"),
            *(Number(as_number(row.get(n))) for n in ("conversations", "turns", "tokens")),
            Number(as_number(row.get("trained"))),
        )
        for row in as_list(at(chat, "kinds"))
    ]
    about = (
        "A sequence holds whole conversations, one after the other. Of their tokens only what "
        "the assistant says is trained, as data.build.chat asks for."
    )
    columns = ("source", "origin", "licence", "conversations", "messages", "tokens", "trained")
    return join(
        (
            element("p", about, class_="soft"),
            tiles(cards),
            element("h3", "Tokens of a conversation, by percentile"),
            table(head, [lengths]),
            element("h3", "Origins and licences"),
            table(columns, rows),
        )
    )
