"""Findings: what a check has seen, how bad that is, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from loopcoder.errors import InputError

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
"""From good to bad. A run does not start, or does not end well, with an error; a warning costs
speed, or breaks something later; a note is something to know."""
FORMAT_VERSION = 1
"""Of the JSON object; it grows when a field changes its meaning or goes."""


@dataclass(frozen=True)
class Finding:
    """What one check has seen."""

    check: str
    """What was looked at, in one or two words; the same on every machine."""
    level: Level
    fact: str
    """What was seen, with its values."""
    why: str = ""
    """Why it matters; empty where it is ok."""
    fix: str = ""
    """The command or setting that mends it; empty where it is ok."""
    value: float | None = None
    """What was measured, where it is a number that machines may compare."""
    unit: str = ""


@dataclass
class Seen:
    """What a check returns."""

    findings: list[Finding] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    """What has to be the same on all nodes, by its name."""

    def ok(self, check: str, fact: str, value: float | None = None, unit: str = "") -> None:
        """Add that something is as it should be."""
        self.findings.append(Finding(check, "ok", fact, value=value, unit=unit))

    def add(
        self,
        check: str,
        level: Level,
        fact: str,
        why: str,
        fix: str,
        value: float | None = None,
        unit: str = "",
    ) -> None:
        """Add something else."""
        self.findings.append(Finding(check, level, fact, why, fix, value, unit))

    def add_error(self, check: str, error: Exception) -> None:
        """Add an error with its three parts, as far as it has them."""
        if isinstance(error, InputError):
            for problem in error.problems:
                self.add(check, "error", problem.fact, problem.why, problem.fix)
            return
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        parts = {line[:4]: line[5:] for line in lines if line[:5] in ("why: ", "fix: ")}
        fact = lines[0] if lines else type(error).__name__
        self.add(check, "error", fact, parts.get("why:", ""), parts.get("fix:", ""))

    def join(self, other: Self) -> None:
        """Take in what another check has seen."""
        self.findings += other.findings
        self.values |= other.values

    def to_json(self) -> dict[str, Any]:
        """Return it as plain objects."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Return what `to_json` has made plain."""
        return cls([Finding(**finding) for finding in told["findings"]], dict(told["values"]))


@dataclass
class Node:
    """What was seen on one machine."""

    name: str
    seen: Seen

    def to_json(self) -> dict[str, Any]:
        """Return it as plain objects: name, findings and values."""
        return {"name": self.name, **self.seen.to_json()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Return what `to_json` has made plain."""
        return cls(told["name"], Seen.from_json(told))


def worst(findings: Iterable[Finding]) -> Level:
    """Return the worst level of some findings; ok where there are none."""
    return max((f.level for f in findings), key=LEVELS.index, default="ok")
