"""The points of a sweep: every combination of the swept values, composed and checked."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hydra.core.override_parser.types import Override

from loopcoder.backends import Backends
from loopcoder.config.check import check
from loopcoder.config.compose import (
    compose,
    conf_dir,
    group_options,
    sweep_axes,
)
from loopcoder.config.identity import as_folder, config_hash
from loopcoder.config.overrides import parse_overrides, quoted
from loopcoder.config.resolve import processes_to_start, resolve
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem
from loopcoder.plan.cost import flops_per_step, tokens_per_step
from loopcoder.plan.fit import check_run


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    label: str
    """The swept values, as they were written."""
    without_seed: str
    """The same without the seed, shared by the runs of several seeds; `seed=1,2` where nothing else
    is swept."""
    overrides: list[str]
    """All overrides of the run, its run_dir included."""
    config: Config
    names: tuple[str, ...]
    """Hashes by which the ledger knows its config: of what was asked for, and, as it was until
    2026-11-29, of what this machine made of it."""
    run_dir: Path


Match = Literal["steps", "tokens", "flops"]
Start = Callable[[Config], Path]
"""Returns the run that a point of a config starts from."""
_SETTINGS = "sweep."
_STEPS, _INIT_FROM = "train.max_steps", "checkpoint.init_from"


def points(
    overrides: Sequence[str],
    config_dir: Path | None,
    backends: Backends,
    match: Match = "steps",
    processes: Callable[[Config, Backends], int] = processes_to_start,
    start: Start | None = None,
) -> tuple[Path, list[Point]]:
    """Expand overrides into points, composed and checked, and the folder that holds them.

    Args:
        match: What all points have as many of as the first, by their train.max_steps: `steps`
            leaves these as they are.
        processes: How many each point is trained by.
        start: Says which run a point starts from; None: its own config does.

    Raises:
        InputError: with the problems of all points.
    """
    problems: list[Problem] = []
    parsed, swept = axes(overrides, config_dir, problems)
    dirs = [conf_dir()] if config_dir is None else [conf_dir(), config_dir]
    options = group_options(dirs)
    choices = [_choices(override, options, problems) for override in swept]
    if match != "steps" and any(
        o.is_sweep_override() and o.get_key_element() == _STEPS for o in swept
    ):
        why = "it says how many steps a point has, by those of the first"
        problems.append(Problem(f"sweep.match={match} and several {_STEPS}", why, "one of them"))
    only_seeds = " ".join(str(o.input_line) for o in swept if o.is_sweep_override())
    if problems:
        raise InputError(problems)
    sweep_dir = _folder_of(overrides, parsed, config_dir, match)
    found: list[Point] = []
    for index, values in enumerate(itertools.product(*choices)):
        chosen = [v for v, o in zip(values, swept, strict=True) if o.is_sweep_override()]
        label, unseeded = " ".join(chosen), " ".join(v for v in chosen if not v.startswith("seed="))
        folder = sweep_dir / f"{index:02d}_{folder_name(label)}"
        try:
            point = point_of(
                values,
                label,
                folder,
                config_dir,
                backends,
                without_seed=unseeded or only_seeds,
                like=found[0].config if found and match != "steps" else None,
                match=match,
                processes=processes,
                start=start,
            )
        except InputError as error:
            problems += error.problems
            continue
        found.append(point)
    if problems:
        raise InputError(problems)
    return sweep_dir, found


def axes(
    overrides: Sequence[str], config_dir: Path | None, problems: list[Problem]
) -> tuple[list[Override], list[Override]]:
    """Parse the overrides of a sweep, those of its presets first, and return all of them and those
    of its points.

    Args:
        problems: Gets what is wrong with them.
    """
    # As Hydra's BasicSweeper: the last of a key counts, in the place of the first.
    everything = parse_overrides([*_axes_of(overrides, config_dir), *overrides], problems)
    parsed = list({o.get_key_element(): o for o in everything}.values())
    swept = [o for o in parsed if o.key_or_group != "run_dir" or o.is_sweep_override()]
    if not problems and not any(o.is_sweep_override() for o in swept):
        problems.append(
            Problem(
                "a sweep of which no field has several values",
                "a sweep trains every combination of the values that are given with commas",
                "model.num_loops=1,2,3,4, or loopcoder train without -m for one run",
            )
        )
    return parsed, swept


def point_of(
    values: Sequence[str],
    label: str,
    folder: Path,
    config_dir: Path | None,
    backends: Backends,
    *,
    without_seed: str,
    like: Config | None = None,
    match: Match = "steps",
    processes: Callable[[Config, Backends], int] = processes_to_start,
    start: Start | None = None,
) -> Point:
    """Compose and check one point.

    Args:
        values: All overrides but its run_dir.
        like: The point of which it has as many tokens or FLOPs, as `match` says.
        start: Says which run it starts from.

    Raises:
        InputError: naming the point.
    """
    overrides = [*values, f"run_dir={quoted(str(folder))}"]
    try:
        asked = compose(overrides, config_dir)
        if like is not None:
            overrides.append(f"{_STEPS}={_steps_like(like, resolve(asked, backends), match)}")
            asked = compose(overrides, config_dir)
        if (store := asked.checkpoint.store) is not None:  # its points are runs of their own
            below = f"{store.rstrip('/')}/{folder.name}"
            overrides.append(f"checkpoint.store={quoted(below)}")
            asked = compose(overrides, config_dir)
        if start is not None:
            overrides.append(f"{_INIT_FROM}={quoted(str(_start_of(asked, backends, start)))}")
            asked = compose(overrides, config_dir)
        config = resolve(asked, backends)
        size = processes(config, backends)
        check(config, size, backends)
        check_run(config, size, backends)
    except InputError as error:
        named = [replace(p, fact=f"[{label}] {p.fact}") for p in error.problems]
        raise InputError(named) from error
    names = (config_hash(asked), config_hash(config))
    return Point(label, without_seed, overrides, config, names, folder)


def _start_of(asked: Config, backends: Backends, start: Start) -> Path:
    if asked.checkpoint.init_from is not None:
        raise InputError.of(
            f"{_INIT_FROM}={asked.checkpoint.init_from} in a sweep whose points start from those "
            "of another",
            "each has a run there to start from",
            f"leave {_INIT_FROM} out, or sweep.init_from",
        )
    return start(resolve(asked, backends))


def _steps_like(first: Config, config: Config, match: Match) -> int:
    """Return with how many steps a point has as many tokens or FLOPs as the first.

    Raises:
        InputError: the length of the sequences changes while they train.
    """
    for each in (first, config):
        lengths = {stage.seq_length for stage in each.stages}
        if len(lengths) > 1 or each.train.batch_ramp is not None:
            raise InputError.of(
                f"sweep.match={match} with data.stages of several lengths, or with a batch ramp",
                "a step has then no one number of tokens",
                "sweep.match=steps, which gives all points of one schedule as many tokens",
            )
    cost = tokens_per_step if match == "tokens" else flops_per_step
    return max(1, round(first.train.max_steps * cost(first) / cost(config)))


def sweep_folder(overrides: Sequence[str], config_dir: Path | None, match: Match) -> Path:
    """Return the folder that `points` returns."""
    return _folder_of(overrides, axes(overrides, config_dir, [])[0], config_dir, match)


def _folder_of(
    overrides: Sequence[str], parsed: Sequence[Override], config_dir: Path | None, match: Match
) -> Path:
    of_match = [] if match == "steps" else [f"sweep.match={match}"]
    return folder_of([*overrides, *of_match], parsed, config_dir)


def folder_of(
    overrides: Sequence[str], parsed: Sequence[Override], config_dir: Path | None
) -> Path:
    """Return a sweep's folder: the run_dir of its overrides, or named like a run's, of `name` and a
    hash."""
    folders = [o for o in parsed if o.key_or_group == "run_dir" and not o.is_sweep_override()]
    if folders:
        return Path(str(folders[-1].value())).expanduser()
    overrides = [*_axes_of(overrides, config_dir), *overrides]
    rest = [o for o in overrides if not o.startswith("name=")]
    hashed = hashlib.sha256(json.dumps([rest, str(config_dir)]).encode()).hexdigest()[:10]
    names = [o for o in parsed if o.key_or_group == "name" and not o.is_sweep_override()]
    name = f"{as_folder(str(names[-1].value()))}-{hashed}" if names else hashed
    return Path("runs/sweeps") / name


def preset_settings(overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    """Return what the chosen presets set of the section `sweep`, as overrides."""
    return [o for o in sweep_axes(overrides, config_dir) if o.startswith(_SETTINGS)]


def _axes_of(overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    return [o for o in sweep_axes(overrides, config_dir) if not o.startswith(_SETTINGS)]


class _GroupLister:
    """Tell Hydra's parser the presets of a group, for `model=glob(*)`."""

    def __init__(self, options: dict[str, list[str]]):
        self._options = options

    def get_group_options(self, group_name: str, results_filter: object = None) -> list[str]:
        return self._options.get(group_name, [])


def _choices(
    override: Override, options: dict[str, list[str]], problems: list[Problem]
) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    text = str(override.input_line)
    if not override.is_discrete_sweep():
        why = "a sweep runs every value, and an interval has no end of them"
        problems.append(
            Problem(
                text,
                why,
                f"{key}=range(1,4), or {key}=1,2,3; with sweep.trials=N loopcoder sweep searches "
                "an interval",
            )
        )
        return []
    override.config_loader = _GroupLister(options)  # type: ignore[assignment]
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        problems.append(
            Problem(text, "it selects nothing", f"{key}={','.join(options.get(key, ['1', '2']))}")
        )
    return values


def folder_name(label: str) -> str:
    """Shorten `model.num_loops=2 seed=1` to num_loops=2-seed=1."""
    short = re.sub(r"[^\w.=-]+", "-", re.sub(r"[^\s=]*\.(\w+=)", r"\1", label)).strip("-")
    return short.encode()[:80].decode(errors="ignore") or "run"
