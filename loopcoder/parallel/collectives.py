"""Which collectives this rank is in, by torch's flight recorder.

It keeps the newest 2,000 of each process (TORCH_FR_BUFFER_SIZE), of gloo and of NCCL. Reading them
may wait for a device that hangs, so it is done in a thread of its own that has an end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch._C import _distributed_c10d

_PATIENCE_S = 2.0


def pending(most: int = 8) -> list[str]:
    """Return the collectives that were begun and have not ended, oldest first, in words; an empty
    list where torch does not tell."""
    entries: list[dict[str, Any]] = []
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        dumped = _within_patience(getattr(_distributed_c10d, name, None))
        with suppress(ValueError, AttributeError):  # another version of torch writes something else
            entries += json.loads(dumped or b"{}").get("entries", [])
    running = [e for e in entries if not e.get("retired") and e.get("state") != "completed"]
    running.sort(key=lambda e: e.get("time_created_ns", 0))
    return [_in_words(entry) for entry in running[:most]]


def nccl_trace() -> bytes | None:
    """Return what `python -m torch.distributed.flight_recorder.fr_trace` reads; None: no
    collective of NCCL is known."""
    told = _within_patience(getattr(_distributed_c10d, "_dump_nccl_trace_json", None)) or b""
    if b'"entries"' not in told:
        return None
    return _within_patience(getattr(_distributed_c10d, "_dump_nccl_trace", None))


def _in_words(entry: dict[str, Any]) -> str:
    group = " ".join(part for part in entry.get("process_group", ()) if part)
    number = entry.get("p2p_seq_id" if entry.get("is_p2p") else "collective_seq_id")
    sizes, types = entry.get("input_sizes", ()), entry.get("input_dtypes", ())
    tensors = ", ".join(f"{t} {s}" for t, s in zip(types, sizes, strict=False))
    age_s = max(0.0, (time.time_ns() - entry.get("time_created_ns", time.time_ns())) / 1e9)
    name = entry.get("profiling_name", "a collective")
    return f"{name} number {number} of group {group} ({tensors}), for {age_s:.0f} s"


def _within_patience(call: Callable[[], bytes] | None) -> bytes | None:
    """Return what a call gives, None where there is none or it does not end."""
    found: list[bytes] = []

    def run() -> None:
        with suppress(Exception):  # of a device or library that is broken already
            found.append(call())  # type: ignore[misc]

    if call is None:
        return None
    thread = threading.Thread(target=run, name="loopcoder-collectives", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return found[0] if found else None
