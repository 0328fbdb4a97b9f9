"""The report: it says what the manifest says, loads nothing, and escapes what it is given."""

from __future__ import annotations

import copy
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.report import render, write_report
from loopcoder.page import NOT_RECORDED

VOID = {"meta"}
HOSTILE = '<script>alert("1")</script>\'&amp;\x00\x1b[31m\ud800\u202e</td></table>'


class Page(HTMLParser):
    """A page as lists: its text by section, tables by section, tags and attributes."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.section = ""
        self.text: dict[str, list[str]] = {"": []}
        self.tables: dict[str, list[list[list[str]]]] = {"": []}
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables[self.section].append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        if self.open and self.open[-1] == "h2":
            self.section = data
            self.text[data], self.tables[data] = [], []
        self.text[self.section].append(data)
        if {"td", "th"} & set(self.open) and "svg" not in self.open:
            self.tables[self.section][-1][-1][-1] += data

    def row(self, section: str, first: str) -> list[str]:
        """Return the one row that begins with `first`."""
        (row,) = [r for t in self.tables[section] for r in t if r and r[0] == first]
        return row


def manifest(rng: random.Random) -> dict[str, Any]:
    """A manifest with every part, and random numbers that add up."""
    languages = {
        "text": ["Text", "TeX"],
        "code": ["Java", "Python", "C++", "Brainfuck & <co>"],
    }
    plan, domains = [], {}
    for domain, names in languages.items():
        tokens = {name: rng.randint(1_000, 9_999_999) for name in names}
        whole = sum(tokens.values())
        for name in names:
            supply = rng.randint(1_000, 9_999_999)
            plan.append(
                {
                    "domain": domain,
                    "language": name,
                    "supply_tokens": supply,
                    "wanted_share": rng.random(),
                    "share": tokens[name] / whole + rng.uniform(-0.001, 0.001),
                    "tokens": tokens[name],
                    "epochs": tokens[name] / supply,
                    "binds": name == "Python",
                }
            )
        got = {n: {"documents": rng.randint(1, 9_999), "tokens": t} for n, t in tokens.items()}
        domains[domain] = {
            "train": {
                "documents": sum(g["documents"] for g in got.values()),
                "tokens": whole,
                "languages": got,
                "sequences": rng.randint(1, 9_999),
                "shards": [{"prefix": f"train/{domain}-00000", "documents": 1, "tokens": whole}],
            },
            "val": {"documents": 7, "tokens": rng.randint(1, 9_999), "languages": {}},
        }
    stages = []
    rows = rng.randint(100_000, 999_999)
    for name in ("ingest 0-files", "clean", "decontaminate", "dedup"):
        drops = {f"reason_{i}_{name}": rng.randint(1, 999) for i in range(3)}
        if name == "decontaminate":
            drops = {"contaminated_humaneval": 3}
        handed = rows - sum(drops.values())
        stages.append({"stage": name, "rows_in": rows, "rows_out": handed, "drops": drops})
        stages[-1] |= {"notes": {}, "file_drops": {}}
        rows = handed
    stages[0]["file_drops"] = {"corrupt_gz": 2}
    stages[2]["notes"] = {"hit_humaneval/HumanEval/17": 3}
    return {
        "format_version": 2,
        "name": "test",
        "dropped": {
            "listed": True,
            "entries": 12345,
            "reasons": [
                {"stage": "ingest", "unit": "file", "reason": "unknown_type", "number": 4744}
                | {"examples": [{"path": "/a/x.rkt", "bytes": 1204}, {"path": "/a/y.tst"}]},
                {"stage": "dedup", "unit": "document", "reason": "near_duplicate", "number": 99}
                | {"examples": [{"path": "/a/b", "row": 7, "stays": {"path": "/a/c", "row": 1}}]},
                {"stage": "hold out", "unit": "document", "reason": "held_out", "number": 77}
                | {"examples": []},
            ],
            "unknown_suffixes": {".rkt": 4000, ".tst": 744},
        },
        "origins": [
            {"source": "0-debian", "package": None, "documents": 12, "bytes": 345}
            | {"tokens": 67, "taken_tokens": 60, "left_out": {}},
            {"source": "0-debian", "package": "debian/ocaml-source-4", "documents": 0, "bytes": 0}
            | {"tokens": 0, "taken_tokens": 0, "left_out": {"nested_archive": 1}},
        ],
        "fingerprint": "0123abcd",
        "created": "2026-01-02T03:04:05Z",
        "command": "loopcoder data data=files path='a b'",
        "versions": {"python": "3.12", "numpy": "2"},
        "sources": [
            {"name": "0-files", "kind": "files", "path": ["/a", "/b"], "licence": "MIT"},
            {
                "name": "1-npm",
                "kind": "npm",
                "licence": None,
                "packages": [{"name": "rxjs", "version": "7", "licences": ["Apache-2.0"]}],
            },
        ],
        "config": {
            "filters": {"min_words": 50},
            "near_dedup": {"bands": 14},
            "decontaminate": {"benchmarks": ["humaneval", "bfcl_v4"]},
            "epochs": 1.0,
        },
        "seq_length": 4096,
        "stages": stages,
        "duplicates": {"exact_duplicate": rng.randint(1, 999), "near_duplicate": 0},
        "costs": [
            {
                "stage": "read",
                "tasks": 4,
                "seconds": 9.5,
                "cpu_s": 8.0,
                "peak_rss_bytes": 123_000_000,
                "bytes_in": 400_000_000,
                "parts": {"ingest": 3.0, "clean": 5.0},
            },
            {"stage": "match", "tasks": 15, "seconds": 2.5, "cpu_s": 2.0, "bytes_in": 0}
            | {"peak_rss_bytes": 456_000_000},
        ],
        "tokenizer": {"xxh3_128": "beef", "vocab_size": 76_800, "trained": True},
        "plan": {"tokens": 1, "largest_tokens": 2, "languages": plan},
        "lengths": {"text": [0, 3, 5, 0], "code": [0, 0, 11, 2]},
        "domains": domains,
        "num_shards": 12,
    }


def test_numbers_are_those_of_the_manifest(rng: random.Random) -> None:
    given = manifest(rng)
    page = Page(render(given))
    train = {domain: stats["train"] for domain, stats in given["domains"].items()}
    summary = page.text[""]
    for wanted in (
        sum(t["tokens"] for t in train.values()),
        *(t["tokens"] for t in train.values()),
        sum(t["documents"] for t in train.values()),
        sum(t["sequences"] for t in train.values()),
        given["seq_length"],
        given["num_shards"],
        sum(stats["val"]["tokens"] for stats in given["domains"].values()),
    ):
        assert f"{wanted:,}" in summary
    assert {"0123abcd", "2026-01-02T03:04:05Z", "loopcoder data data=files path='a b'"} <= set(
        summary
    )
    for row in given["plan"]["languages"]:
        stats = train[row["domain"]]
        mine = stats["languages"][row["language"]]
        share = mine["tokens"] / stats["tokens"]
        off = f"{100 * (share - row['share']):+.3f}"
        assert page.row("Languages", row["language"]) == [
            row["language"],
            f"{row['supply_tokens']:,}",
            f"{row['wanted_share']:.2%}",
            f"{row['share']:.2%}",
            f"{share:.2%}",
            off if float(off) else "+0.000",
            f"{mine['tokens']:,}",
            f"{mine['documents']:,}",
            f"{row['epochs']:.2f}",
            "yes" if row["binds"] else "",
        ]
    assert page.tables["Lengths of documents"] == [
        [
            ["tokens", "text", "code"],
            ["up to 4", "3", "0"],
            ["up to 8", "5", "11"],
            ["up to 16", "0", "2"],
        ]
    ]
    flow, reasons, files, notes = page.tables["What was dropped"]
    for stage, row in zip(given["stages"], flow[1:], strict=True):
        dropped = sum(stage["drops"].values())
        assert row == [
            stage["stage"],
            f"{stage['rows_in']:,}",
            f"{stage['rows_out']:,}",
            f"{dropped:,}",
            f"{dropped / stage['rows_in']:.2%}",
            "",
        ]
    told = {row[1]: row[2] for row in reasons[1:]}
    assert told == {
        reason.replace("_", " "): f"{n:,}"
        for stage in given["stages"]
        for reason, n in stage["drops"].items()
    }
    assert files[1:] == [["ingest 0-files", "corrupt gz", "2"]]
    examples, suffixes = page.tables["Dropped, for example"]
    assert examples[1:] == [
        ["unknown type (ingest, files)", "4,744", "/a/x.rkt (1,204 bytes)"],
        ["", "", "/a/y.tst"],
        ["near duplicate (dedup, documents)", "99", "/a/b, row 7; /a/c, row 1 stays"],
    ]
    assert [row[:2] for row in suffixes[1:]] == [[".rkt", "4,000"], [".tst", "744"]]
    assert page.tables["What each source gives"][0][1:] == [
        ["0-debian", "all", "12", "345", "67", "60"],
        ["", "debian/ocaml-source-4", "0", "0", "0", "0"],
    ]
    warned = "".join(page.text["What each source gives"])
    assert "package debian/ocaml-source-4 of source 0-debian gives nothing" in warned
    assert "left out: 1 nested_archive" in warned
    assert notes[1:] == [["decontaminate", "hit humaneval/HumanEval/17", "3"]]
    assert page.row("Decontamination", "humaneval/HumanEval/17")[1] == "3"
    assert f"{given['duplicates']['exact_duplicate']:,}" in page.text["Duplicates"]
    assert page.row("Decontamination", "humaneval") == ["humaneval", "3"]
    assert page.row("Decontamination", "bfcl_v4") == ["bfcl_v4", "0"]
    assert page.row("Sources", "path") == ["path", "/a, /b"]
    assert page.row("Sources", "rxjs") == ["rxjs", "7", "Apache-2.0"]
    assert page.row("Cost", "read")[:7] == ["read", "4", "9.5", "8.0", "400.0", "50.0", "123"]
    assert page.row("Cost", "match")[:7] == ["match", "15", "2.5", "2.0", "", "", "456"]
    assert page.row("Cost", "of this, clean")[3] == "5.0"
    whole = page.row("Cost", "all, relative to the input")
    assert whole[:7] == ["all, relative to the input", "19", "12.0", "10.0", "400.0", "40.0", "456"]
    # 10 CPU-s for 400 MB are 6.9 hours a TB
    assert "7 core-hours per terabyte" in "".join(page.text["Cost"])
    assert page.row("Tokenizer and versions", "vocab size") == ["vocab size", "76800"]
    assert page.row("Settings", "min words") == ["min words", "50"]
    assert NOT_RECORDED not in "".join(map("".join, page.text.values()))


def test_it_loads_nothing(rng: random.Random) -> None:
    source = render(manifest(rng))
    page = Page(source)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset", "xlink:href")]
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert "url(" not in source and "@import" not in source and "http:" not in source
    assert 'charset="utf-8"' in source and "default-src 'none'" in source
    assert "prefers-color-scheme: dark" in source and "@media print" in source


def test_charts_are_as_long_as_their_numbers(rng: random.Random) -> None:
    given = manifest(rng)
    page = Page(render(given))
    kinds = [value for tag, name, value in page.attributes if tag == "rect" and name == "class"]
    widths = [float(v or 0) for tag, name, v in page.attributes if (tag, name) == ("rect", "width")]
    assert {"a", "b", "ghost"} <= set(kinds) and all(0 <= width <= 720 for width in widths)
    assert max(widths) > 400
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert len(labels) == len(set(labels)) == 5


def hostile(value: Any) -> Any:
    """Put hostile text for every name and text; numbers stay."""
    match value:
        case dict():
            return {k: hostile(v) for k, v in value.items()} | {HOSTILE: HOSTILE}
        case list():
            return [hostile(v) for v in value]
        case str():
            return HOSTILE + value
        case _:
            return value


def test_hostile_names_are_escaped(rng: random.Random, tmp_path: Path) -> None:
    given = manifest(rng)
    for stage in given["stages"]:
        stage["drops"][HOSTILE] = 1
        stage["notes"][HOSTILE] = 1
    given["domains"]["code"]["train"]["languages"][HOSTILE] = {"documents": 1, "tokens": 2}
    for shown in (given, hostile(copy.deepcopy(given))):
        source = render(shown)
        page = Page(source)
        assert "script" not in page.tags
        assert "<script" not in source and "\x00" not in source and "\x1b" not in source
        assert 'alert("1")' not in source
        every = "".join(map("".join, page.text.values()))
        assert '<script>alert("1")</script>' in every
    # a lone surrogate, which UTF-8 cannot spell
    path = write_report(hostile(given), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render(hostile(given))


def test_what_is_missing_is_said(rng: random.Random) -> None:
    empty = Page(render({}))
    full = Page(render(manifest(rng)))
    assert list(empty.text) == list(full.text)
    for section, found in empty.text.items():
        assert NOT_RECORDED in "".join(found), section
    given = manifest(rng)
    for key in ("created", "seq_length", "lengths", "stages", "duplicates", "costs", "sources"):
        without = Page(render({k: v for k, v in given.items() if k != key}))
        assert NOT_RECORDED in "".join(map("".join, without.text.values())), key


def test_manifest_of_version_1() -> None:
    given = {
        "format_version": 1,
        "domains": {
            "code": {"train": {"prefix": "code_train", "documents": 3, "tokens": 50}}
            | {"val": {"prefix": "code_val", "documents": 1, "tokens": 5}}
        },
        "stages": [{"stage": "ingest", "rows_in": 5, "rows_out": 4, "drops": {"empty": 1}}],
    }
    given["domains"]["code"]["train"]["languages"] = {  # type: ignore[index]
        "C": {"documents": 3, "tokens": 50, "utf8_bytes": 200}
    }
    page = Page(render(given))
    assert "50" in page.text[""] and NOT_RECORDED in page.text[""]
    assert page.row("Languages", "C")[4:8] == ["100.00%", NOT_RECORDED, "50", "3"]
    flow, reasons = page.tables["What was dropped"]
    assert flow[1][:4] == ["ingest", "5", "4", "1"]
    assert reasons[1][:4] == ["ingest", "empty", "1", "20.000%"]


@pytest.mark.data_full
@pytest.mark.parametrize("wrong", [None, "text", -1, [], {}, [None], {"x": [1]}, True, 0])
def test_values_of_another_kind_do_no_harm(rng: random.Random, wrong: Any) -> None:
    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            items = list(value.items())
        elif isinstance(value, list):
            items = list(enumerate(value))
        return [path, *(p for key, inner in items for p in places(inner, (*path, key)))]

    given = manifest(rng)
    for path in rng.sample(places(given)[1:], 50):
        changed = copy.deepcopy(given)
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        Page(render(changed))


def test_write_report_is_whole_or_not_there(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = manifest(rng)
    path = tmp_path / "report.html"
    assert write_report(given, path) == path
    before = path.read_bytes()

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(given | {"name": "another"}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
