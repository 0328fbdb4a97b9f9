"""Stand-ins for Slurm's commands, found first on PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Commands:
    """What sbatch and squeue say; jobs are numbered from 7 on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self._bin, self._jobs = folder / "bin", folder / "jobs"
        self._bin.mkdir()
        self._jobs.write_text("")
        self.asked = folder / "asked"
        """A line with the arguments of every call of squeue."""
        monkeypatch.setenv("PATH", str(self._bin), prepend=os.pathsep)
        self.command(
            "sbatch",
            f'number=$((7 + $(wc -l < "{self._jobs}")))\n'
            f'echo "$number|PENDING||Priority|$1" >> "{self._jobs}"\n'
            "echo Submitted batch job $number",
        )
        self.command("squeue", f'echo "$*" >> "{self.asked}"\ncat "{self._jobs}"')

    def command(self, name: str, script: str) -> None:
        """Give a command another script."""
        (self._bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self._bin / name).chmod(0o755)

    def add(self, job: int, script: Path, *, instead: bool = False) -> None:
        """Let squeue know a job that waits."""
        before = "" if instead else self._jobs.read_text()
        self._jobs.write_text(f"{before}{job}|PENDING||Priority|{script}\n")

    def tell(self, job: int, state: str, nodes: str = "", reason: str = "None") -> None:
        """Let squeue say something else of a job."""
        lines = [line.split("|", 4) for line in self._jobs.read_text().splitlines()]
        told = [[i, state, nodes, reason, s] if i == str(job) else [i, *r, s] for i, *r, s in lines]
        self._jobs.write_text("".join("|".join(line) + "\n" for line in told))

    def forget(self) -> None:
        """Let squeue know no job any more."""
        self.command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
