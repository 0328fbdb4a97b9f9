"""Languages by name and shebang."""

from __future__ import annotations

import pytest

from data_pipeline.langid.names import canonical, identify


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
