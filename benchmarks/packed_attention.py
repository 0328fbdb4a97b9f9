"""Causal attention over packed documents, against rows that are one document each.

    python benchmarks/packed_attention.py                                   # needs a GPU
    python benchmarks/packed_attention.py --only rows cudnn --shapes 91M --json packed.jsonl

Documents are drawn with a fixed seed, of a mean length given by --means, and end with their row at
the latest. All candidates get bf16 tensors laid out as they like best:

rows    Transformer Engine, each row one document: what all others are held against
te      Transformer Engine as the model calls it: rows end to end, borders padded to its own bucket
varlen  `torch.nn.attention.varlen.varlen_attn`, which is FlashAttention 2 inside PyTorch
fa3     FlashAttention 3, which schedules by borders
fa4     FlashAttention 4, which does too, written in Python and compiled at the first call
flex    FlexAttention, compiled, with a block mask of documents
cudnn   cuDNN's own graphs (nvidia-cudnn-frontend), planned for no document longer than a row
cudnn8  the same, planned for documents in multiples of 8 and not as Transformer Engine rounds
cudnn2  two plans: one for documents of up to an eighth of a row, one for the longer ones
apart   PyTorch's attention, one call per document; the only one that runs on a CPU

Borders lie in memory of a fixed size, and no call depends on them otherwise, so that a CUDA graph
can hold it. A candidate is right if, in a first draw, six documents are: the error of the output
and of each gradient against float64 is at most twice that of bf16 in PyTorch, plus rounding. Then
it is captured, and the graph must be right for a second draw.

Times are medians of --calls by CUDA events, the L2 cache flushed before each: of replays (`graph`),
or of calls from Python (`eager`) where one of the two that are compared was not captured. `per
batch` is what a new draw takes before the first layer, once per microbatch. Each candidate has a
process of its own, so that none can end another.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measured import Deadline, Kept, hardware, kill_family
from packed_candidates import BY_DEFAULT, CANDIDATES, Candidate
from packed_documents import SHAPES, Case, checked, draw_case, padded
from torch import Tensor

LISTED = ("91M", "7B", "14M", "12x64", "91M-2048", "91M-8192")
"""In this order, the most wanted first."""
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and return an exit code: 1 if a candidate that is there failed, or
    if there is none."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(BY_DEFAULT))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(LISTED))
    parser.add_argument("--means", nargs="+", type=int, default=[256, 1024], metavar="TOKENS")
    parser.add_argument("--calls", type=int, default=50, help="that a median is of")
    parser.add_argument("--seconds", type=float, default=190.0, help="what is not done is left out")
    parser.add_argument("--json", type=Path, help="file that gets a line per row")
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if min(arguments.means) < 1 or arguments.calls < 1:
        parser.error("--means and --calls count from 1")
    if arguments.candidate:
        for row in measure(arguments):
            print(json.dumps(row), flush=True)
        return 0
    deadline, kept, rows, failed = Deadline(arguments.seconds), Kept(arguments.json), [], 0
    for name in arguments.only:
        reason = missing(name)
        if reason is not None:
            print(f"{name}: left out, {reason}", file=sys.stderr, flush=True)
            continue
        for row in in_process(name, deadline.left_s, argv):
            failed += "failed" in row
            rows.append(kept.add(row))
        if deadline.left_s <= 0:
            print(f"{name}: the time was up, so cases may be missing", file=sys.stderr)
            break
    print_table(rows)
    return 1 if failed or not rows else 0


def missing(name: str) -> str | None:
    """Return why a candidate cannot run here; None: it can."""
    candidate = CANDIDATES[name]
    if candidate.package is not None and not installed(candidate.package):
        return f"there is no module {candidate.package}: {candidate.remedy}"
    if name != "apart" and hardware() == "CPU":
        return "it needs a GPU"
    return None


def installed(module: str) -> bool:
    """Whether a module, possibly inside a package, can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def in_process(name: str, seconds: float, argv: Sequence[str] | None) -> Iterator[Row]:
    """Measure one candidate in a process of its own, which ends when the time is up."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = [sys.executable, __file__, *given, "--candidate", name, "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    timer = threading.Timer(max(seconds, 0.0), kill_family, [process])
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("{"):
                print(line.strip(), file=sys.stderr, flush=True)
                yield json.loads(line)
        code = process.wait()
    finally:
        up = not timer.is_alive()
        timer.cancel()
        if process.poll() is None:
            kill_family(process)
    if code and not up:
        failed = {"candidate": name, "shape": None, "failed": f"its process ended with {code}"}
        print(json.dumps(failed), file=sys.stderr, flush=True)
        yield failed


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure a candidate in each case; what fails is a row that says why."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline, name = Deadline(arguments.seconds), arguments.candidate
    for shape_name in arguments.shapes:
        for mean in [None] if name == "rows" else arguments.means:
            if deadline.left_s <= 0:
                return
            row = {"candidate": name, "shape": shape_name, "mean": mean}
            try:
                case = draw_case(SHAPES[shape_name], mean, device)
                row["documents"] = len(case.borders[0]) - 1
                yield row | measure_case(CANDIDATES[name], case, arguments.calls)
            except Exception as error:
                yield row | {"failed": one_line(error)}
            if device.type == "cuda":
                torch.cuda.empty_cache()


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def measure_case(kind: type[Candidate], case: Case, calls: int) -> Row:
    """Check a candidate, capture it and time it."""
    device = case.q.device
    began = time.perf_counter()
    room = kind.room(max(len(b) - 1 for b in case.borders))
    candidate = kind(case.shape, room, device)
    borders = [padded(b, room).to(device) for b in case.borders]
    candidate.fill(borders[0])
    inputs = [candidate.laid_out(x).detach().requires_grad_() for x in (case.q, case.k, case.v)]
    d_out = candidate.laid_out(case.d_out)

    def forward() -> Tensor:
        return candidate.attend(*inputs)

    def both() -> list[Tensor]:
        out = forward()
        return [out, *torch.autograd.grad(out, inputs, d_out)]

    def end_to_end(found: list[Tensor]) -> list[Tensor]:
        return [candidate.end_to_end(x) for x in found]

    row: Row = {"room": room, "errors": checked(case, 0, end_to_end(both()))}
    row["build_s"] = round(time.perf_counter() - began, 2)
    row["batch_ms"] = median_ms(lambda: candidate.fill(borders[0]), min(calls, 20), device)
    row["eager_ms"] = [median_ms(f, min(calls, 20), device) for f in (forward, both)]
    if device.type != "cuda" or not candidate.is_static:
        return row
    try:
        replay, _ = captured(forward)
        replay_both, found = captured(both)
        candidate.fill(borders[1])
        replay_both()
        checked(case, 1, end_to_end(found))
        candidate.fill(borders[0])
        return row | {"graph_ms": [median_ms(f, calls, device) for f in (replay, replay_both)]}
    except Exception as error:  # measured all the same; a broken context ends the process later
        return row | {"not_captured": one_line(error)}


def captured(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Return the replay of a function, and what each replay writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function()
    return graph.replay, found


def median_ms(function: Callable[[], Any], calls: int, device: torch.device) -> float:
    """Return the median milliseconds of a call; what was in the L2 cache is gone before each."""
    if device.type != "cuda":
        times = []
        for _ in range(calls + 1):
            began = time.perf_counter()
            function()
            times.append((time.perf_counter() - began) * 1000)
        return round(statistics.median(times[1:]), 4)
    flush = torch.empty(256 << 20, dtype=torch.int8, device=device)
    pairs = []
    for _ in range(calls + 3):
        began_event, ended_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        began_event.record()
        function()
        ended_event.record()
        pairs.append((began_event, ended_event))
    torch.cuda.synchronize()
    return round(statistics.median(began.elapsed_time(ended) for began, ended in pairs[3:]), 4)


def print_table(rows: list[Row]) -> None:
    """Print times, and what part of those of `rows` they are: below 1 is faster than one document.

    They are those of replays where both have them, else of calls from Python.
    """
    base = {row["shape"]: row for row in rows if row["candidate"] == "rows" and "eager_ms" in row}
    print(
        "| shape | mean | documents | candidate | forward | forward + backward | per batch | by |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    places = [*SHAPES, None]
    for row in sorted(rows, key=lambda row: (places.index(row["shape"]), row.get("mean") or 0)):
        name, shape, mean = row["candidate"], SHAPES.get(row["shape"], ""), row.get("mean")
        what = f"| {shape} | {mean or 'row'} | {row.get('documents', '')} | {name} "
        if "failed" in row:
            print(f"{what}| failed: {row['failed']} | | | |")
            continue
        there = base.get(row["shape"])
        by = "graph" if "graph_ms" in row and "graph_ms" in (there or row) else "eager"
        cells = [f"{ms:.3f} ms" for ms in row[f"{by}_ms"]]
        if there is not None:
            pairs = zip(row[f"{by}_ms"], there[f"{by}_ms"], cells, strict=True)
            cells = [f"{cell}, **{ms / theirs:.2f}**" for ms, theirs, cell in pairs]
        print(f"{what}| {' | '.join(cells)} | {row['batch_ms']:.3f} ms | {by} |")


if __name__ == "__main__":
    sys.exit(main())
