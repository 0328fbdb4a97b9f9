"""The cost of the cleaning filters and their drops, on text and code that this machine has.

    python benchmarks/filters.py [--text FOLDER...] [--code FOLDER...] [--max-mb 60]

Each group of rules runs alone over all documents in memory, after a run that warms it up; the time
is CPU time of one process. "all" is the whole stage with the default rules.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import sysconfig
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_pipeline.filters import FilterConfig, clean
from data_pipeline.langid.names import identify
from data_pipeline.schema import Document, Tally

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "text": {
        "words and symbols": (
            *("min_words", "min_mean_word_length", "max_mean_word_length"),
            *("max_symbols_per_word", "min_alphabetic_words", "min_stop_words", "max_spaceless"),
        ),
        "bullets and ellipses": ("max_bullet_lines", "max_ellipsis_lines"),
        "duplicate lines and paragraphs": (
            *("max_duplicate_lines", "max_duplicate_line_chars"),
            *("max_duplicate_paragraphs", "max_duplicate_paragraph_chars"),
        ),
        "n-grams": ("max_top_ngram", "max_duplicate_ngrams"),
        "web remains, other formats": (
            *("drop_lorem_ipsum", "remove_javascript_notices", "drop_other_formats"),
        ),
    },
    "code": {
        "names": ("drop_lock_files", "drop_vendored"),
        "generated: head": ("drop_generated",),
        "generated: linguist": ("linguist_generated",),
        "lines": (
            *("max_line_length", "max_mean_line_length", "max_markup_line_length"),
            *("max_data_lines", "drop_minified", "min_blanks"),
        ),
        "letters and digits": ("min_alphanumeric", "min_data_alphabetic"),
        "encoded data": ("max_encoded", "max_encoded_run"),
        "visible HTML": (
            *("min_visible_text", "min_visible_chars", "min_prose_chars", "min_prose"),
        ),
    },
}
SCRUBBING = {
    "e-mail addresses": ("scrub_emails",),
    "IP addresses": ("scrub_ips",),
    "secrets": ("scrub_secrets",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", nargs="*", default=["/usr/share/doc", "/usr/share/man"])
    parser.add_argument("--code", nargs="*", default=[sysconfig.get_path("stdlib")])
    parser.add_argument("--max-mb", type=float, default=60.0, help="most of each domain")
    parser.add_argument("--languages", action="store_true", help="also drops by language")
    arguments = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {cpu()}\n")
    costs: list[str] = []
    drops: list[str] = []
    for domain, folders in (("text", arguments.text), ("code", arguments.code)):
        documents = list(read(folders, domain, arguments.max_mb * 1e6))
        size = sum(len(d.text.encode(errors="replace")) for d in documents)
        where = f"{domain}, {len(documents)} documents, {size / 1e6:.1f} MB"
        for name, names in ({"nothing but splitting": ()} | GROUPS[domain] | SCRUBBING).items():
            seconds, _ = timed(documents, only(names))
            costs.append(f"| {domain} | {name} | {size / 1e6 / max(seconds, 1e-9):.0f} |")
        seconds, tally = timed(documents, FilterConfig())
        costs.append(f"| {domain} | **all** | **{size / 1e6 / max(seconds, 1e-9):.0f}** |")
        drops.append(f"| {where} | kept | {tally.rows_out / max(tally.rows_in, 1):.2%} |")
        drops += [
            f"| {domain} | {reason} | {number / tally.rows_in:.2%} |"
            for reason, number in tally.drops.most_common()
        ]
        drops += [f"| {domain} | *{note}* | {n} |" for note, n in sorted(tally.notes.items())]
        if arguments.languages:
            for language, counts in sorted(by_language(documents).items()):
                drops.append(f"| {domain} | {language} | {dict(counts.most_common())} |")
    print("| domain | rules | MB/cpu-s |\n| --- | --- | --- |", *costs, sep="\n")
    print(
        "\n| domain | reason or *repair* | share or number |\n| --- | --- | --- |", *drops, sep="\n"
    )


def cpu() -> str:
    """Return the model of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "CPU")


def only(names: tuple[str, ...]) -> FilterConfig:
    """Return rules with everything off except the named ones."""
    off: dict[str, Any] = {}
    for field in fields(FilterConfig):
        if str(field.type).startswith("bool"):
            off[field.name] = field.name == "enabled"
        elif "None" in str(field.type):
            off[field.name] = None
    default = FilterConfig()
    return FilterConfig(**(off | {name: getattr(default, name) for name in names}))


def timed(documents: list[Document], rules: FilterConfig) -> tuple[float, Tally]:
    """Return CPU seconds of the second of two runs, and its tally."""
    for _ in range(2):
        tally = Tally("clean")
        start = time.process_time()
        for _ in clean(documents, rules, tally):
            pass
        seconds = time.process_time() - start
    tally.check()
    return seconds, tally


def by_language(documents: list[Document]) -> dict[str, Counter[str]]:
    """Return drops by language and reason."""
    found: dict[str, Counter[str]] = {}
    for document in documents:
        tally = Tally("clean")
        list(clean([document], FilterConfig(), tally))
        found.setdefault(document.language, Counter()).update(tally.drops or {"kept": 1})
    return found


def read(folders: list[str], domain: str, limit: float) -> Iterator[Document]:
    """Yield the documents of one domain below `folders`, up to `limit` bytes."""
    size = 0.0
    for folder in folders:
        for path in sorted(walk(folder), key=lambda p: zlib.crc32(str(p).encode(errors="replace"))):
            document = load(path, folder, domain)
            if document is not None:
                size += len(document.text)
                if size > limit:
                    return
                yield document


def walk(folder: str) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in ("__pycache__", "site-packages")]
        yield from (Path(parent, name) for name in names)


def load(path: Path, folder: str, domain: str) -> Document | None:
    is_manual = "/man/" in str(path)
    name = path.name.removesuffix(".gz")
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > 4_000_000:
            return None
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error):
        return None
    found = ("Roff", "text") if is_manual else identify(name, data[:4096])
    if found is None or found[1] != domain or not text.strip():
        return None
    key = str(path.relative_to(folder))
    return Document(key, text, domain, found[0], "benchmark", key)


if __name__ == "__main__":
    main()
