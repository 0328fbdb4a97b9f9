"""Where the points of a sweep start from: each from the run of another sweep that has its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.sweep.ledger import last_step
from launch.sweep.points import Point
from loopcoder.config.compose import load_config
from loopcoder.config.schema import SHAPE, Config
from loopcoder.errors import InputError

_COMPUTED = (
    *SHAPE,
    *("num_loops", "window", "shift", "kv_sharing", "norm_per_loop", "gate"),
    *("a", "b", "norm_eps", "residual_scale"),
)
"""Fields of ModelConfig that say what the weights compute."""
_CONFIG = "config.yaml"


class Base(NamedTuple):
    """A run that a point may start from."""

    run_dir: Path
    config: Config


class Bases:
    """The runs of one sweep."""

    def __init__(self, folder: Path, runs: Sequence[Base], *, are_trained: bool):
        """
        Args:
            are_trained: A point starts from a run that has come to its end; false: they are
                trained before the points are.
        """
        self._folder, self._runs, self._are_trained = folder, runs, are_trained

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
        runs = [Base(path.parent, load_config(path)) for path in found]
        return cls(folder, runs, are_trained=True)

    @classmethod
    def of_points(cls, folder: Path, points: Sequence[Point]) -> Bases:
        """Take the points of a sweep that is trained first."""
        runs = [Base(point.run_dir, point.config) for point in points]
        return cls(folder, runs, are_trained=False)

    def run_like(self, config: Config) -> Path:
        """Return the run of a config's model; of several the one with its seed.

        Raises:
            InputError: there is none, several are as good, or it is not at its end.
        """
        wanted = _identity(config)
        same = [base for base in self._runs if _identity(base.config) == wanted]
        of_seed = [base for base in same if base.config.seed == config.seed]
        found = of_seed if len(same) > 1 else same
        if len(found) == 1:
            if self._are_trained:
                _check_end(found[0])
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
            f"no run in {self._folder} has a model of {loops}, with these scales, window, shift "
            "and gate",
            f"its runs have {', '.join(map(str, there))} loops",
            "the model= and variant= of that sweep",
        )


def _identity(config: Config) -> list[object]:
    return [getattr(config.model, name) for name in _COMPUTED]


def _check_end(base: Base) -> None:
    """Raise InputError for a run that has not come to its end, by its metrics."""
    step, planned = last_step(base.run_dir) or 0, base.config.train.max_steps
    if step < planned:
        raise InputError.of(
            f"{base.run_dir} is at step {step} of {planned}",
            "a point would start from half a training, and pass for one that did not",
            "the command of that sweep again, which goes on with what is left",
        )
