"""Languages by name and shebang."""

from __future__ import annotations

import pytest

from data_pipeline.langid.names import canonical, domain_of, identify


@pytest.mark.parametrize(
    ("name", "head", "wanted"),
    [
        ("a/b.py", b"", ("Python", "code")),
        ("B.PY", b"", ("Python", "code")),
        ("x.cu", b"", ("CUDA", "code")),
        ("x.h", b"int f(void);", ("C", "code")),
        ("x.h", b"template <class T>\n", ("C++", "code")),
        ("x.h", b"std::vector<int> v;", ("C++", "code")),
        ("view.m", b"#import <UIKit/UIKit.h>\n", ("Objective-C", "code")),
        ("fit.m", b"function y = fit(x)\n% @x\n", ("MATLAB", "code")),
        ("a.pl", b":- module(a, []).\n", ("Prolog", "code")),
        ("a.pl", b"my $x = 1;\n", ("Perl", "code")),
        ("a.ts", b"<?xml version='1.0'?>\n<!DOCTYPE TS>", ("XML", "code")),
        ("a.ts", b"const x = <T>(y: T) => y\n", ("TypeScript", "code")),
        ("a.fs", b"#version 330\nvoid main() {}", ("GLSL", "code")),
        ("a.fs", b"module A\nlet x = 1\n", ("F#", "code")),
        ("index.rst.txt", b"", ("reStructuredText", "text")),
        ("README.md", b"", ("Markdown", "code")),
        ("README", b"", ("Text", "text")),
        ("README.Debian", b"", ("Text", "text")),
        ("changelog.Debian", b"", ("Text", "text")),
        ("INSTALL.win32", b"", ("Text", "text")),
        ("README.ja", b"", ("Text", "text")),
        ("TODO", b"", ("Text", "text")),
        ("README.json", b"", None),
        ("todo.csv", b"", None),
        ("faq.png", b"", None),
        ("history.js", b"", ("JavaScript", "code")),
        ("install.sh", b"", ("Shell", "code")),
        ("README.rdoc", b"", ("RDoc", "text")),
        ("a.textile", b"", ("Textile", "text")),
        ("a.texi", b"", ("Texinfo", "text")),
        ("a.mediawiki", b"", ("Wikitext", "text")),
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


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        ("text", "text|Text|tex|LaTeX|org|plain text|Plain Text|plaintext|prose|none|None|N/A"),
        ("text", "natural language|English|en|en-US|zh_Hans_CN|deu|sv|text/plain|txt|rst|.rst"),
        ("text", "reStructuredText|AsciiDoc|Pod|Roff|troff|BibTeX|Texinfo|Wikitext|Textile"),
        ("code", "Markdown|md|HTML|html|RMarkdown|MDX|cpp|text/x-python|.py|Vim script|cs|pl"),
        ("code", "unknown|Other|JSON|XML|Brainfuck|an unheard-of one|objective c|Visual Basic"),
    ],
)
def test_domain_of_a_language_column(domain: str, names: str) -> None:
    for name in names.split("|"):
        assert domain_of(canonical(name)) == domain, name


def test_spellings() -> None:
    wanted = {
        "Plain Text": "Text",
        "en-US": "Text",
        "LaTeX": "TeX",
        "Other": "unknown",
        "Unknown": "unknown",
        "text/x-python": "Python",
        ".hpp": "C++",
        "Rocq": "Coq",
        "emacs-lisp": "Emacs Lisp",
        "objective c": "Objective-C",
        "Wolfram": "Wolfram Language",
        "PLpgSQL": "SQL",
        "cs": "C#",
        "An Unheard-of One": "An Unheard-of One",
    }
    assert {name: canonical(name) for name in wanted} == wanted
