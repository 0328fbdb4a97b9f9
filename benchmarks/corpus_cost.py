"""The cost of a corpus of 18T tokens, estimated from the manifest of a smaller one.

    python benchmarks/corpus_cost.py CORPUS_FOLDER [--tokens 18e12]

Stages up to the count see all input, so they grow with raw text / kept text, both as measured; all
kept text is assumed to be used. Later stages grow with the tokens that are used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BEFORE_PLAN = ("read", "gather", "sign", "match", "cluster", "count")
ONCE = ("sample", "tokenizer", "plan")
"""Stages that do not grow with the corpus, or are done once for many."""


def rows(manifest: Mapping[str, Any], tokens: float) -> Iterator[tuple[str, float, float, int]]:
    """Yield (stage, MB per CPU-second, core-hours, peak memory in bytes)."""
    costs = {cost["stage"]: cost for cost in manifest["costs"]}
    used, used_bytes = manifest["plan"]["tokens"], costs["tokenise"]["bytes_in"]
    kept = sum(row["supply_bytes"] for row in manifest["plan"]["languages"])
    final_bytes = tokens * used_bytes / used
    text = costs["read"]["text_chars_out"]
    for stage, cost in costs.items():
        peak = cost["peak_rss_bytes"]
        if stage in ONCE:
            continue
        growth = final_bytes / kept if stage in BEFORE_PLAN else tokens / used
        size = {"read": text["ingest"]}.get(stage, cost["bytes_in"])
        for name, seconds in (cost.get("parts") or {stage: cost["cpu_s"]}).items():
            rate = size / 1e6 / seconds if size and seconds else 0.0
            yield name, rate, seconds * growth / 3600, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=float, default=18e12)
    arguments = parser.parse_args()
    manifest = json.loads((arguments.folder / "manifest.json").read_text())
    costs = {cost["stage"]: cost for cost in manifest["costs"]}
    raw = costs["read"]["text_chars_out"]["ingest"]
    kept = sum(row["supply_bytes"] for row in manifest["plan"]["languages"])
    print(f"raw text / kept text: {raw / kept:.2f}")
    print(f"bytes per token: {costs['tokenise']['bytes_in'] / manifest['plan']['tokens']:.2f}\n")
    print("| stage | MB per CPU-second | core-hours | peak memory of a worker |")
    print("| --- | --- | --- | --- |")
    total = 0.0
    for stage, rate, hours, peak in rows(manifest, arguments.tokens):
        total += hours
        speed = f"{rate:,.0f}" if rate else ""
        print(f"| {stage} | {speed} | {hours:,.0f} | {peak / 1e6:,.0f} MB |")
    print(f"| all | | {total:,.0f} | |")


if __name__ == "__main__":
    main()
