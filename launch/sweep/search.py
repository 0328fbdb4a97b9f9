"""A sweep whose points are searched: Optuna is asked for each, and told what it came to.

Its own study is in the sweep's folder: what was told is there after any end of the process. A trial
whose run was interrupted is continued, one that failed counts as failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from launch.sweep.ledger import is_finished, records
from launch.sweep.points import Point, axes, folder_name, folder_of, point_of
from loopcoder.backends import Backends
from loopcoder.config.compose import compose
from loopcoder.config.identity import config_hash
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY, InputError, Problem
from loopcoder.storage.folders import make_folder

STUDY_FILE = "study.journal"
_UNTOLD = (EXIT_RETRY, EXIT_BAD_INPUT)
"""Codes after which a trial is open: it continues when what stopped it is mended."""
_SPACE, _MINIMISE, _SETTINGS = "space", "minimise", "settings"
"""What a study keeps of what was asked for."""


class Search:
    """The trials of a sweep: asks for the next, and tells how each ended."""

    def __init__(
        self,
        overrides: Sequence[str],
        config_dir: Path | None,
        backends: Backends,
        *,
        trials: int,
        minimise: str,
    ):
        """
        Args:
            overrides: Of the command line: `choice`, `range` and `interval` of Hydra's grammar.
            trials: In all, over all starts.
            minimise: Field of metrics.jsonl, of which a run's last value counts.

        Raises:
            InputError: optuna is missing, or something cannot be searched.
        """
        problems: list[Problem] = []
        parsed, self._swept = axes(overrides, config_dir, problems)
        if problems:
            raise InputError(problems)
        self._space = {
            o.get_key_element(): _distribution(o) for o in self._swept if o.is_sweep_override()
        }
        fixed = [
            f"{o.get_key_element()}={o.get_value_element_as_str()}"
            for o in self._swept
            if not o.is_sweep_override()
        ]
        self._settings = config_hash(compose(fixed, config_dir))
        self.folder = folder_of([*overrides, f"sweep.minimise={minimise}"], parsed, config_dir)
        self._config_dir, self._backends = config_dir, backends
        self._trials, self._minimise = trials, minimise
        self._numbers: dict[str, int] = {}
        self._study: Any = None

    def open(self, ledger: Path) -> list[Point]:
        """Return the points that were asked for before, all of them; call it before the others.

        What ended unheard is told.
        """
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        make_folder(self.folder, "run_dir")
        journal = optuna.storages.journal.JournalFileBackend(str(self.folder / STUDY_FILE))
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal),
            study_name=self.folder.name,
            load_if_exists=True,
        )
        trials = self._study.get_trials(deepcopy=False)
        self._compare()
        # of one seed alone a study that goes on would draw the same again
        self._study.sampler = optuna.samplers.TPESampler(seed=len(trials))
        found = []
        for trial in trials:
            try:
                point = self._point(trial.number, trial.params)
            except InputError:
                if trial.state.is_finished():
                    continue  # it was told that this cannot be trained
                raise
            if not trial.state.is_finished() and is_finished(point, ledger):
                self.ended(point, EXIT_DONE)
            found.append(point)
        return found

    def _compare(self) -> None:
        """Raise InputError where a folder has the study of another search; else name this one."""
        mine = {
            _SPACE: {key: repr(value) for key, value in self._space.items()},
            _MINIMISE: self._minimise,
            _SETTINGS: self._settings,
        }
        theirs = self._study.user_attrs
        differ = [name for name, value in mine.items() if theirs.get(name, value) != value]
        if differ and self.best() is not None:
            raise InputError.of(
                f"{self.folder / STUDY_FILE} has another search: {', '.join(differ)} differ "
                f"({theirs.get(_SPACE)} for a low {theirs.get(_MINIMISE)})",
                "its trials and those that would follow do not compare",
                "the settings that it began with, or run_dir=ANOTHER_FOLDER",
            )
        for name, value in mine.items():
            self._study.set_user_attr(name, value)

    def has_next(self) -> bool:
        """Say whether there are trials to come."""
        return len(self._study.get_trials(deepcopy=False)) < self._trials

    def next(self) -> Point | None:
        """Ask for a point; None: there were as many as there are to be.

        Raises:
            InputError: none of them can be trained.
        """
        refused: InputError | None = None
        while self.has_next():
            trial = self._study.ask(self._space)
            try:
                return self._point(trial.number, trial.params)
            except InputError as error:
                refused = error
                print(f"loopcoder: {error.problems[0].fact}: not tried", flush=True)
                self._study.tell(trial, state=_optuna().trial.TrialState.FAIL)
        if not self._numbers:
            raise refused or InputError.of(
                f"none of {self._trials} trials of {self.folder} could be trained",
                "each was refused as it was tried",
                "values that fit each other, and run_dir=ANOTHER_FOLDER or more sweep.trials",
            )
        return None

    def is_open(self, point: Point) -> bool:
        """Say whether a point that was asked for before is to be trained on."""
        number = self._numbers[point.label]
        return not self._study.get_trials(deepcopy=False)[number].state.is_finished()

    def ended(self, point: Point, code: int) -> None:
        """Tell how a point ended; what is continued later is not told."""
        if code in _UNTOLD:
            return
        number, lines = self._numbers[point.label], records(point.run_dir / "metrics.jsonl")
        values = [line[self._minimise] for line in lines if self._minimise in line]
        if code == EXIT_DONE and not values:
            there = {key for line in lines for key, value in line.items() if _is_number(value)}
            raise InputError.of(
                f"sweep.minimise={self._minimise}, which {point.run_dir / 'metrics.jsonl'} has not",
                "by it the search decides what to try next",
                f"sweep.minimise=FIELD of {', '.join(sorted(there))}; val/loss needs eval.at_end",
            )
        if code == EXIT_DONE and _is_number(values[-1]):
            self._study.tell(number, values[-1])
        else:
            self._study.tell(number, state=_optuna().trial.TrialState.FAIL)

    def best(self) -> str | None:
        """Return a sentence on the best trial so far; None: none has a value."""
        done = [t for t in self._study.get_trials(deepcopy=False) if t.value is not None]
        if not done:
            return None
        best = min(done, key=lambda trial: trial.value)
        chosen = " ".join(f"{key}={_text(value)}" for key, value in best.params.items())
        return f"Best of {len(done)} trials: {self._minimise} {best.value:.4f} with {chosen}."

    def _point(self, number: int, params: dict[str, Any]) -> Point:
        chosen = {key: f"{key}={_text(value)}" for key, value in params.items()}
        values = [
            chosen.get(key) or f"{key}={o.get_value_element_as_str()}"
            for o in self._swept
            for key in [o.get_key_element()]
        ]
        label = f"trial {number}: {' '.join(chosen.values())}"
        folder = self.folder / f"{number:03d}_{folder_name(' '.join(chosen.values()))}"
        found = point_of(
            values, label, folder, self._config_dir, self._backends, without_seed=label
        )
        self._numbers[label] = number
        return found


def _distribution(override: Override) -> Any:
    """Return what Optuna draws a field from.

    Raises:
        InputError: optuna is missing, or cannot draw from that.
    """
    _optuna()
    key = override.get_key_element()
    try:
        found = _drawn_from(override)
    except ValueError as error:
        found, why = None, str(error)
    else:
        why = "a search draws from choices, ranges of whole numbers, and intervals"
    if found is None:
        fix = f"{key}=tag(log,interval(1e-4,1e-2)), or choice(...)"
        raise InputError.of(str(override.input_line), why, fix)
    return found


def _drawn_from(override: Override) -> Any:
    """Return it; None: it is of no kind that is known. Raises ValueError if it is impossible."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    swept: Any = value
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([str(v).partition("=")[2] for v in _each(override)])
    is_log = "log" in swept.tags
    if isinstance(value, RangeSweep) and all(
        isinstance(v, int) for v in (swept.start, swept.stop, swept.step)
    ):
        count = -(-(swept.stop - swept.start) // swept.step)
        last = swept.start + (count - 1) * swept.step
        return IntDistribution(swept.start, last, log=is_log, step=swept.step)
    if isinstance(value, IntervalSweep) and swept.start < swept.end:
        kind = IntDistribution if isinstance(swept.start, int) else FloatDistribution
        return kind(swept.start, swept.end, log=is_log)
    return None


def _each(override: Override) -> list[str]:
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError.of(
            "sweep.trials without the package optuna",
            "it decides which values are tried next",
            "pip install '.[search]', or a sweep of commas, which trains all combinations",
        ) from None
    return optuna
