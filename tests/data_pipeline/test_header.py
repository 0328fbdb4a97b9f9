"""The licence header of a file: what is taken off, and what stays."""

from __future__ import annotations

import pytest

from data_pipeline.dedup.minhash import signatures
from data_pipeline.header import without_licence
from loopcoder.config.build import NearDedupConfig

LINES = [
    "Copyright (C) 2014-2022 The Project",
    "",
    "This program is free software: you can redistribute it and/or modify it under the terms",
    "of the licence below, and without any warranty, which every file here says again.",
    *(f"Paragraph {i} of the licence says what you may do with part {i}." for i in range(40)),
]
BLOCKS = {
    "C": "/*\n" + "".join(f" * {line}\n" for line in LINES) + " */\n",
    "C++": "".join(f"// {line}\n" for line in LINES),
    "Python": "".join(f"# {line}\n" for line in LINES),
    "Python docstring": '"""' + "\n".join(LINES) + '\n"""\n',
    "HTML": "<!--\n" + "\n".join(LINES) + "\n-->\n",
    "Lisp": "".join(f";;; {line}\n" for line in LINES),
    "SQL": "".join(f"-- {line}\n" for line in LINES),
    "OCaml": "(*\n" + "\n".join(LINES) + "\n*)\n",
    "TeX": "".join(f"% {line}\n" for line in LINES),
    "M4": "".join(f"dnl {line}\n" for line in LINES),
}
BODY = "int scale(int value, int factor)\n{\n  return value * factor;\n}\n"


def body(text: str, *, code: bool = True) -> str:
    return without_licence(text.encode(), code=code).decode()


@pytest.mark.parametrize("language", BLOCKS)
def test_the_licence_goes(language: str) -> None:
    block = BLOCKS[language]
    assert body(block + BODY).strip() == BODY.strip()
    assert body("\n\n" + block + "\n" + BODY).strip() == BODY.strip()
    # what the file is for stays, before the licence and after it
    before, after = "/* Scales values. */\n\n", "/* How it is done. */\n"
    assert body(before + block + "\n" + after + BODY).split() == (before + after + BODY).split()


def test_a_shebang_is_no_obstacle() -> None:
    assert body("#!/bin/sh\n\n" + BLOCKS["Python"] + BODY).endswith(BODY)
    assert "Paragraph" not in body("#!/usr/bin/perl -w\n" + BLOCKS["Python"] + BODY)
    assert "Paragraph" not in body("<?php\n" + BLOCKS["C"] + BODY)
    assert "Paragraph" not in body('"use strict";\n' + BLOCKS["C"] + BODY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        BODY,
        "/* Scales values. */\n" + BODY,
        "// SPDX-License-Identifier: MIT\n// Copyright the authors\n" + BODY,
        "/* Copyright, and no end of the comment\n" + BODY * 9,
        BLOCKS["C"],  # nothing else in the file
        BODY + BLOCKS["C"],
        "#include <licence.h>\n" * 20 + BODY,
        "/* copyright " * 9_000,
    ],
)
def test_what_stays(text: str) -> None:
    assert body(text) == text


def test_prose_has_few_comments() -> None:
    words = "The words of a manual.\n"
    roff = "".join(f'.\\" {line}\n' for line in LINES)
    rst = ".. Licence\n" + "".join(f"   {line}\n" for line in LINES) + "\n"
    for block in (roff, rst, BLOCKS["TeX"], BLOCKS["HTML"]):
        assert body(block + words, code=False).strip() == words.strip()
    for block in (BLOCKS["Python"], BLOCKS["SQL"]):  # a list, a heading
        assert body(block + words, code=False) == block + words


@pytest.mark.parametrize("language", ["C", "C++", "Python", "Lisp"])
def test_small_files_with_one_licence_are_no_copies(language: str) -> None:
    pytest.importorskip("rensa")
    files = [
        f"{BLOCKS[language]}int {name}(int {name}_of, long {other}) {{ return {other} + {i}; }}\n"
        for i, (name, other) in enumerate(zip("abcdefghijklmno", "ponmlkjihgfedcb", strict=True))
    ]
    config = NearDedupConfig()
    rows, known = signatures([file.encode() for file in files], code=True, config=config)
    assert known.all()
    agree = (rows[:, None] == rows[None]).mean(axis=2)
    assert agree[agree < 1].max() < (config.verify or 0) and (agree == 1).sum() == len(files)
