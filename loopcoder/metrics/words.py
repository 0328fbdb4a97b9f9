"""Metrics in words: the numbers of a record, of an evaluation, sizes and times, for people."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from loopcoder.metrics.lines import Record

VAL_DOMAIN = re.compile(r"val/loss/(?!(?:loop|len)\d+$)([^/]+)")
"""The name of a domain's validation loss."""
OWN_SET = re.compile(r"val/(?!loss/)([^/]+)/loss")
"""The name of the loss on a validation set of one's own (`eval.corpora`)."""

_SHOWN = 40
"""Characters that are shown of a prompt, and of its continuation."""


def run_title(config: Mapping[str, Any]) -> str:
    """Return "<model> R=<loops>" for headings; "run" where the config does not say."""
    model = config.get("model") or {}
    loops = model.get("num_loops")
    return " ".join([str(model.get("name", "run")), *([f"R={loops}"] if loops is not None else [])])


def describe(record: Record, max_steps: int, eta_s: float | None) -> list[str]:
    """Return the numbers of a record that are there as short texts, with their units."""
    texts = [
        text.format(record[key])
        for key, text in (
            ("loss", "loss {:.4f}"),
            ("val/loss", "val {:.4f}"),
            ("grad_norm", "grad {:.3g}"),
            ("lr", "lr {:.2e}"),
        )
        if record.get(key) is not None
    ]
    if (rate := record.get("tokens_per_s")) is not None:
        texts.append(f"{human(rate)} tok/s")
    if (causal := record.get("mfu_causal")) is not None:
        full = record.get("mfu_full", math.nan)
        texts.append(f"MFU {causal:.1%} causal, {full:.1%} full")
    if (wait := record.get("data_wait_s")) is not None and record.get("step_time_s"):
        texts.append(f"data wait {wait / record['step_time_s']:.1%}")
    if (memory := record.get("memory_bytes")) is not None:
        texts.append(f"mem {memory / 2**30:.2f} GiB")
    if record.get("skipped"):
        texts.append(f"skipped {record['skipped']}")
    if eta_s is not None and record["step"] < max_steps:
        texts.append(f"ETA {duration(eta_s)}")
    return texts


def describe_evaluation(record: Record) -> str:
    """Return one line with the validation loss, in all, by domain and by loop."""
    texts = [f"eval step {record['step']}: val {record['val/loss']:.4f}"]
    domains, loops, lengths, own_sets = [], [], [], []
    for key, value in record.items():
        if match := re.fullmatch(r"val/loss/loop(\d+)", key):
            loops.append((int(match[1]), value))
        elif match := re.fullmatch(r"val/loss/len(\d+)", key):
            lengths.append((int(match[1]), value))
        elif match := OWN_SET.fullmatch(key):
            own_sets.append(f"{match[1]} {value:.4f}")
        elif match := VAL_DOMAIN.fullmatch(key):
            bpb = record.get(f"val/bpb/{match[1]}")
            domains.append(f"{match[1]} {value:.4f}" + (f" ({bpb:.3f} bits/byte)" if bpb else ""))
    if domains:
        texts.append("  ".join(domains))
    if own_sets:
        texts.append("  ".join(own_sets))
    if len(loops) > 1:
        texts.append("by loop " + " -> ".join(f"{value:.4f}" for _, value in sorted(loops)))
    if lengths:
        texts.append("by length " + "  ".join(f"{n}: {loss:.4f}" for n, loss in sorted(lengths)))
    return "  |  ".join(texts)


def describe_samples(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the line of an evaluation's continuations, with a piece of the first one."""
    first = records[0]
    # as Python writes it: on one line, and nothing that steers a terminal
    before, after = repr(first["prompt"][-_SHOWN:]), repr(first["continuation"][:_SHOWN])
    of = f" ({first['domain']})" if first["domain"] is not None else ""
    return f"step {first['step']}  samples.jsonl: {before} -> {after}{of}" + (
        f", and {len(records) - 1} more" if len(records) > 1 else ""
    )


def human(number: float) -> str:
    """Return a number with three digits and k, M, B or T: 12345 -> 12.3k."""
    for unit in ("", "k", "M", "B"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def duration(seconds: float) -> str:
    """Return 45s, 3m10s, 2h05m or 4d03h."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"
