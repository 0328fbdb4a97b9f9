"""Documentation becomes questions and answers in Markdown."""

from __future__ import annotations

import random

from data_pipeline.tools.chat_set import git, man, node, pod, rst
from data_pipeline.tools.chat_set.rows import Row, is_whole
from tests.data_pipeline.tools.snippets import GIT, MAN, NODE, POD, RST

RNG = random.Random(0)


def said(row: Row) -> tuple[str, str]:
    return row.messages[0]["content"], row.messages[1]["content"]


def test_a_faq_in_pod() -> None:
    (row,) = pod.faq_rows(POD, "perl-doc 5:perlfaq4.pod")
    question, answer = said(row)
    assert question == "In Perl: How do I strip blanks?"
    assert answer == (
        "Use `s/^\\s+//`, see `perlop/Quotes` and `POSIX`. It is *fast*:\n\n"
        "```perl\nfor ($string) {\n    s/^\\s+//;\n}\n\nprint;\n```\n\n- It does <not> hurt."
    )
    assert row.licence == "Artistic-1.0-Perl OR GPL-1.0-or-later"


def test_a_faq_in_restructuredtext() -> None:
    (row,) = rst.faq_rows(RST, "python3.11-doc 3:sort.rst.txt")
    question, answer = said(row)
    assert question == "In Python: How do I sort?"
    assert answer == (
        "Call `sorted`, or `list.sort`:\n\n"
        '```python\n>>> sorted([2, 1])\n[1, 2]\n\n>>> sorted("")\n[]\n```\n\n'
        "See the manual (https://example.org/sort) and the tutorial.\n\n"
        "- one item of two lines\n- another one."
    )


def test_a_manual_page() -> None:
    rows = {row.kind: row for row in man.rows_of_page(MAN, "manpages-dev 6:frob.3")}
    assert rows.keys() == {"man_returns", "man_example", "man_prototype"}
    assert {row.licence for row in rows.values()} == {"GPL-2.0-or-later"}
    assert said(rows["man_returns"]) == (
        "What does `frob(3)` return?",
        "On success, `frob()` returns 0; on error, -1, and *errno* is set.",
    )
    code = '```c\nif (frob(3) == -1)\n    puts("no\\n");\n```'
    assert said(rows["man_example"])[1] == f"This turns it:\n\n{code}"
    question, answer = said(rows["man_prototype"])
    assert question == "Which function can turn a knob in C, and how is it declared?"
    assert "```c\n#include <frob.h>\n\nint frob(int knob);\n```" in answer


def test_a_page_without_a_licence_or_with_unknown_macros_gives_nothing() -> None:
    assert not [*man.rows_of_page(MAN.replace("SPDX", "X"), "x")]
    odd = MAN.replace("This turns it:", ".TS\nl l.\na\tb\n.TE")
    assert "man_example" not in {row.kind for row in man.rows_of_page(odd, "x")}


def test_git_both_ways() -> None:
    rows = [*git.rows_of_page(GIT, "git-doc 1:2:git-frob.txt", RNG)]
    found = {(row.kind, *said(row)) for row in rows}
    answer = "Print nothing but errors, as `git-log` does, see `git-log(1)`."
    assert ("git_option", "What does the option `--quiet` of `git frob` do?", answer) in found
    does = "Turn every knob of the repository."
    assert ("git_explained", "What does `git frob --all` do?", does) in found
    commands = {a: q for kind, q, a in found if kind == "git_command"}
    assert does in commands["```console\n$ git frob --all\n```"]
    (back,) = (a for a, q in commands.items() if "turn them back" in q)
    assert back == "```console\n$ git frob --back   <1>\n```\n\n<1> This takes a while."
    assert len(rows) == 4


def test_node_shows_one_way_to_import() -> None:
    (row,) = node.rows_of_page(NODE, "nodejs-doc 18:frob.md", RNG)
    question, answer = said(row)
    assert "`frob.turn(knob[, options])`" in question
    assert "Turns a knob (https://example.org/knob). See `frob.stop()`." in answer
    assert answer.endswith("```js\nimport frob from 'node:frob';\n```")
    assert "require" not in answer and "YAML" not in answer


def test_an_answer_that_is_cut_is_none() -> None:
    assert is_whole("It ends.") and is_whole("```c\nx\n```")
    assert not is_whole("It goes on and") and not is_whole("```c\nx") and not is_whole("x" * 9000)
