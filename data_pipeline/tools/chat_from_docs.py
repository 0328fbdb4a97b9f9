"""Make a set of conversations from documentation and real signatures, without a hub.

    loopcoder data chat-from-docs OUT.jsonl

Questions and answers come from Perl's and Python's FAQ, the manuals of Linux, git and Node.js
(Debian packages) and the docstrings of installed Python packages; calls of tools from signatures,
command lines and descriptions of services. Each row has its source, its licence and how it was
made. The same packages and seed give the same file.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.cache import default_cache
from data_pipeline.readers.fetch import fetch_debian
from data_pipeline.tasks.progress import Report, silent
from data_pipeline.tools.arguments import Parser
from data_pipeline.tools.chat_set import (
    apis,
    doctests,
    git,
    man,
    node,
    pod,
    programs,
    rst,
    signatures,
)
from data_pipeline.tools.chat_set.dialogues import Toolbox, conversations, in_words
from data_pipeline.tools.chat_set.python_sources import Package, installed
from data_pipeline.tools.chat_set.rows import Row, chosen, generator, table, write
from data_pipeline.tools.chat_set.tool import Tool
from loopcoder.storage.folders import folder_for

MAX_PER_KIND = 1500
_WITH_TOOLS, _TWICE = 8, 10
"""One question of so many is asked where there are tools; one of so many is followed by another."""


@dataclass(frozen=True)
class Manual:
    """Documentation of Debian packages, and what reads a page of it."""

    packages: Sequence[str]
    pages: str
    """Pattern of its files, below the folder of a package."""
    rows: Callable[[str, str, random.Random], Iterator[Row]]
    """Of the text of a page, its source and what draws the phrasing."""


MANUALS = {
    "perl": Manual(
        ["perl-doc"],
        "usr/share/perl/*/pod/perlfaq?.pod",
        lambda text, source, _: pod.faq_rows(text, source),
    ),
    "python-faq": Manual(
        ["python3.11-doc"],
        "usr/share/doc/python3.11/html/_sources/faq/*.rst.txt",
        lambda text, source, _: rst.faq_rows(text, source),
    ),
    "man": Manual(
        ["manpages", "manpages-dev"],
        "usr/share/man/man[123]*/*",
        lambda text, source, _: man.rows_of_page(text, source),
    ),
    "git": Manual(["git-doc"], "usr/share/doc/git-doc/git-*.txt", git.rows_of_page),
    "node": Manual(["nodejs-doc"], "usr/share/doc/nodejs/api/*.md", node.rows_of_page),
}
PARTS = (*MANUALS, "docstrings", "tools")


def chat_rows(
    parts: Collection[str] = PARTS,
    *,
    folder: Path,
    packages: Sequence[str] | None = None,
    max_per_kind: int = MAX_PER_KIND,
    seed: int = 0,
    report: Report = silent,
) -> list[Row]:
    """Return the conversations of a set, balanced by kind and mixed.

    Args:
        parts: Of PARTS.
        folder: Where Debian packages are kept; what is not there is fetched.
        packages: Python packages; None: a list of ours, as far as they are installed.
        max_per_kind: Most rows of each kind.
        seed: Of every draw.
        report: Told what is read.

    Raises:
        InputError: a package is missing, cannot be fetched, or names no known licence.
    """
    told: list[Row] = []
    for part in (part for part in MANUALS if part in parts):
        told += _manual_rows(MANUALS[part], folder, seed, report)
    tools: list[Tool] = []
    needs_python = "docstrings" in parts or "tools" in parts
    for package in installed(packages, report) if needs_python else ():
        report(f"data: reading {package.source}")
        docstrings, found = _of_package(package, parts, seed)
        told += docstrings
        tools += found
    told = chosen(told, max_per_kind, seed)
    told += _followed(told, max_per_kind, seed)
    if "tools" in parts:
        box = Toolbox(tools)
        with_tools = len(told) // _WITH_TOOLS
        for place in range(min(with_tools, max_per_kind)):
            if len(told[place].messages) == 2:
                told[place] = in_words(told[place], box, generator(seed, "words", str(place)))
        # some are made twice
        told += conversations(box, max_per_kind * 5 // 4, seed)
    return chosen(told, max_per_kind, seed)


def _manual_rows(manual: Manual, folder: Path, seed: int, report: Report) -> Iterator[Row]:
    for package in fetch_debian(manual.packages, folder, report):
        report(f"data: reading {package.name} {package.version}")
        for file in sorted((folder / package.folder).glob(manual.pages)):
            source = f"{package.name} {package.version}:{file.name}"
            text = file.read_text(encoding="utf-8", errors="replace")
            yield from manual.rows(text, source, generator(seed, source))


def _of_package(
    package: Package, parts: Collection[str], seed: int
) -> tuple[list[Row], list[Tool]]:
    """Return what the docstrings of a package answer, and its tools."""
    rows: list[Row] = []
    tools: list[Tool] = []
    of = (package.source, package.licence)
    for tree, module in package.modules():
        if "docstrings" in parts:
            rng = generator(seed, package.name, module)
            rows += doctests.rows_of_module(tree, module, *of, rng)
        if "tools" in parts:
            tools += signatures.tools_of_module(tree, module, *of)
            tools += programs.tools_of_module(tree, module, *of)
    for file in package.files if "tools" in parts else ():
        if file.name == apis.DESCRIPTION:
            tools += apis.tools_of_service(package.root / file, *of)
    return rows, tools


def _followed(rows: Iterable[Row], number: int, seed: int) -> Iterator[Row]:
    """Yield questions on one page or one function, one after the other."""
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row.source].append(row)
    several = [found for _, found in sorted(by_source.items()) if len(found) > 1]
    rng = generator(seed, "followed")
    for found in rng.sample(several, min(len(several), number, 1 + len(by_source) // _TWICE)):
        first, second = rng.sample(found, 2)
        made = f"{first.made}; two questions on one page, joined by rule"
        yield replace(
            first, kind="two_questions", messages=(*first.messages, *second.messages), made=made
        )


def main(argv: Sequence[str] | None = None, report: Report = print) -> int:
    """Make the set from the command line; return the exit code."""
    parser = Parser("loopcoder data chat-from-docs", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.jsonl", help="file of the conversations")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=f"of {', '.join(PARTS)}; all if left out")  # fmt: skip
    parser.add_argument("--packages", nargs="+", metavar="NAME",
                        help="installed Python packages, `python` its own library")  # fmt: skip
    parser.add_argument("--reasoning", action="store_true",
                        help="with reasoning made by rule, in reasoning_content")  # fmt: skip
    parser.add_argument("--max-per-kind", type=int, default=MAX_PER_KIND, metavar="N",
                        help=f"most conversations of each kind ({MAX_PER_KIND})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every draw (0)")
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        help="where Debian packages are kept, below packages/")  # fmt: skip
    given = parser.parse_args(argv)
    out, cache = given.out.expanduser(), (given.cache or default_cache()).expanduser()
    with folder_for(out.parent, "OUT"):
        rows = chat_rows(
            given.only, folder=cache / "packages", packages=given.packages,
            max_per_kind=given.max_per_kind, seed=given.seed, report=report,
        )  # fmt: skip
        report(table(write(rows, out, reasoning=given.reasoning)))
    report(str(given.out))
    return 0
