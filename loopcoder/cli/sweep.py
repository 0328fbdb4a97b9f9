"""`loopcoder sweep`: every combination of some values, side by side or in turn, and one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from launch.sweep.places import Places, gpus_of, places
from launch.sweep.points import Match, Point
from launch.sweep.run import sweep
from launch.sweep.search import Search
from launch.sweep.settings import SweepConfig
from loopcoder.backends import Backends, detect, refuse_missing
from loopcoder.cli.arguments import Arguments, fields_of, parse_arguments, section_of
from loopcoder.cli.checks import check_folder
from loopcoder.cli.sweep_state import Board
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.plan.cost import flops_per_step, flops_per_token, tokens_per_step

HELP = """\
Train every combination of comma-separated values, and compare them.

usage: loopcoder sweep [sweep.KEY=VALUE ...] [--config-dir DIR] key=value1,value2 ...

  loopcoder sweep model.num_loops=1,2,3,4              on each GPU a point at a time
  loopcoder sweep sweep.per_gpu=2 optim.lr=1e-3,2e-3   two small models share a GPU
  loopcoder sweep sweep.at_once=2 seed=1,2,3,4         two at a time, without GPUs too
  loopcoder sweep sweep.match=flops variant=loops_1,loops_2,dense_2x
  loopcoder sweep sweep.trials=30 'optim.lr=tag(log,interval(1e-4,1e-2))' model.num_loops=1,2

{fields}

The same command goes on after whatever ended it: points that are done are skipped, others continue
from their checkpoints, and those that failed are tried again, but for trials of a search. A point
that diverges or breaks does not stop the others; wrong input, a full disk and the like start no
more of them. All points have one seed, corpus and order of data unless these are swept.
`loopcoder train -m` goes in turn."""

_ALIKE = {"tokens": "tokens", "flops": "FLOPs"}


def run(argv: list[str]) -> int:
    """Run a sweep with places of its own."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help:
        print(HELP.format(fields=fields_of("sweep", SweepConfig)))
        return EXIT_DONE
    settings, others = settings_of(arguments.overrides)
    if not settings.wait:
        raise InputError.of(
            "sweep.wait=false",
            "the points run here, as long as this command does",
            "loopcoder launch slurm sweep.wait=false ... submits jobs",
        )
    return run_sweep(Arguments(others, arguments.config_dir), settings)


def settings_of(overrides: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """Return the section `sweep` of a command line, and the overrides of its points.

    Raises:
        InputError: about keys as they stand on the command line.
    """
    return section_of(overrides, "sweep", SweepConfig)


def run_sweep(arguments: Arguments, settings: SweepConfig | None = None) -> int:
    """Run every point, then show all of them in one table and one plot.

    Args:
        settings: Where the points run; None: here, in turn.
    """
    refuse_missing()
    backends = detect()
    settings = settings or SweepConfig(at_once=1)
    search = None
    if settings.trials is not None:
        search = _search(arguments, settings, backends)
    with Board(backends) as board:
        done = sweep(
            arguments.overrides,
            arguments.config_dir,
            backends,
            partial(check_folder, backends=backends),
            _places(settings, backends),
            board.show,
            settings.match,
            search,
        )
    notes = [] if search is None else [best] if (best := search.best()) else []
    report(done.points, done.exit_codes, done.folder, settings, backends, notes)
    return done.code


def _search(arguments: Arguments, settings: SweepConfig, backends: Backends) -> Search:
    if settings.match != "steps":
        raise InputError.of(
            f"sweep.trials={settings.trials} sweep.match={settings.match}",
            "there is no first point that the others could be like",
            "sweep.match=steps",
        )
    assert settings.trials is not None
    return Search(
        arguments.overrides,
        arguments.config_dir,
        backends,
        trials=settings.trials,
        minimise=settings.minimise,
    )


def report(
    points: Sequence[Point],
    exit_codes: Sequence[int | None],
    folder: Path,
    settings: SweepConfig,
    backends: Backends,
    notes: Sequence[str] = (),
) -> None:
    """Show all points of a sweep in one table and one plot."""
    from loopcoder.metrics.sweep import report_sweep
    from loopcoder.metrics.sweep_rows import SweptRun

    runs = [
        SweptRun(
            point.label,
            point.without_seed,
            point.config,
            point.run_dir,
            code,
            flops_per_token(point.config),
        )
        for point, code in zip(points, exit_codes, strict=True)
    ]
    if settings.match in _ALIKE:
        notes = [*notes, _alike(points, settings.match)]
    report_sweep(runs, folder, plot=backends.has("matplotlib"), notes=notes)


def _alike(points: Sequence[Point], match: Match) -> str:
    """Say how far the points have as many tokens or FLOPs as the first: steps are whole."""
    cost = {"tokens": tokens_per_step, "flops": flops_per_step}[match]
    planned = [cost(point.config) * point.config.train.max_steps for point in points]
    furthest = max(abs(one / planned[0] - 1) for one in planned)
    as_many = f"All points have as many {_ALIKE[match]} as {points[0].without_seed}"
    return f"{as_many}, to {furthest:.1%} in whole steps." if furthest > 0.001 else f"{as_many}."


def _places(settings: SweepConfig, backends: Backends) -> Callable[[Sequence[Point]], Places]:
    def found(points: Sequence[Point]) -> Places:
        if settings.at_once == 1 and settings.per_gpu == 1:
            return Places([], 1)  # a point sees what this process sees
        most = max(gpus_of(point.config.parallel) for point in points)
        return places(settings.at_once, settings.per_gpu, backends.gpu_count, most)

    return found
