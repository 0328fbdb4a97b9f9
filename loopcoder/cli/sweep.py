"""`loopcoder sweep`: every combination of some values, side by side or in turn, and one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from launch.sweep.bases import Bases
from launch.sweep.places import Places, gpus_of, places
from launch.sweep.points import Match, Point, Start, axes, points, preset_settings, sweep_folder
from launch.sweep.run import Sweep, sweep
from launch.sweep.search import Search
from launch.sweep.settings import SweepConfig
from loopcoder.backends import Backends, detect, refuse_missing
from loopcoder.cli.arguments import Arguments, fields_of, parse_arguments, say_aside, section_of
from loopcoder.cli.checks import check_folder, check_inputs
from loopcoder.cli.evaluate_tasks import SECTIONS, check_tasks
from loopcoder.cli.sweep_state import Board
from loopcoder.config.chat import CHECKPOINT
from loopcoder.config.data import DataConfig
from loopcoder.config.mixture import CHAT
from loopcoder.config.overrides import quoted
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_DONE, InputError, Problem
from loopcoder.plan.cost import flops_per_step, flops_per_token, tokens_per_step

HELP = """\
Train every combination of comma-separated values, and compare them.

usage: loopcoder sweep [sweep.KEY=VALUE ...] [--config-dir DIR] key=value1,value2 ...

  loopcoder sweep model.num_loops=1,2,3,4              on each GPU a point at a time
  loopcoder sweep sweep.per_gpu=2 optim.lr=1e-3,2e-3   two small models share a GPU
  loopcoder sweep sweep.at_once=2 seed=1,2,3,4         two at a time, without GPUs too
  loopcoder sweep sweep.match=flops variant=loops_1,loops_2,dense_2x
  loopcoder sweep experiment=matched_sft path=CHATS.jsonl
                                                       tune R = 1..4 alike, and compare them
  loopcoder sweep sweep.trials=30 'optim.lr=tag(log,interval(1e-4,1e-2))' model.num_loops=1,2

{fields}

tasks.*, human_eval.* and chat.* say how sweep.tasks are run (loopcoder evaluate --help).

The same command goes on after whatever ended it: points that are done are skipped, others continue
from their checkpoints, and those that failed are tried again, but for trials of a search. A point
that diverges or breaks does not stop the others; wrong input, a full disk and the like start no
more of them. All points have one seed, corpus and order of data unless these are swept.
`loopcoder train -m` goes in turn."""

_BEFORE = "before"
"""Folder of the sweep whose runs the points start from, in that of the sweep."""
_STORE = "checkpoint.store"
_SHARED = (
    *("model=", "model.", "variant=", "precision=", "precision.", "parallel=", "parallel."),
    *("hardware=", "hardware.", "logging=", "logging.", "seed=", "data.build.cache_dir="),
)
"""What is given for both sweeps; a store is for each another."""
_MATCHED = {"tokens": "tokens", "flops": "FLOPs"}


def run(argv: list[str]) -> int:
    """Run a sweep with places of its own."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help:
        print(HELP.format(fields=fields_of("sweep", SweepConfig)))
        return EXIT_DONE
    settings, others = settings_of(arguments.overrides, arguments.config_dir)
    if not settings.wait:
        raise InputError.of(
            "sweep.wait=false",
            "the points run here, as long as this command does",
            "loopcoder launch slurm sweep.wait=false ... submits jobs",
        )
    return run_sweep(Arguments(others, arguments.config_dir), settings)


def settings_of(overrides: Sequence[str], config_dir: Path | None) -> tuple[SweepConfig, list[str]]:
    """Return the section `sweep` of a command line and its presets, and the overrides of its
    points.

    Raises:
        InputError: about keys as they stand on the command line.
    """
    given = {o.partition("=")[0] for o in overrides}
    preset = preset_settings(overrides, config_dir)
    if "sweep.init_from" in given:  # in place of what is trained first
        given.add("sweep.before")
    preset = [o for o in preset if o.partition("=")[0] not in given]
    return section_of([*preset, *overrides], "sweep", SweepConfig)


def run_sweep(arguments: Arguments, settings: SweepConfig | None = None) -> int:
    """Run every point, then show all of them in one table and one plot.

    Args:
        settings: Where the points run and the rest of the section `sweep`; None: in turn, and as
            the presets say.
    """
    refuse_missing()
    backends = detect()
    if settings is None:
        preset = preset_settings(arguments.overrides, arguments.config_dir)
        settings = replace(section_of(preset, "sweep", SweepConfig)[0], at_once=1)
    _check_starts(settings)
    of_tasks = [o for o in arguments.overrides if o.startswith(SECTIONS)]
    rest = [o for o in arguments.overrides if o not in of_tasks]
    arguments = Arguments(rest, arguments.config_dir)
    needs_chats = _check_tasks(settings, of_tasks)
    start: Start | None = None
    if settings.init_from is not None:
        start = Bases.of_folder(Path(settings.init_from).expanduser()).run_like
    elif settings.before is not None:
        start, code = _run_before(arguments, settings, backends, needs_chats=needs_chats)
        if code != EXIT_DONE:
            return code
    search = None
    if settings.trials is not None:
        search = _search(arguments, settings, backends)
    with Board(backends) as board:
        done = sweep(
            arguments.overrides,
            arguments.config_dir,
            backends,
            partial(_check_point, backends=backends, needs_chats=needs_chats),
            _places(settings, backends),
            board.show,
            settings.match,
            search,
            start,
        )
    notes = [] if search is None else [best] if (best := search.best()) else []
    report(done.points, done.exit_codes, done.folder, settings, backends, notes)
    if settings.tasks is not None and done.code == EXIT_DONE:
        table = _evaluated(done, settings.tasks, of_tasks)
        print(f"\n{table}", flush=True)
        with (done.folder / "sweep.md").open("a", encoding="utf-8") as file:
            file.write(f"\n{table}\n")
    return done.code


def _check_starts(settings: SweepConfig) -> None:
    """Raise InputError where it is not clear what the points start from, or when they end."""
    if settings.init_from is not None and settings.before is not None:
        raise InputError.of(
            f"sweep.init_from={settings.init_from} and sweep.before={settings.before}",
            "the points start from the runs of one sweep",
            "one of them",
        )
    both = settings.init_from or settings.before
    if settings.trials is not None and (both or settings.tasks):
        raise InputError.of(
            f"sweep.trials={settings.trials} with {'sweep.tasks' if settings.tasks else both}",
            "a search draws its points, and has no run for each to start from, nor a last one",
            "every combination (commas in place of intervals), or checkpoint.init_from=RUN for all",
        )


def _check_tasks(settings: SweepConfig, of_tasks: Sequence[str]) -> bool:
    """Raise InputError for tasks that could not be run; return whether each point has to be tuned
    on conversations, which it is asked then."""
    if settings.tasks is None and of_tasks:
        raise InputError.of(
            f"{' '.join(of_tasks)} without sweep.tasks",
            "it is about tasks, and the points are put to none",
            "sweep.tasks=NAME besides, or leave it out",
        )
    if settings.tasks is None:
        return False
    return check_tasks(settings.tasks, of_tasks)


def _check_point(config: Config, backends: Backends, *, needs_chats: bool) -> None:
    check_folder(config, backends)
    _check_chats(config, needs_chats=needs_chats)


def _check_chats(config: Config, *, needs_chats: bool) -> None:
    """Raise InputError for a point that would have no held-out conversations to be asked."""
    mixed = any(stage.corpora for stage in config.data.stages) or bool(config.data.corpora)
    if needs_chats and not mixed and all(CHAT not in stage.mixture for stage in config.stages):
        raise InputError.of(
            "sweep.tasks=chat of a model that is trained on no conversations",
            "it is asked those that its corpus holds out",
            "chat.corpus=FOLDER of a corpus that data=chat built",
        )


def _run_before(
    arguments: Arguments, settings: SweepConfig, backends: Backends, *, needs_chats: bool
) -> tuple[Start, int]:
    """Train the sweep whose runs the points start from, and compare them.

    Returns what says which run a point starts from, and the exit code.

    Raises:
        InputError: a point of either sweep is wrong, before anything is trained.
    """
    config_dir = arguments.config_dir
    folder = sweep_folder(arguments.overrides, config_dir, settings.match) / _BEFORE
    shared = [o for o in arguments.overrides if o.lstrip("+~").startswith(_SHARED)]
    overrides = [f"experiment={settings.before}", *shared, f"run_dir={quoted(str(folder))}"]
    for given in axes(arguments.overrides, config_dir, [])[0]:
        if given.get_key_element() == _STORE and not given.is_sweep_override():
            below = f"{str(given.value()).rstrip('/')}/{_BEFORE}"
            overrides.append(f"{_STORE}={quoted(below)}")
    _, first = points(overrides, config_dir, backends)
    start = Bases.of_points(folder, first).run_like
    _, own = points(arguments.overrides, config_dir, backends, settings.match, start=start)
    _check_data(own, needs_chats=needs_chats)
    rest = replace(settings, before=None, init_from=None, tasks=None, match="steps")
    return start, run_sweep(Arguments(overrides, config_dir), rest)


def _check_data(points: Sequence[Point], *, needs_chats: bool) -> None:
    """Raise InputError for what the points would read and is not there, as far as that needs no run
    that they start from."""
    from data_pipeline.driver import check_input, check_sources

    problems: dict[Problem, None] = {}
    checked: list[DataConfig] = []
    for point in points:
        data = point.config.data
        is_encoded = data.build.tokenizer != CHECKPOINT  # which is not there yet
        try:
            check_inputs(point.config)
            _check_chats(point.config, needs_chats=needs_chats)
            if data not in checked:
                checked.append(data)
                (check_input if is_encoded else check_sources)(data, say_aside)
        except InputError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise InputError([*problems])


def _evaluated(done: Sweep, tasks: str, of_tasks: Sequence[str]) -> str:
    """Put the trained points to tasks, each by the name of its folder; return the table."""
    from loopcoder.cli.evaluate_tasks import evaluate_tasks
    from loopcoder.evaluate.results import markdown_table

    checkpoints = [f"checkpoint={point.run_dir}" for point in done.points]
    output = f"output={done.folder / 'evaluation'}"
    return markdown_table(evaluate_tasks([*checkpoints, f"tasks={tasks}", output, *of_tasks]))


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
    if settings.match in _MATCHED:
        notes = [*notes, _alike(points, settings.match)]
    report_sweep(runs, folder, plot=backends.has("matplotlib"), notes=notes)


def _alike(points: Sequence[Point], match: Match) -> str:
    """Say how far the points have as many tokens or FLOPs as the first: steps are whole."""
    cost = {"tokens": tokens_per_step, "flops": flops_per_step}[match]
    planned = [cost(point.config) * point.config.train.max_steps for point in points]
    furthest = max(abs(one / planned[0] - 1) for one in planned)
    as_many = f"All points have as many {_MATCHED[match]} as {points[0].without_seed}"
    return f"{as_many}, to {furthest:.1%} in whole steps." if furthest > 0.001 else f"{as_many}."


def _places(settings: SweepConfig, backends: Backends) -> Callable[[Sequence[Point]], Places]:
    def found(points: Sequence[Point]) -> Places:
        if settings.at_once == 1 and settings.per_gpu == 1:
            return Places([], 1)  # a point sees what this process sees
        most = max(gpus_of(point.config.parallel) for point in points)
        return places(settings.at_once, settings.per_gpu, backends.gpu_count, most)

    return found
