"""What a build is made of: stages, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.tasks.work import Output, Result, Work


@dataclass(frozen=True)
class Stage:
    """One stage: its tasks depend on stages before it only, and not on each other."""

    kind: type[Result]
    """What its tasks return; has its name."""
    title: str
    """What it does, for people."""
    run: Callable[[Work, int], Output]
    tasks: Callable[[Work], int]

    @property
    def name(self) -> str:
        return self.kind.stage


def one(_: Work) -> int:
    """Return the number of tasks of a stage that is done as a whole."""
    return 1
