"""MB per CPU-second of every stage of the data pipeline, beside those of another commit.

    python benchmarks/data_rates.py CORPUS --base CHECKOUT [--pairs 5]

Both trees build the files below CORPUS in turn, in a fresh process and cache each, on one core. The
CPU time and the text of a stage are those of its manifest; `identify` is the part of `ingest` that
tells the languages of files. A stage that takes no text in has no rate, and a file that only one of
both trees reads moves its rates: choose files that both know.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = ("ingest", "select", "clean", "decontaminate", "language", "store")
"""Of reading, each takes the text that the one before it hands on."""
BUILD = """
import sys
try:
    from loopcoder.cli.main import main
except ImportError:  # until the command line was a package
    from loopcoder.cli import main
sys.exit(main(["data", "data=files", *sys.argv[1:]]))
"""
IDENTIFY = """
import sys, time
from pathlib import Path
try:
    from data_pipeline.langid.names import HEAD_BYTES, identify
except ImportError:  # until the pipeline had rooms
    from data_pipeline.langid import identify
    HEAD_BYTES = 4096
files = [(str(p), p.read_bytes()) for p in sorted(Path(sys.argv[1]).rglob("*")) if p.is_file()]
times = []
for _ in range(4):  # the first compiles the rules
    start = time.process_time()
    for path, data in files:
        identify(path, data[:HEAD_BYTES])
    times.append(time.process_time() - start)
print(sum(len(data) for _, data in files) / 1e6 / min(times[1:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="tree of another commit")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="fields of data.build, as KEY=VALUE")
    arguments = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # a build has as many workers as cores
    pairs = []
    for number in range(arguments.pairs):
        trees = [arguments.base.resolve(), REPOSITORY]
        rates = {
            tree: measured(tree, arguments.corpus.resolve(), arguments.set)
            for tree in trees[:: -1 if number % 2 else 1]
        }
        pairs.append([rates[tree] for tree in trees])
        print(f"pair {number + 1} of {arguments.pairs}", file=sys.stderr, flush=True)
    table(pairs)


def measured(tree: Path, corpus: Path, fields: list[str]) -> dict[str, float]:
    """Return the rates of a build by a tree."""
    prefix = "data.build" if (tree / "loopcoder/config/build.py").exists() else "data"
    with tempfile.TemporaryDirectory() as cache:
        fields = ["invalid_utf8=replace", f"cache_dir={cache}", *fields]
        run(tree, BUILD, f"data.path={corpus}", *(f"{prefix}.{field}" for field in fields))
        (manifest,) = Path(cache).glob("*/manifest.json")
        rates = dict(rates_of(json.loads(manifest.read_text())))
    return {"identify": float(run(tree, IDENTIFY, str(corpus)))} | rates


def run(tree: Path, code: str, *arguments: str) -> str:
    """Run code with the packages of a tree, and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def rates_of(manifest: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (stage, MB per CPU-second) of the stages that take text in."""
    for cost in manifest["costs"]:
        if "parts" not in cost:
            if cost["bytes_in"] and cost["cpu_s"]:
                yield cost["stage"], cost["bytes_in"] / 1e6 / cost["cpu_s"]
            continue
        handed = cost["text_chars_out"]
        for before, step in zip(("ingest", *STEPS), STEPS, strict=False):
            yield step, handed[before] / 1e6 / max(cost["parts"][step], 1e-3)


def table(pairs: list[list[dict[str, float]]]) -> None:
    """Print medians, and the median of the ratios of the pairs with its range."""
    print("| stage | base | here | here / base |\n| --- | --- | --- | --- |")
    for stage in pairs[0][0]:
        if all(stage in rates for pair in pairs for rates in pair):
            base, here = (statistics.median(pair[i][stage] for pair in pairs) for i in (0, 1))
            ratios = sorted(pair[1][stage] / pair[0][stage] for pair in pairs)
            print(
                f"| {stage} | {base:,.0f} | {here:,.0f} | {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            )


if __name__ == "__main__":
    main()
