"""Where the points of a sweep start from: each from the run of another sweep that has its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.sweep.points import Point
from loopcoder.config.compose import load_config
from loopcoder.config.schema import SHAPE, Config
from loopcoder.errors import InputError

_ALIKE = (*SHAPE, "num_loops", "window", "shift", "kv_sharing", "norm_per_loop", "gate")
"""Fields of ModelConfig that say what the weights compute."""
_CONFIG = "config.yaml"


class Base(NamedTuple):
    """A run that a point may start from."""

    run_dir: Path
    config: Config


class Bases:
    """The runs of one sweep."""

    def __init__(self, folder: Path, runs: Sequence[Base]):
        self._folder, self._runs = folder, runs

    @classmethod
    def of_folder(cls, folder: Path) -> Bases:
        """Take the runs in a folder.

        Raises:
            InputError: there is none, or the config of one cannot be read.
        """
        found = sorted(folder.glob(f"*/{_CONFIG}"))
        if not found:
            raise InputError.of(
                f"sweep.init_from={folder} has no runs",
                "each point starts from the run there that has its model",
                "the folder of a sweep, which its first line printed",
            )
        return cls(folder, [Base(path.parent, load_config(path)) for path in found])

    @classmethod
    def of_points(cls, folder: Path, points: Sequence[Point]) -> Bases:
        """Take the points of a sweep, trained or not."""
        return cls(folder, [Base(point.run_dir, point.config) for point in points])

    def run_like(self, config: Config) -> Path:
        """Return the run of a config's model; of several the one with its seed.

        Raises:
            InputError: there is none, or several are as good.
        """
        wanted = _identity(config)
        same = [base for base in self._runs if _identity(base.config) == wanted]
        of_seed = [base for base in same if base.config.seed == config.seed]
        found = of_seed if len(same) > 1 else same
        if len(found) == 1:
            return found[0].run_dir
        loops = f"{config.model.num_loops} loops of {config.model.num_layers} layers"
        if found or same:
            names = ", ".join(base.run_dir.name for base in found or same)
            raise InputError.of(
                f"several runs in {self._folder} have {loops}: {names}",
                f"a point starts from one, and seed={config.seed} tells it from none of them"
                if found
                else f"a point starts from one, and none of them has seed={config.seed}",
                "a sweep over the seeds of those runs, or one with a run for each model",
            )
        there = sorted({base.config.model.num_loops for base in self._runs})
        raise InputError.of(
            f"no run in {self._folder} has a model of {loops}, with this window, shift and gate",
            f"its runs have {', '.join(map(str, there))} loops",
            "the model= and variant= of that sweep",
        )


def _identity(config: Config) -> list[object]:
    return [getattr(config.model, name) for name in _ALIKE]
