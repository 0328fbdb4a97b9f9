"""Reading a corpus: how fast a loader alone is, and what opening 18T tokens takes.

    python benchmarks/loader.py rate [--reader packed megatron] [--seq-length 8192]
    python benchmarks/loader.py open [--shards 2250] [--tokens-per-shard 8e9]
    python benchmarks/loader.py gptdataset [--documents 1e8]

`rate` builds batches in one thread, from the page cache, of a corpus of random documents. `open`
makes a corpus of sparse files with a manifest and digests as the pipeline writes them, opens it as
rank 0 and any other rank do, and reads the first batch: seconds, and the memory that it adds; then
it starts `loopcoder train` on it. `gptdataset` opens megatron-core's GPTDataset with prebuilt
caches over an index of so many documents, and extrapolates to the 18e9 of such a corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import xxhash
from loss_compare import REPOSITORY

from loopcoder.config.compose import compose
from loopcoder.config.schema import Config
from loopcoder.data.blend import Blend, reader_of
from loopcoder.data.blocks import BLOCK_BYTES
from loopcoder.data.corpus import Corpus, Verify, load_corpus
from loopcoder.data.indexed import BLOCKS, IndexedWriter
from loopcoder.data.labels import LABELS, LabelWriter, label_bytes
from loopcoder.data.loader import step_data
from loopcoder.data.sampler import Position
from loopcoder.storage.files import synced_entry

VOCABULARY, EOD = 76_800, 3
WEIGHTS = {"text": 1, "code": 1}
LABELS_EACH = 100
"""Labels of a domain."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    rate = verbs.add_parser("rate")
    rate.add_argument("--reader", nargs="+", default=["packed", "megatron"])
    rate.add_argument("--seq-length", type=int, default=8192)
    rate.add_argument("--tokens", type=float, default=2e8, help="of each domain")
    rate.add_argument("--sequences", type=int, default=20_000)
    opened = verbs.add_parser("open")
    opened.add_argument("--shards", type=int, default=2250)
    opened.add_argument("--tokens-per-shard", type=float, default=8e9)
    opened.add_argument("--keep", type=Path, help="make the corpus there and leave it")
    opened.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    stock = verbs.add_parser("gptdataset")
    stock.add_argument("--documents", type=float, default=1e8)
    stock.add_argument("--seq-length", type=int, default=8192)
    stock.add_argument("--opened", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        if arguments.verb == "rate":
            return _rate(arguments, Path(folder))
        if arguments.verb == "gptdataset":
            return _gptdataset(arguments, Path(folder))
        if arguments.rank:
            return _as_rank(arguments.rank)
        return _open(arguments, arguments.keep or Path(folder))


def _config(path: Path, reader: Any, seq_length: int) -> Config:
    config = compose(["data=corpus", f"path={path}", "model=plt_tiny"])
    data = replace(config.data, reader=reader, seq_length=seq_length)
    return replace(
        config, data=data, train=replace(config.train, global_batch_size=256, micro_batch_size=8)
    )


def _step(config: Config, corpus: Corpus, position: Position, blend: Blend) -> Position:
    def source(_position: Position) -> Blend:
        return blend

    return step_data(config, corpus, position, 0, 1, source).after


# How fast


def _rate(arguments: argparse.Namespace, folder: Path) -> int:
    rng = np.random.default_rng(0)
    for domain in WEIGHTS:
        for split, tokens in (("train", int(arguments.tokens)), ("val", 10_000)):
            _random_documents(folder / split / domain, tokens, rng, domain)
    _write_manifest(folder, {domain: [f"train/{domain}"] for domain in WEIGHTS})
    for reader in arguments.reader:
        config = _config(folder, reader, arguments.seq_length)
        corpus = load_corpus(folder, "size")
        blend = Blend(corpus, config.stages[0], 0, 1, reader_of(config.data))
        blend.rows(np.arange(256))
        position, seconds, cpu = Position(), -time.perf_counter(), -time.process_time()
        while position.samples < arguments.sequences:
            position = _step(config, corpus, position, blend)
        seconds, cpu = seconds + time.perf_counter(), cpu + time.process_time()
        print(
            f"{reader}: {position.samples / seconds:,.0f} sequences of {arguments.seq_length} per "
            f"second, {position.samples / cpu:,.0f} per second of CPU"
        )
    return 0


def _labels() -> list[tuple[str, str, str]]:
    return [(domain, f"language{i}", "0-files") for domain in WEIGHTS for i in range(LABELS_EACH)]


def _random_documents(prefix: Path, tokens: int, rng: np.random.Generator, domain: str) -> None:
    prefix.parent.mkdir(exist_ok=True)
    writer, labels = IndexedWriter(prefix, VOCABULARY), LabelWriter(len(_labels()))
    first = list(WEIGHTS).index(domain) * LABELS_EACH
    for start in range(0, tokens, 1 << 22):
        size = min(1 << 22, tokens - start)
        ends = np.unique(np.append(rng.integers(1, size, size // 1000), size))
        ids = rng.integers(EOD + 1, VOCABULARY, size).astype(np.int32)
        ids[ends - 1] = EOD
        writer.append(ids, np.diff(ends, prepend=0))
        of_document = rng.integers(first, first + LABELS_EACH, len(ends))
        labels.append(np.diff(ends, prepend=0), of_document)
    writer.finish()
    labels.finish(prefix.with_name(prefix.name + LABELS))


# What opening takes


def _open(arguments: argparse.Namespace, folder: Path) -> int:
    tokens = int(arguments.tokens_per_shard)
    prefixes = {
        domain: [f"train/{domain}-{i:05}" for i in range(arguments.shards // len(WEIGHTS))]
        for domain in WEIGHTS
    }
    _sparse_shards(folder / "train", [p for each in prefixes.values() for p in each], tokens)
    for domain in WEIGHTS:
        _random_documents(folder / "val" / domain, 10_000, np.random.default_rng(0), domain)
    _write_manifest(folder, prefixes, sparse_shards=True)
    total = tokens * arguments.shards
    print(f"{total / 1e12:.1f}T tokens in {arguments.shards} shards, {total * 4 / 1e12:.0f} TB")
    command = [sys.executable, __file__, "open", "--rank", str(folder)]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    _start(folder)
    return 0


def _start(folder: Path) -> None:
    """Train two steps by the command line, and say when the first of them was done."""
    with tempfile.TemporaryDirectory(prefix="run-") as run:
        overrides = [
            *("data=corpus", f"path={folder}", "data.reader=shuffled", "model=plt_tiny"),
            *("train.max_steps=2", "logging.interval=1", "logging.plots=false", f"run_dir={run}"),
            *("eval.at_end=false", "checkpoint.save_at_end=false", "parallel.nproc_per_node=1"),
            *("train.global_batch_size=2", "train.micro_batch_size=1", "logging.wandb=off"),
        ]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "loopcoder", "train", *overrides]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = iter(process.stdout.readline, "")
        seconds = next(time.perf_counter() - begin for line in said if line.startswith("step 1/"))
        process.stdout.read()
        assert process.wait() == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        load = os.getloadavg()[0]
        print(
            f"loopcoder train: the first step is done {seconds:.1f} s after the command; "
            f"{cpu:.1f} s of CPU until its end, load average {load:.1f}"
        )


def _sparse_shards(folder: Path, prefixes: list[str], tokens: int) -> None:
    folder.mkdir(parents=True)
    whole = xxhash.xxh3_128(bytes(BLOCK_BYTES)).digest()
    blocks, rest = divmod(tokens * 4, BLOCK_BYTES)
    digests = whole * blocks + (xxhash.xxh3_128(bytes(rest)).digest() if rest else b"")
    sizes = (
        (".bin", tokens * 4),
        (".idx", 34 + tokens // 1000 * 20 + 8),
        (LABELS, label_bytes(tokens // 1000, tokens, len(_labels()))),
    )
    for prefix in prefixes:
        path = folder.parent / prefix
        for suffix, size in sizes:
            with open(f"{path}{suffix}", "wb") as file:
                file.truncate(size)
        Path(f"{path}{BLOCKS}").write_bytes(digests)


def _write_manifest(
    folder: Path, prefixes: dict[str, list[str]], *, sparse_shards: bool = False
) -> None:
    """Write the manifest, with hashes of all that is not sparse."""
    (folder / "tokenizer.json").write_bytes(b"{}")
    np.save(folder / "token_bytes.npy", np.ones(VOCABULARY, dtype=np.int64))
    domains: dict[str, Any] = {}
    for domain, names in prefixes.items():
        domains[domain] = {
            "train": _split(folder, names, domain),
            "val": _split(folder, [f"val/{domain}"], domain),
        }
    files: dict[str, Any] = {}
    empty: dict[int, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sparse = sparse_shards and path.parent.name == "train" and path.suffix != BLOCKS
        size = path.stat().st_size
        digest = ""
        if sparse and path.suffix == LABELS:  # compared before it is used
            digest = empty.setdefault(size, xxhash.xxh3_128_hexdigest(bytes(size)))
        known = {"bytes": size, "xxh3_128": digest} if sparse else synced_entry(path)
        files[str(path.relative_to(folder))] = known
    tokenizer = {"xxh3_128": files["tokenizer.json"]["xxh3_128"]}
    manifest = {
        "format_version": 2,
        "fingerprint": "0" * 16,
        "tokenizer": tokenizer | {"vocab_size": VOCABULARY, "eod_id": EOD},
        "labels": _labels(),
        "domains": domains,
        "unigram_entropy": dict.fromkeys(WEIGHTS, 10.0),
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _split(folder: Path, prefixes: list[str], domain: str) -> dict[str, Any]:
    tokens = [(folder / f"{prefix}.bin").stat().st_size // 4 for prefix in prefixes]
    documents = [
        _documents(folder / f"{prefix}.idx") or size // 1000
        for prefix, size in zip(prefixes, tokens, strict=True)
    ]
    shards = [
        {"prefix": prefix, "documents": count, "tokens": size}
        for prefix, count, size in zip(prefixes, documents, tokens, strict=True)
    ]
    sums = {"documents": sum(documents), "tokens": sum(tokens)}
    label = list(WEIGHTS).index(domain) * LABELS_EACH
    return {**sums, "languages": {}, "labels": [{"label": label, **sums}], "shards": shards}


def _documents(index: Path) -> int:
    """Return the entries of an index by its head; 0 of a sparse one."""
    with index.open("rb") as file:
        return int.from_bytes(file.read(26)[18:], "little")


def _as_rank(folder: Path) -> int:
    levels: list[tuple[Verify, str]] = [("size", "any rank"), ("small", "rank 0")]
    for verify, who in levels:
        config = _config(folder, "packed", 8192)
        with _measured(f"{who}: opened (verify {verify})"):
            corpus = load_corpus(folder, verify)
        with _measured(f"{who}: first batch of {config.train.global_batch_size}"):
            blend = Blend(corpus, config.stages[0], 0, 1, reader_of(config.data))
            _step(config, corpus, Position(), blend)
    return 0


# What GPTDataset takes


def _gptdataset(arguments: argparse.Namespace, folder: Path) -> int:
    """Time GPTDataset with prebuilt caches; a process of its own opens them."""
    documents, folder = int(arguments.documents), arguments.opened or folder
    if arguments.opened is None:
        _sparse_index(folder / "shard", documents)
        command = [sys.executable, __file__, "gptdataset", f"--documents={documents}"]
        command += [f"--seq-length={arguments.seq_length}", f"--opened={folder}"]
        for _ in range(2):  # the first builds the caches
            subprocess.run(command, check=True, cwd=REPOSITORY)
        return 0
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    prefix, caches = str(folder / "shard"), folder / "caches"
    built = caches.is_dir()
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=arguments.seq_length,
        blend=([prefix], [1.0]),
        split="1,0,0",
        path_to_cache=str(caches),
        tokenizer=SimpleNamespace(eod=EOD, vocab_size=None, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    before, begin = _resident(), time.perf_counter()
    low = GPTDataset.build_low_level_dataset(prefix, config)
    indices = np.arange(GPTDataset.numel_low_level_dataset(low), dtype=np.int32)
    dataset = GPTDataset(low, prefix, indices, None, Split.train, config)
    for index in range(256):
        dataset[index]
    seconds, added = time.perf_counter() - begin, _resident() - before
    times = 18e9 / documents
    print(
        f"GPTDataset, {documents:,} documents, .idx of {documents * 20 / 1e9:.1f} GB, caches "
        f"{'prebuilt' if built else 'built now'}: first batch of 256 in {seconds:.1f} s, "
        f"{added / 1e6:,.0f} MB more; extrapolated to 18e9 documents (18T tokens): "
        f"{seconds * times:,.0f} s, {added * times / 1e9:,.0f} GB",
        flush=True,
    )
    return 0


def _sparse_index(prefix: Path, documents: int, tokens: int = 1000) -> None:
    """Write a `.bin/.idx` of so many documents of so many tokens; the `.bin` is sparse."""
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(documents * tokens * 4)
    with open(f"{prefix}.idx", "wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, documents, documents + 1))
        for array in (
            lambda at: np.full(len(at), tokens, dtype=np.int32),
            lambda at: at * tokens * 4,
            lambda at: at,
        ):
            for start in range(0, documents, 1 << 22):
                at = np.arange(start, min(start + (1 << 22), documents), dtype=np.int64)
                file.write(array(at).tobytes())
        file.write(np.int64(documents).tobytes())


@contextmanager
def _measured(what: str) -> Iterator[None]:
    before, start = _resident(), time.perf_counter()
    yield
    seconds, added = time.perf_counter() - start, _resident() - before
    print(f"{what} in {seconds:.2f} s, {added / 1e6:.0f} MB more", flush=True)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    sys.exit(main())
