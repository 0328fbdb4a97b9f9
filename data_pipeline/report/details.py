"""The report's part on where a corpus comes from: sources, versions, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.report.values import Manifest, as_list, at
from loopcoder.page import Html, element, join, missing, table, text


def sources(manifest: Manifest) -> Html:
    """Return the origin of every source, its licences and the hash of its input."""
    entries = as_list(at(manifest, "sources"))
    if not entries:
        return element("p", missing("sources"))
    parts: list[Html] = []
    for entry in entries:
        shown = {key: value for key, value in entry.items() if key != "name"}
        if shown.get("paths") in (shown.get("path"), [shown.get("path")]):
            shown.pop("paths", None)
        # packages name theirs one by one
        if shown.get("licence") is None and not shown.get("packages"):
            shown["licence"] = missing()
        parts += [element("h3", entry.get("name", "source without a name")), pairs(shown)]
    return join(parts)


def versions(manifest: Manifest) -> Html:
    tokenizer, versions = at(manifest, "tokenizer"), at(manifest, "versions")
    return join(
        (
            element("h3", "Tokenizer"),
            pairs(tokenizer) if isinstance(tokenizer, Mapping) else element("p", missing()),
            element("h3", "Versions"),
            pairs(versions) if isinstance(versions, Mapping) else element("p", missing()),
        )
    )


def settings(manifest: Manifest) -> Html:
    config = at(manifest, "config")
    if not isinstance(config, Mapping):
        return element("p", missing("settings"))
    parts: list[Html] = []
    single = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    for name, values in ({"corpus": single} | dict(config)).items():
        if isinstance(values, Mapping) and values:
            parts += [element("h3", str(name).replace("_", " ")), pairs(values)]
    return join(parts)


def pairs(values: Mapping[str, Any]) -> Html:
    """Return a table of names and values; lists of mappings become tables of their own."""
    plain: list[tuple[object, ...]] = []
    nested: list[Html] = []
    for key, value in values.items():
        shown = str(key).replace("_", " ")
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            head = list(dict.fromkeys(str(k) for v in value for k in v))
            rows = [[_plain(v.get(k)) for k in head] for v in value]
            nested.append(element("p", f"{shown} ({len(value)})", class_="soft"))
            nested.append(table(head, rows))
        else:
            plain.append((shown, _plain(value)))
    return join((table(("", ""), plain), *nested))


def _plain(value: Any) -> object:
    match value:
        case None:
            return element("span", "none", class_="soft")
        case bool():
            return "yes" if value else "no"
        case list() | tuple() if all(not isinstance(v, Mapping | list) for v in value):
            return join(_commas(text(v) for v in value)) if value else "none"
        case Mapping() if all(not isinstance(v, Mapping | list) for v in value.values()):
            return join(_commas(join((f"{k}: ", text(v))) for k, v in value.items())) or "none"
        case _:
            return text(value)


def _commas(parts: Iterator[Html]) -> Iterator[Html]:
    for i, part in enumerate(parts):
        yield Html(", " + part) if i else part
