"""Findings of the doctor as text for people and as an object for machines."""

from __future__ import annotations

import socket
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from loopcoder.cli.examination import Examined
from loopcoder.doctor.findings import FORMAT_VERSION, LEVELS, Finding, Seen, worst
from loopcoder.errors import LoopcoderError

_WIDTH = 100
_MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "error": "ERROR"}


def in_table(found: Examined) -> str:
    """Return a line per finding, and below what is not ok why that matters and what mends it."""
    several = len(found.nodes) > 1
    if several and found.nodes[0].name != socket.gethostname():
        return f"all nodes have come; {found.nodes[0].name} prints what was found"
    lines = []
    if found.job.findings:
        lines += ["all nodes" if several else "this job", *_lines(found.job.findings)]
    for node in found.nodes:
        lines += [f"node {node.name}", *_lines(node.seen.findings)]
    counts = {level: sum(f.level == level for f in found.findings) for level in LEVELS}
    said = [f"{number} {level}" for level, number in counts.items() if number]
    return "\n".join([*lines, "", f"findings: {', '.join(said) or 'none'}"])


def _lines(findings: list[Finding]) -> Iterator[str]:
    width = max((len(f.check) for f in findings), default=0)
    for finding in findings:
        yield f"  {_MARKS[finding.level]:<7}  {finding.check:<{width}}  {finding.fact}"
        for name, text in (("why", finding.why), ("fix", finding.fix)):
            if text:
                yield textwrap.fill(
                    f"{name}: {text}",
                    _WIDTH,
                    initial_indent=" " * (width + 13),
                    subsequent_indent=" " * (width + 18),
                    break_long_words=False,
                    break_on_hyphens=False,
                )


def to_json(
    found: Examined, run: Mapping[str, str], refused: LoopcoderError | None, elapsed_s: float
) -> dict[str, Any]:
    """Return all that was found as plain objects; docs/doctor.md names the fields.

    Args:
        run: The table of what the run takes.
        refused: Why it cannot start.
    """
    config = Seen()
    if refused is not None:
        config.add_error("config", refused)
    return {
        "format_version": FORMAT_VERSION,
        "level": worst([*config.findings, *found.findings]),
        "elapsed_s": round(elapsed_s, 3),
        "config": config.to_json()["findings"],
        "run": dict(run),
        "job": found.job.to_json()["findings"],
        "nodes": [node.to_json() for node in found.nodes],
    }
