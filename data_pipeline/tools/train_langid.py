"""Train the classifier of programming languages on code whose names tell the language.

    loopcoder data train-langid PATH... --out langid.bin

The result depends on the documents alone, not on their order: every language gives the documents
with the smallest hashes of their content, and one thread trains. Documents that are held out, by
the hash of their content, measure the classifier; copies of a document are all held out or none.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.langid.classifier import (
    FORMAT_VERSION,
    LABEL,
    MIN_CONFIDENCE,
    UNKNOWN,
    LanguageClassifier,
    card_path,
    features,
    import_fasttext,
)
from data_pipeline.readers import open_source
from data_pipeline.schema import Document, Tally
from data_pipeline.tools.arguments import Parser
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError, counted
from loopcoder.storage.files import write_bytes, write_json
from loopcoder.storage.folders import folder_for

PARAMETERS = {
    "dim": 16,
    "wordNgrams": 2,
    "bucket": 200_000,
    "minCount": 5,
    "epoch": 10,
    "lr": 1.0,
    "loss": "softmax",
    "seed": 1,
    # more threads race, and no two results are alike
    "thread": 1,
    "verbose": 0,
    "label": LABEL,
}
"""Parameters of fastText; they give a file of 20 MB."""
MIN_DOCUMENTS = 20
"""A language with fewer documents is left out."""
MAX_DOCUMENTS = 2500
"""Most documents of each language; some 2 kB of each are in memory."""
_HELD_OUT = 10
"""One document in ten measures the classifier."""
_SMALLEST_RATE = 0.01
_PART_BYTES = 1 << 62
# With one thread fastText leaves nine tenths of its matrix as the allocator gave it. A process of
# its own, with an allocator that asks the kernel for every large block, gives zeros.
_TRAIN = """
import json, sys, fasttext
file, model, parameters = sys.argv[1:]
fasttext.train_supervised(file, **json.loads(parameters)).save_model(model)
"""
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_PERTURB_": "0"}


def train_langid(
    documents: Iterable[Document], path: Path, *, max_documents: int = MAX_DOCUMENTS
) -> dict[str, Any]:
    """Train a classifier, write it to `path` and its card beside it, and return the card.

    Args:
        documents: Of both domains; those of unknown language are passed over.
        path: File of the classifier; one that is there is replaced when the new one is complete.
        max_documents: Most documents of each language.

    Raises:
        InputError: fewer than two languages have 20 documents, or fastText is not installed.
    """
    import_fasttext()
    path = path.expanduser()
    chosen = _chosen(documents, max_documents)
    languages = sorted(name for name, found in chosen.items() if len(found) >= MIN_DOCUMENTS)
    if len(languages) < 2:
        raise InputError.of(
            f"{counted(len(languages), 'language')} with at least {MIN_DOCUMENTS} different "
            "documents: " + ", ".join(f"{n} {len(found)}" for n, found in sorted(chosen.items())),
            "a classifier needs examples of at least two languages",
            "name more folders, or --language-field COLUMN for rows",
        )
    # languages mixed, by another hash: the chosen keys of a frequent one are all small
    rows = sorted(
        (xxhash.xxh3_64_intdigest(key.to_bytes(8)), number, text)
        for number, name in enumerate(languages)
        for key, text in chosen[name].items()
    )
    train = [(number, text) for key, number, text in rows if key % _HELD_OUT]
    test = [(number, text) for key, number, text in rows if not key % _HELD_OUT]
    path.parent.mkdir(parents=True, exist_ok=True)
    card_path(path).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".langid-") as work:
        file = Path(work, "train.txt")
        with open(file, "w", encoding="utf-8") as out:
            out.writelines(f"{LABEL}{number} {text}\n" for number, text in train)
        start = time.monotonic()
        rate = _train(file, Path(work, "model.bin"))
        seconds = time.monotonic() - start
        content = Path(work, "model.bin").read_bytes()
    write_bytes(path, content)
    card: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "xxh3_128": xxhash.xxh3_128_hexdigest(content),
        "languages": languages,
        "left_out": {n: len(f) for n, f in sorted(chosen.items()) if n not in languages},
        "parameters": PARAMETERS | {"lr": rate},
        "documents": {"trained": len(train), "held_out": len(test)},
        "seconds": round(seconds, 1),
        "fasttext": version("fasttext-numpy2-wheel"),
    }
    write_json(card_path(path), card)
    card["held_out"] = _measure(LanguageClassifier.load(path), test)
    write_json(card_path(path), card)
    return card


def _chosen(documents: Iterable[Document], limit: int) -> dict[str, dict[int, str]]:
    """Return by language the features of the documents with the smallest hashes, by hash."""
    kept: dict[str, dict[int, str]] = {}
    largest: dict[str, list[int]] = {}
    for document in documents:
        if document.language in ("", UNKNOWN):
            continue
        key = xxhash.xxh3_64_intdigest(document.text.encode(errors="replace"))
        found = kept.setdefault(document.language, {})
        heap = largest.setdefault(document.language, [])
        if key in found or (len(heap) >= limit and key > -heap[0]):
            continue
        text = features(document.text)
        if not text:
            continue
        if len(heap) >= limit:
            del found[-heapq.heapreplace(heap, -key)]
        else:
            heapq.heappush(heap, -key)
        found[key] = text
    return kept


def _train(file: Path, model: Path) -> float:
    """Train in a process of its own; return the learning rate at which it did not diverge."""
    rate = float(PARAMETERS["lr"])  # type: ignore[arg-type]
    environment = os.environ | _ENVIRONMENT
    while True:
        parameters = json.dumps(PARAMETERS | {"lr": rate})
        command = [sys.executable, "-c", _TRAIN, str(file), str(model), parameters]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return rate
        if "NaN" not in done.stderr or rate < _SMALLEST_RATE:
            raise RuntimeError(f"fastText failed ({done.returncode}): {done.stderr[-2000:]}")
        rate /= 2


def _measure(classifier: LanguageClassifier, rows: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """Return the accuracy on held-out documents, in all and by language, and the confusions."""
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    unsure = 0
    confused: Counter[tuple[str, str]] = Counter()
    start = time.process_time()
    for number, text in rows:
        wanted = classifier.languages[number]
        found, confidence = classifier.predict_features(text)
        total[wanted] += 1
        if confidence < MIN_CONFIDENCE:
            unsure += 1
        elif found == wanted:
            right[wanted] += 1
        else:
            confused[wanted, found] += 1
    seconds = time.process_time() - start
    sure = max(len(rows) - unsure, 1)
    return {
        "accuracy": sum(right.values()) / max(len(rows), 1),
        "accuracy_of_labelled": sum(right.values()) / sure,
        "unknown": unsure / max(len(rows), 1),
        "documents_per_cpu_s": len(rows) / max(seconds, 1e-9),
        "languages": {n: {"documents": total[n], "right": right[n]} for n in sorted(total)},
        "confused": [[a, b, n] for (a, b), n in confused.most_common(20)],
    }


def table(card: dict[str, Any]) -> str:
    """Return the card's figures for people."""
    held_out = card["held_out"]
    rows = sorted(held_out["languages"].items(), key=lambda kv: -kv[1]["documents"])
    width = max(len(name) for name, _ in rows)
    lines = [
        f"trained on {counted(card['documents']['trained'], 'document')} of "
        f"{counted(len(card['languages']), 'language')} in {card['seconds']:.0f} s; "
        f"of {card['documents']['held_out']:,} held out {held_out['accuracy']:.1%} are "
        f"labelled rightly, {held_out['unknown']:.1%} not at all",
        *(f"{name:<{width}}  {n['right']:>5} of {n['documents']}" for name, n in rows),
        "most confused: " + ", ".join(f"{a} as {b} {n}" for a, b, n in held_out["confused"][:8]),
    ]
    return "\n".join(lines)


def documents_of(
    paths: Sequence[str], text_field: str, language_field: str | None
) -> Iterator[Document]:
    """Yield the documents under some paths, files and rows alike."""
    config = SourceConfig(
        kind="files",
        path=list(paths),
        text_field=text_field,
        language_field=language_field,
        invalid_utf8="replace",
    )
    for part in open_source(config, 0).parts(_PART_BYTES):
        yield from part.documents(Tally("read"))


def add_paths(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name documents."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders, files or patterns")
    parser.add_argument(
        "--text-field", default="text", metavar="COLUMN", help="of the text, for rows"
    )
    parser.add_argument("--language-field", metavar="COLUMN", help="of the language, for rows")


def main(argv: Sequence[str] | None = None, report: Callable[[str], object] = print) -> int:
    """Train from the command line; return the exit code."""
    parser = Parser("loopcoder data train-langid", description=__doc__.split("\n")[0])
    add_paths(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="file of the classifier"
    )
    parser.add_argument(
        "--max-documents",
        type=int,
        default=MAX_DOCUMENTS,
        metavar="N",
        help="most documents of each language",
    )
    arguments = parser.parse_args(argv)
    documents = documents_of(arguments.paths, arguments.text_field, arguments.language_field)
    # that nothing can be written there is said before the documents are read
    with folder_for(arguments.out.expanduser().parent, "--out"):
        card = train_langid(documents, arguments.out, max_documents=arguments.max_documents)
    report(table(card))
    report(f"{arguments.out}  {card['xxh3_128']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
