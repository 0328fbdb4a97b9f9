"""How well the classifier of languages labels projects that it has never seen, and how fast.

    python benchmarks/langid.py FOLDER... [--folds 4] [--runs 2]

Every folder below a FOLDER is a project. A fold of the projects is held out whole; a classifier is
trained on the others and labels those files of the held-out ones whose language at least three
other projects have. Then the last classifier labels all files, for its rate per CPU-second of one
process.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import xxhash

from data_pipeline.langid.classifier import MIN_CONFIDENCE, UNKNOWN, LanguageClassifier, label
from data_pipeline.schema import Document
from data_pipeline.tools.train_langid import documents_of, train_langid
from loopcoder.errors import InputError

MAX_DOCUMENTS = 2500
MAX_CHARS = 20_000
MIN_PROJECTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=2, help="folds that are tried")
    arguments = parser.parse_args()
    found = list(sample(arguments.folders))
    print(f"{len(found):,} files of {len({p for p, _ in found})} projects\n")
    print("| fold | files | rightly | wrongly | not at all |\n| --- | --- | --- | --- | --- |")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        for fold in range(arguments.runs):
            path = Path(work, f"{fold}.bin")
            counts = held_out(found, fold, arguments.folds, path)
            total += counts
            show(str(fold), counts)
        show("all", total)
        loaded = LanguageClassifier.load(path)
        nameless = [Document(d.id, d.text, "code", UNKNOWN, "", "") for _, d in found]
        start = time.process_time()
        for document in nameless:
            label(document, loaded, MIN_CONFIDENCE)
        seconds = time.process_time() - start
    size = sum(len(d.text) for d in nameless) / 1e6
    print(f"\n{len(nameless) / seconds:,.0f} documents, {size / seconds:.0f} MB per CPU-second")


def sample(folders: list[Path]) -> Iterator[tuple[str, Document]]:
    """Yield (project, document): of each language those with the smallest hashes."""
    heaps: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for project in sorted(p for folder in folders for p in folder.iterdir() if p.is_dir()):
        try:
            for document in documents_of([str(project)], "text", None):
                middle = document.text[len(document.text) // 2 :]
                text = document.text
                if len(text) > MAX_CHARS:
                    text = text[: MAX_CHARS // 2] + middle[: MAX_CHARS // 2]
                key = -xxhash.xxh3_64_intdigest(text.encode(errors="replace"))
                heap = heaps[document.language]
                if len(heap) < MAX_DOCUMENTS:
                    heapq.heappush(heap, (key, project.name, text))
                elif key > heap[0][0]:
                    heapq.heapreplace(heap, (key, project.name, text))
        except InputError:  # nothing usable in it
            continue
    for language, heap in heaps.items():
        for key, project, text in sorted(heap):
            yield project, Document(str(key), text, "code", language, "", "")


def held_out(found: list[tuple[str, Document]], fold: int, folds: int, path: Path) -> Counter[str]:
    def is_out(project: str) -> bool:
        return xxhash.xxh3_64_intdigest(project.encode()) % folds == fold

    train_langid((d for p, d in found if not is_out(p)), path)
    classifier = LanguageClassifier.load(path)
    projects: dict[str, set[str]] = defaultdict(set)
    for project, document in found:
        if not is_out(project):
            projects[document.language].add(project)
    counts: Counter[str] = Counter()
    for project, document in found:
        if is_out(project) and len(projects[document.language]) >= MIN_PROJECTS:
            language, confidence = classifier.predict(document.text)
            right = "rightly" if language == document.language else "wrongly"
            counts[right if confidence >= MIN_CONFIDENCE else "not at all"] += 1
    return counts


def show(name: str, counts: Counter[str]) -> None:
    whole = counts.total() or 1
    shares = (f"{counts[verdict] / whole:.1%}" for verdict in ("rightly", "wrongly", "not at all"))
    print(f"| {name} | {counts.total():,} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
