"""Languages by name and shebang."""

from __future__ import annotations

import pytest

from data_pipeline.langid import canonical, identify


@pytest.mark.parametrize(
    ("name", "head", "wanted"),
    [
        ("a/b.py", b"", ("Python", "code")),
        ("B.PY", b"", ("Python", "code")),
        ("x.cu", b"", ("CUDA", "code")),
        ("x.h", b"int f(void);", ("C", "code")),
        ("x.h", b"template <class T>\n", ("C++", "code")),
        ("x.h", b"std::vector<int> v;", ("C++", "code")),
        ("README.md", b"", ("Markdown", "code")),
        ("README", b"", ("Text", "text")),
        ("CMakeLists.txt", b"", ("CMake", "code")),
        ("notes.txt", b"", ("Text", "text")),
        ("run", b"#!/bin/sh -e\n", ("Shell", "code")),
        ("run", b"#! /usr/bin/env python3.12\n", ("Python", "code")),
        ("run", b"#!/usr/bin/unheard-of\n", None),
        ("run", b"\x7fELF", None),
        ("x.so", b"#!/bin/sh\n", None),
    ],
)
def test_identify(name: str, head: bytes, wanted: tuple[str, str] | None) -> None:
    assert identify(name, head) == wanted


def test_canonical() -> None:
    assert [canonical(s) for s in ("cpp", " JAVA ", "Brainfuck")] == ["C++", "Java", "Brainfuck"]
