"""The clock of this machine."""

from __future__ import annotations

import time

from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Finding, Seen

SET_CLOCK = "timedatectl set-ntp true, or chronyc makestep"


def check_clock() -> Seen:
    """Look whether the year can be right; what other nodes' clocks show is compared elsewhere."""
    seen, now = Seen(), time.gmtime(time.time())
    fact = time.strftime("%Y-%m-%d %H:%M:%S UTC", now)
    if t.FIRST_YEAR <= now.tm_year <= t.LAST_YEAR:
        seen.ok("clock", fact)
    else:
        why = "certificates, object stores and the order of files by time depend on it"
        seen.add("clock", "error", fact, why, SET_CLOCK)
    return seen


def clock_finding(node: str, ahead_s: float, uncertain_s: float) -> Finding:
    """Judge the clock of a node.

    Args:
        ahead_s: Seconds that it is ahead of the first node's.
        uncertain_s: Half of the time that asking took.
    """
    direction = "ahead of" if ahead_s > 0 else "behind"
    off = f"{abs(ahead_s):,.2f} s {direction} the first node's"
    fact = f"{node} is {off} (+-{uncertain_s:.3f} s)"
    if abs(ahead_s) - uncertain_s <= t.CLOCK_WARNING_S:
        return Finding("clocks", "ok", fact, value=ahead_s, unit="s")
    level = "error" if abs(ahead_s) - uncertain_s > t.CLOCK_ERROR_S else "warning"
    why = "the nodes' logs are not in order; Kerberos and object stores refuse a clock minutes off"
    fix = f"on {node}: {SET_CLOCK}"
    return Finding("clocks", level, fact, why, fix, ahead_s, "s")  # type: ignore[arg-type]
