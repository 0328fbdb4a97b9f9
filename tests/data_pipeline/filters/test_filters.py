"""The cleaning stage: counts, licences, and input of any kind."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.filters import FilterConfig, clean
from data_pipeline.filters.licence import is_allowed, spdx_header
from data_pipeline.schema import Document, Tally
from tests.data_pipeline.conftest import random_text

LANGUAGES = ("Text", "Python", "JSON", "HTML", "JavaScript", "TeX", "XML")
ALLOW_LIST = FilterConfig(licence_policy="allow_list")


def document(text: str, language: str = "Python", path: str = "a/b.py", **meta: Any) -> Document:
    domain = "text" if language in ("Text", "TeX", "reStructuredText") else "code"
    return Document("0" * 32, text, domain, language, "source", path, meta)


def fate(doc: Document, rules: FilterConfig | None = None) -> str:
    """Return why a document is dropped, or ''."""
    tally = Tally("clean")
    kept = list(clean([doc], rules or FilterConfig(), tally))
    tally.check()
    assert len(kept) == tally.rows_out
    return next(iter(tally.drops), "")


def check_any(documents: list[Document], rules: FilterConfig) -> None:
    tally = Tally("clean")
    kept = list(clean(documents, rules, tally))
    tally.check()
    assert tally.rows_in == len(documents)
    assert tally.rows_out == len(kept)
    ids = iter(d.id for d in documents)
    assert all(d.id in ids for d in kept), "the order changed"
    # a second pass finds nothing to repair
    again = Tally("clean")
    for first, second in zip(kept, clean(kept, only_repairs(), again), strict=True):
        assert first.text == second.text
    assert not again.notes


def only_repairs() -> FilterConfig:
    off: dict[str, Any] = {
        name: None
        for name in FilterConfig.__dataclass_fields__
        if name.startswith(("max_", "min_")) and name != "min_repeat_chars"
    }
    off |= {name: False for name in FilterConfig.__dataclass_fields__ if name.startswith("drop_")}
    return FilterConfig(**off, linguist_generated=False)


@settings(deadline=None)  # the first example loads enry
@given(
    st.lists(
        st.tuples(
            st.text(max_size=300) | st.text("ab@.:\n{}<>19-_ 漢", max_size=300),
            st.sampled_from(LANGUAGES),
            st.text(max_size=20),
        ),
        max_size=5,
    ),
    st.booleans(),
)
def test_rows_are_conserved(rows: list[tuple[str, str, str]], strict: bool) -> None:
    documents = [document(*row) for row in rows if row[0].strip()]
    documents += [document(" \n" * 3, row[1], row[2]) for row in rows]
    rules = FilterConfig(
        require_terminal_punctuation=strict,
        drop_curly_brackets=strict,
        linguist_vendored=strict,
        licence_policy="allow_list" if strict else "any",
        source_licences={"source": "MIT"},
    )
    if strict:
        tally = Tally("clean")
        list(clean(documents, rules, tally))
        tally.check()
    else:
        check_any(documents, only_repairs())


def test_odd_documents(rng: random.Random) -> None:
    texts = [
        *("", " ", "\n", "\r\n" * 50, "\0" * 100, "\ufeff", "\ud800", "a\udcffb" * 200, "\u2028"),
        *("a" * 1_000_000, "-" * 250_000, "1," * 125_000, "漢" * 75_000, "@" * 75_000),
        *("a@" * 75_000, "<" * 75_000, "<!--" * 25_000, "." * 75_000, "1." * 75_000),
        *(":" * 75_000, "sk-" * 75_000, "a b " * 62_500, "#" * 250_000, "\\x00" * 50_000),
        *("<script>" * 12_500, "-----BEGIN PRIVATE KEY-----\n" * 2000, '"' * 75_000, "0x" * 9999),
        *("e\u0301" * 1000, "🙂 " * 1000, "\x85a" * 1000, random_text(rng, 20_000)),
    ]
    paths = ["", "/", "a\0b", "\ud800.js", "x/" * 3000, "ü.html"]
    # what a search that is not linear would take minutes for
    texts += [
        *("<!-- text\n" * 12_500, "<script> text\n" * 12_500, "words <a\n" * 12_500),
        *(("1" * 22_500 + "\n") * 9, ("a1" * 45_000 + "\n") * 9, ("1.1" * 300 + "a\n") * 900),
        *("eyJabcdefghij.eyJabcdefghij" * 20_000, ("1 " * 7 + "x\n") * 12_500),
    ]
    documents = [
        document(text, language, paths[i % len(paths)])
        for i, text in enumerate(texts)
        for language in ("Text", rng.choice(LANGUAGES[1:]))
    ]
    tally = Tally("clean")
    list(clean(documents, FilterConfig(), tally))
    tally.check()
    check_any(documents, only_repairs())


def test_a_consumer_may_stop() -> None:
    tally = Tally("clean")
    stream = clean((document(f"x = {i}\n") for i in range(10)), FilterConfig(), tally)
    next(stream)
    next(stream)
    tally.check()
    assert tally.rows_in == 2


def test_only_repaired_documents_are_copies() -> None:
    same, other = document("x = 1\n"), document("# by ada@lovelace.org\nx = 1\n")
    tally = Tally("clean")
    kept = list(clean([same, other], FilterConfig(), tally))
    assert kept[0] is same
    assert kept[1].text == "# by <EMAIL>\nx = 1\n"
    assert kept[1].id == other.id
    assert tally.notes == {"emails_scrubbed": 1, "documents_repaired": 1}


def test_the_filters_import_no_torch() -> None:
    code = (
        "import sys, data_pipeline.filters as f;"
        "assert not {'torch', 'megatron', 'enry'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


@pytest.mark.parametrize(
    ("expression", "verdict"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-2.0-only", True),
        ("GPL-2.0-only OR LGPL-2.1-only", False),
        ("MIT AND GPL-2.0-only", False),
        ("(MIT OR GPL-2.0-only) AND BSD-3-Clause", True),
        ("GPL-2.0-only AND (MIT OR Apache-2.0)", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("Apache-2.0+", True),
        ("NOASSERTION", None),
        ("LicenseRef-Proprietary", None),
        ("MIT AND NOASSERTION", None),
        ("MIT OR NOASSERTION", True),
        ("GPL-2.0-only AND NOASSERTION", False),
        ("", None),
        ("(MIT", None),
        ("MIT GPL-2.0-only", None),
        ("see the file COPYING!", None),
    ],
)
def test_spdx_expressions(expression: str, verdict: bool | None) -> None:
    assert is_allowed(expression, ALLOW_LIST.allowed_licences) is verdict


def test_spdx_headers() -> None:
    for line in (
        "# SPDX-License-Identifier: MIT OR Apache-2.0",
        "/* SPDX-License-Identifier: MIT OR Apache-2.0 */",
        "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->",
        "// SPDX-License-Identifier:\tMIT OR Apache-2.0\r",
    ):
        assert spdx_header(f"#!/bin/sh\n{line}\nx\n") == "MIT OR Apache-2.0"
    assert spdx_header("x = 1\n") is None
    assert spdx_header("x = 1\n" * 2000 + "# SPDX-License-Identifier: MIT\n") is None


def test_licence_policy() -> None:
    gpl = "# SPDX-License-Identifier: GPL-2.0-only\nx = 1\n"
    assert fate(document(gpl)) == ""
    assert fate(document(gpl), ALLOW_LIST) == "licence_not_allowed"
    assert fate(document("x = 1\n"), ALLOW_LIST) == "licence_unknown"
    assert fate(document("x = 1\n", licence="MIT"), ALLOW_LIST) == ""
    assert fate(document("x = 1\n", licence=["MIT", "ISC"]), ALLOW_LIST) == ""
    assert fate(document("x = 1\n", licence=["MIT", "GPL-3.0"]), ALLOW_LIST) == (
        "licence_not_allowed"
    )
    for nothing in ([], None, 3, [None]):
        assert fate(document("x = 1\n", licence=nothing), ALLOW_LIST) == "licence_unknown"
    # the file's own line counts before what its row says
    assert fate(document(gpl, licence="MIT"), ALLOW_LIST) == "licence_not_allowed"


def test_licences_of_sources() -> None:
    rules = FilterConfig(licence_policy="allow_list", source_licences={"source": "GPL-2.0-only"})
    assert fate(document("x = 1\n"), rules) == "licence_not_allowed"
    assert fate(document("x = 1\n", licence="MIT"), rules) == ""
    rules = FilterConfig(
        licence_policy="allow_list",
        source_licences={"source": "GPL-2.0-only"},
        allowed_by_source={"source": frozenset({"GPL-2.0-only"})},
    )
    assert fate(document("x = 1\n"), rules) == ""
    assert fate(document("x = 1\n", licence="MIT"), rules) == "licence_not_allowed"
