"""MB of text per CPU-second from documents to `.bin/.idx`, by three ways in one run.

    python benchmarks/tokenise.py --megabytes 40

The documents are source files and prose of this machine, each once. A tokenizer is trained on other
files of the same folders. Every way runs in a process of its own, on one thread, with the documents
in memory, and writes files that must be equal to the byte. Only the work on documents is counted;
start-up has a column of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
CODE = (".py", ".pyx", ".c", ".h", ".cpp", ".cc", ".hpp", ".cu", ".cuh", ".js", ".ts", ".go", ".rs")
TEXT = (".txt", ".rst", ".md", ".tex", ".pod", "METADATA", "README", "NEWS")
LARGEST = 1 << 20
BATCH = 1 << 20
TRAIN_MB = 12
WAYS = {
    "fast": "this repository, fastokens",
    "reference": "this repository, HF tokenizers",
    "megatron": "megatron-core's builder, HF tokenizers, one document at a time",
}


def files(folders: Iterable[str], endings: tuple[str, ...]) -> list[Path]:
    """List the files with these endings, in an order that mixes folders and is always the same."""
    found = []
    for folder in folders:
        for parent, _, names in os.walk(folder):
            found += [Path(parent, name) for name in names if name.endswith(endings)]
    found.sort()
    random.Random(0).shuffle(found)
    return found


def documents(paths: Iterable[Path], seen: set[int]) -> Iterator[str]:
    """Read each content once, of files that are UTF-8 and of usual size."""
    for path in paths:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text and hash(text) not in seen:
            seen.add(hash(text))
            yield text


def take(texts: Iterator[str], num_bytes: float) -> list[str]:
    """Return the next texts up to a total size, fewer if there are no more."""
    taken: list[str] = []
    while num_bytes > 0 and (text := next(texts, "")):
        taken.append(text)
        num_bytes -= len(text.encode())
    return taken


def ours(backend: Any, tokenizer: Path, texts: list[str], prefix: Path) -> tuple[float, float]:
    from data_pipeline.batches import batches
    from data_pipeline.tokenizer.encoder import Encoder
    from loopcoder.data.indexed import IndexedWriter

    start = time.process_time()
    encoder = Encoder(tokenizer, backend=backend)
    ready = time.process_time()
    writer = IndexedWriter(prefix, encoder.vocab_size)
    for batch in batches(texts, len, BATCH):
        writer.append(*encoder.encode_documents(batch))
    writer.finish()
    return ready - start, time.process_time() - ready


def megatron(tokenizer: Path, texts: list[str], prefix: Path) -> tuple[float, float]:
    """Do as preprocess_data.py does, less its JSON and with a thinner wrapper of the tokenizer."""
    start = time.process_time()
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.encode_special_tokens = True
    eod = encoder.token_to_id("<|endoftext|>")
    dtype = DType.optimal_dtype(encoder.get_vocab_size())
    ready = time.process_time()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for text in texts:
        ids = encoder.encode(text, add_special_tokens=False).ids
        ids.append(eod)
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return ready - start, time.process_time() - ready


def one(way: str, corpus: Path, tokenizer: Path, prefix: Path) -> None:
    """Run one way on one corpus and print its seconds as JSON."""
    texts = json.loads(corpus.read_text(encoding="utf-8"))
    if way == "megatron":
        start_up, spent = megatron(tokenizer, texts, prefix)
    else:
        start_up, spent = ours(way, tokenizer, texts, prefix)
    print(json.dumps({"start_up": start_up, "spent": spent}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=40, help="text and code in all")
    parser.add_argument("--vocab-size", type=int, default=76_800)
    parser.add_argument("--folders", nargs="+", help="where the documents are looked for")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; else one is trained")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    if arguments.one:
        way, *paths = arguments.one
        one(way, *map(Path, paths))
        return
    paths = sysconfig.get_paths()
    folders = arguments.folders or [paths["stdlib"], paths["purelib"], "/usr/share"]
    seen: set[int] = set()
    domains = {
        name: documents(files(folders, e), seen) for name, e in (("text", TEXT), ("code", CODE))
    }
    from data_pipeline.tokenizer.encoder import train_tokenizer

    environ = os.environ | {"FASTOKENS_BPE_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="tokenise-") as folder:
        chosen = {
            name: take(texts, arguments.megabytes / 2 * 1e6) for name, texts in domains.items()
        }
        tokenizer = arguments.tokenizer or Path(folder, "tokenizer.json")
        if not arguments.tokenizer:
            rest = [t for texts in domains.values() for t in take(texts, TRAIN_MB / 2 * 1e6)]
            train_tokenizer(rest, arguments.vocab_size, tokenizer)
        print("| documents | way | MB/cpu-s | M tokens/cpu-s | speed of the first | start-up s |")
        print("|---|---|---|---|---|---|")
        for name, texts in chosen.items():
            corpus = Path(folder, f"{name}.json")
            corpus.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
            megabytes = sum(len(text.encode()) for text in texts) / 1e6
            first: tuple[float, list[bytes]] | None = None
            for way in arguments.only:
                prefix = Path(folder, f"{name}_{way}")
                command = [sys.executable, __file__, "--one", way, corpus, tokenizer, prefix]
                done = subprocess.run(
                    command, env=environ, stdout=subprocess.PIPE, text=True, check=True
                )
                took = json.loads(done.stdout.splitlines()[-1])
                made = [Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")]
                first = first or (took["spent"], made)
                if made != first[1]:
                    sys.exit(f"{way} writes other files than {arguments.only[0]}")
                tokens = len(made[0]) / (2 if made[1][17] == 8 else 4) / 1e6
                print(
                    f"| {name}, {megabytes:.1f} MB, {len(texts):,} | {WAYS[way]} "
                    f"| {megabytes / took['spent']:.1f} | {tokens / took['spent']:.2f} "
                    f"| {'' if way == arguments.only[0] else f'{took["spent"] / first[0]:.1f} x'} "
                    f"| {took['start_up']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
