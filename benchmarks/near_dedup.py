"""Deduplication: signing of real text and code, datatrove's block beside it, memory by size.

    python benchmarks/near_dedup.py                         # everything, about two minutes
    python benchmarks/near_dedup.py --megabytes 10 --sizes 50000

Text is /usr/share/doc and code the Python standard library of this machine, each read until the
limit. CPU-seconds are those of the process with all its threads. `datatrove` is its
MinhashDedupSignature with a tokenizer that finds runs of letters and digits, as its own needs spaCy
or NLTK; it signs the first megabytes of the same documents. The table of sizes is of synthetic
prose of 60 words per document, a twentieth of it near copies, in chunks of 100,000; every stage is
a process of its own, and its memory the peak of resident pages less that of a process that has only
imported the package.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup import phases
from data_pipeline.dedup.exact import normalise
from data_pipeline.dedup.minhash import num_hashes, shingles
from data_pipeline.dedup.pairs import Sketches, join, roots_of
from data_pipeline.dedup.phases import REASONS, SKETCH, has_sketches, record_files
from data_pipeline.schema import Document
from loopcoder.config.build import NearDedupConfig

CONFIG = NearDedupConfig()
CHUNK = 100_000
STAGES = ("nothing", "sign", "match", "cluster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=60, help="limit of each domain")
    parser.add_argument("--datatrove-megabytes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 400_000, 1_000_000])
    parser.add_argument("--stage", nargs=3, help="internal: stage, documents, folder")
    arguments = parser.parse_args()
    if arguments.stage:
        stage, size, folder = arguments.stage
        print(json.dumps(run_stage(stage, int(size), Path(folder))))
        return
    for domain in ("text", "code"):
        documents = list(read(domain, arguments.megabytes * 10**6))
        print_speed(domain, documents, arguments)
        print_precision(documents)
    if arguments.sizes:
        print(f"\n{'documents':>10}  {'stage':8}  {'CPU s':>7}  {'documents/s':>11}  {'MB':>6}")
    for size in arguments.sizes:
        print_sizes(size)


def read(domain: str, limit: int) -> Iterator[Document]:
    """Yield real documents of 100 bytes to 8 MB until `limit` bytes."""
    if domain == "code":
        paths: Iterator[Path] = Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")
    else:
        paths = Path("/usr/share/doc").rglob("*")
    for path in sorted(p for p in paths if p.is_file() and not p.is_symlink()):
        data = path.read_bytes()
        if not 100 < len(data) < 8 << 20:
            continue
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        limit -= len(data)
        if limit < 0:
            return
        yield Document(str(path), text, domain, "plain", "machine", str(path))


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def megabytes(documents: list[Document]) -> float:
    return sum(len(d.text.encode()) for d in documents) / 1e6


def sign(documents: Iterable[Document], chunk: int, folder: Path, config: NearDedupConfig) -> int:
    """Write the records of a chunk; return its number of documents."""
    out = folder / "sign" / f"{chunk:05d}"
    out.mkdir(parents=True)
    return phases.sign(documents, chunk, out, config)[0]


def match(folder: Path, config: NearDedupConfig) -> int:
    """Write the pairs of all bands; return their number."""
    (folder / "match").mkdir()
    chunks = sorted((folder / "sign").iterdir())
    names = record_files(config)
    pairs = 0
    for name in names:
        exact = name == names[-1]
        sketches = None
        if has_sketches(config) and not exact:
            paths = [chunk / SKETCH for chunk in chunks]
            sketches = Sketches(paths, num_hashes(config), config.verify or 0)
        records = [chunk / name for chunk in chunks]
        pairs += phases.match(records, folder / "match" / name, exact=exact, sketches=sketches)
    return pairs


def cluster(folder: Path, sizes: Sequence[int], config: NearDedupConfig) -> NDArray[np.uint8]:
    """Return what is decided about every document, see REASONS."""
    *near, exact = [folder / "match" / name for name in record_files(config)]
    return np.concatenate([f.reasons for f in phases.cluster(near, exact, sizes, folder)])


def print_speed(domain: str, documents: list[Document], arguments: argparse.Namespace) -> None:
    size = megabytes(documents)
    print(f"{domain}: {len(documents)} documents, {size:.1f} MB")

    def stages() -> tuple[float, NDArray[np.uint8]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            signing = cpu_seconds(lambda: sign(documents, 0, folder, CONFIG))
            match(folder, CONFIG)
            return signing, cluster(folder, [len(documents)], CONFIG)

    results = [stages() for _ in range(arguments.rounds)]
    rates = sorted(size / signing for signing, _ in results)
    middle = rates[len(rates) // 2]
    print(f"  sign      {middle:7.1f} MB/cpu-s  ({rates[0]:.1f} to {rates[-1]:.1f})")
    drops = {name: int((results[0][1] == code).sum()) for code, name in enumerate(REASONS) if name}
    exact = cpu_seconds(lambda: [normalise(d.text.encode()) for d in documents])
    print(f"  of which normalising {exact / size * middle:.0%}; drops {drops}")
    some: list[Document] = []
    for document in documents:
        if megabytes(some) >= arguments.datatrove_megabytes:
            break
        some.append(document)
    theirs = datatrove(some)
    print(f"  datatrove {megabytes(some) / theirs:7.2f} MB/cpu-s on {megabytes(some):.1f} MB")


def print_precision(documents: list[Document]) -> None:
    """Compare, for several `verify`, what is dropped with the exact similarity to what stays."""
    print("  verify  near copies dropped  J < 0.7  J < 0.6  found pairs of J >= 0.8 lost")
    sets = [
        np.unique(shingles([d.text.encode()], code=d.domain == "code", length=5)[0])
        for d in documents
    ]

    def similarity(a: int, b: int) -> float:
        common = len(np.intersect1d(sets[a], sets[b], assume_unique=True))
        return common / (len(sets[a]) + len(sets[b]) - common)

    alike: set[tuple[int, int]] = set()
    for verify in (None, 0.7, 0.75, 0.8):
        config = dataclasses.replace(CONFIG, verify=verify)
        parents = np.arange(len(documents))
        edges = []
        with tempfile.TemporaryDirectory() as name:
            sign(documents, 0, Path(name), config)
            match(Path(name), config)
            reasons = cluster(Path(name), [len(documents)], config)
            for path in Path(name).glob("match/*.bin"):
                edges.append(np.fromfile(path, np.int64).reshape(-1, 2))
                join(parents, edges[-1][:, 0], edges[-1][:, 1])
        roots = roots_of(parents, np.arange(len(documents)))
        dropped = np.flatnonzero(reasons == REASONS.index("near_duplicate"))
        kept = np.array([similarity(i, roots[i]) for i in dropped] or [1.0])
        pairs = {(a, b) for a, b in np.concatenate(edges).tolist() if reasons[b] != 1}
        if verify is None:
            alike = {pair for pair in pairs if similarity(*pair) >= 0.8}
        lost = f"{len(alike - pairs)} of {len(alike)}"
        shares = f"{(kept < 0.7).mean():7.1%}  {(kept < 0.6).mean():7.1%}"
        print(f"  {verify or 'none':>6}  {len(dropped):19}  {shares}  {lost:>30}")


def datatrove(documents: list[Document]) -> float:
    """Return the CPU-seconds of datatrove's signatures of the same shape."""
    from datatrove.data import Document as TheirDocument
    from datatrove.pipeline.dedup import minhash

    class Words:
        def word_tokenize(self, text: str) -> list[str]:
            return re.findall(r"\w+", text)

    logging.disable(logging.INFO)
    minhash.logger.remove()
    minhash.load_word_tokenizer = lambda _: Words()
    config = minhash.MinhashConfig(num_buckets=CONFIG.bands, hashes_per_bucket=CONFIG.rows)
    theirs = [TheirDocument(text=d.text, id=d.id) for d in documents]
    with tempfile.TemporaryDirectory() as folder:
        block = minhash.MinhashDedupSignature(folder, config=config)
        return cpu_seconds(lambda: block.run(iter(theirs)))


def synthetic(chunk: int, count: int) -> Iterator[Document]:
    """Yield prose; every twentieth document is that ten before it with another last word."""
    vocabulary = [f"{random.Random(i).getrandbits(32):x}"[:7] for i in range(20_000)]
    for row in range(count):
        near = row % 20 == 10
        words = random.Random(chunk * CHUNK + row - 10 * near).choices(vocabulary, k=60)
        if near:
            words[-1] = "other"
        yield Document(f"{chunk}-{row}", " ".join(words), "text", "plain", "synthetic", "")


def run_stage(stage: str, size: int, folder: Path) -> dict[str, Any]:
    sizes = [min(CHUNK, size - start) for start in range(0, size, CHUNK)]
    making = 0.0
    if stage == "sign":
        making = cpu_seconds(lambda: [None for count in sizes for _ in synthetic(0, count)])
    edges = drops = 0
    start = time.process_time()
    if stage == "sign":
        for chunk, count in enumerate(sizes):
            sign(synthetic(chunk, count), chunk, folder, CONFIG)
    elif stage == "match":
        edges = match(folder, CONFIG)
    elif stage == "cluster":
        drops = int((cluster(folder, sizes, CONFIG) > 0).sum())
    spent = time.process_time() - start - making
    # ru_maxrss would be that of the parent too
    status = Path("/proc/self/status").read_text()
    return {
        "cpu_s": spent,
        "rss": int(status.split("VmHWM:")[1].split()[0]) * 1024,
        "edges": edges,
        "drops": drops,
    }


def print_sizes(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, str(size), folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found[stage] = json.loads(done.stdout)
        used = {
            name: sum(p.stat().st_size for p in (Path(folder) / name).rglob("*.bin")) / size
            for name in ("sign", "match")
        }
    for stage in STAGES[1:]:
        row = found[stage]
        memory = (row["rss"] - found["nothing"]["rss"]) / 1e6
        rate = size / row["cpu_s"]
        print(f"{size:10,}  {stage:8}  {row['cpu_s']:7.2f}  {rate:11,.0f}  {memory:6.0f}")
    shares = ", ".join(f"{name} {value:.1f}" for name, value in used.items())
    print(f"{'':12}bytes per document on disk: {shares}")
    print(f"{'':12}{found['match']['edges']:,} pairs, {found['cluster']['drops']:,} dropped")


if __name__ == "__main__":
    main()
