"""`loopcoder train`: the road from overrides to a running train loop.

torch is imported only after the corpus is built: the data pipeline starts processes, and a process
that was started after torch was imported can hang.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from launch.killed import kernel_kills, kill_named, worker_killed
from launch.nodes import meeting_point, refuse_other_launch
from launch.slurm_env import adopt_slurm
from launch.sweep.points import points
from launch.sweep.processes import FIRST_VARIABLE
from launch.torchrun import (
    CONFIG_VARIABLE,
    HASH_VARIABLE,
    OVERRIDES_VARIABLE,
    start_workers,
)
from loopcoder.backends import Backends, detect, refuse_missing
from loopcoder.checkpoint.copies.early import bring_back
from loopcoder.checkpoint.copies.lacking import copy_rest
from loopcoder.checkpoint.pinned import pinned_corpus
from loopcoder.checkpoint.pruning import prune_reporting
from loopcoder.checkpoint.rebuilt import refuse_other_tokens
from loopcoder.checkpoint.rewind import with_rewinds
from loopcoder.checkpoint.start import (
    Reached,
    check_start,
    early_notes,
    find_start,
    finished_at,
    unused_origin,
    with_kept_reader,
)
from loopcoder.cli.arguments import Arguments, cache_for, composed, parse_arguments, rank, say
from loopcoder.cli.checks import check_config, check_folder, check_services
from loopcoder.cli.overview import overview
from loopcoder.cli.own_tokenizer import with_own_tokenizer
from loopcoder.cli.sweep import run_sweep
from loopcoder.config.compose import conf_dir, group_options, preset_dirs, to_yaml
from loopcoder.config.resolve import processes_to_start
from loopcoder.config.schema import Config
from loopcoder.data.check_packed import check_packed
from loopcoder.data.corpus import Corpus, Verify, load_corpus, opening, with_reader
from loopcoder.data.own_sets import open_own_sets
from loopcoder.errors import EXIT_DONE, EXIT_NO_RETRY, EXIT_RETRY, counted
from loopcoder.metrics.summary import print_finished
from loopcoder.metrics.writer import append_event
from loopcoder.plan.fit import check_run, needs
from loopcoder.storage.folders import folder_for
from loopcoder.storage.run_lock import refuse_second
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

BEGAN_VARIABLE = "LOOPCODER_BEGAN"
"""When the command was started, on the monotonic clock of the machine."""

HELP = """\
Train a model. Without arguments: a tiny one, on text and code that are already on this machine.

usage: loopcoder train [-m] [--config-dir DIR] [--print-config] [key=value ...]

  loopcoder train                                  the tiny preset; some minutes on two CPU cores
  loopcoder train model=plt_1b precision=bf16      presets: a group and one of its options
  loopcoder train model.num_loops=3 train.max_steps=1000 seed=7
                                                   single values, by their dotted names
  loopcoder train data=files path=~/src            your own folder of text and code
  loopcoder train 'data.mixture={{text:1,code:3}}'   a mapping; quoted, because shells read braces
  loopcoder train parallel=tp2 parallel.nproc_per_node=4
                                                   two copies of the model, each on two processes
  loopcoder train -m model.num_loops=1,2,3,4       one run after the other; one table, one plot
  loopcoder train -m experiment=loop_sweep         what loops bring: R = 1 to 4 and controls, seeds
  loopcoder train run_dir=DIR                      where everything is written; the same command
                                                   again continues from the newest checkpoint
  loopcoder train name=first                       the folder is then runs/first-<hash>

a run that is there, with its other settings as they were:
  loopcoder train run_dir=DIR train.max_steps=4000
                                                   train it further
  loopcoder train checkpoint.init_from=DIR run_dir=ANOTHER
                                                   branch: another run from its newest weights
  loopcoder train checkpoint.init_from=DIR/checkpoints/step_00001000 run_dir=ANOTHER \\
      checkpoint.init_optimizer=true checkpoint.init_position=true train.max_steps=1200 \\
      optim=adam_wsd optim.schedule.decay_steps=200
                                                   decay a branch: 200 steps from step 1000 on,
                                                   which checkpoint.keep_every=1000 has kept

groups and their presets:
{groups}

  -m, --multirun     several runs: every combination of the comma-separated values
  --config-dir DIR   presets of your own, in a folder laid out as the groups above
  --print-config     show the resolved and checked configuration (of each point) and stop

torchrun and srun start one `python -m loopcoder train ...` per process; without them loopcoder
starts parallel.nproc_per_node processes itself.
exit codes: 0 done, 3 bad configuration or input, 75 start the same command again, 76 do not."""


def run(argv: list[str]) -> int:
    """Train, or start the processes that do; with -m one run after the other."""
    arguments = parse_arguments(argv)
    if arguments.help:
        print(HELP.format(groups=_presets(arguments.config_dir)))
        return EXIT_DONE
    if arguments.multirun:
        return _show_points(arguments) if arguments.print_config else run_sweep(arguments)
    return _train(arguments)


def _show_points(arguments: Arguments) -> int:
    """Print the checked config of every point of a sweep."""
    backends = detect()
    found = points(arguments.overrides, arguments.config_dir, backends)[1]
    for point in found:
        check_folder(point.config, backends)
    for point in found:
        print(f"# {point.label}\n{to_yaml(point.config)}---")
        _print_aside(early_notes(point.config, Path(str(point.config.run_dir))), f"{point.label}: ")
    return EXIT_DONE


def _print_aside(notes: Sequence[str], before: str = "") -> None:
    """Print notes where a printed configuration stays what it is."""
    for note in notes:
        print(f"{before}{note}", file=sys.stderr)


def _presets(config_dir: Path | None) -> str:
    """Return the lines of the help on presets: a line per group, and the user's own by themselves.

    Raises InputError if there is no such folder.
    """
    ours = group_options([conf_dir()])
    width = max(map(len, ours))
    lines = [
        textwrap.fill(
            ", ".join(names),
            width=100,
            initial_indent=f"  {group:<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for group, names in ours.items()
    ]
    if config_dir is None:
        return "\n".join(lines)
    lines.append(f"\nyour own, of {config_dir}:")
    for group, names in group_options(preset_dirs(config_dir)).items():
        if own := [name for name in names if name not in ours.get(group, ())]:
            lines.append(f"  {group:<{width}}  {', '.join(own)}")
    return "\n".join(lines)


def _train(arguments: Arguments) -> int:
    _note_beginning()
    interrupted_by_signals("before the first step; the same command continues")
    # Read when CUDA starts: kernels then run in the order of their launches, on which megatron-core
    # relies to put communication under computation.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    _have_a_user_name()
    refuse_missing()
    backends = detect()
    config = composed(arguments, backends)
    os.environ.setdefault(OVERRIDES_VARIABLE, shlex.join(arguments.asked))
    adopt_slurm(os.environ)
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if launched:
        refuse_other_launch(config.parallel, os.environ)
    elif config.parallel.nodes > 1:
        meeting_point(config.parallel)
    size = int(os.environ["WORLD_SIZE"]) if launched else processes_to_start(config, backends)
    check_config(config, size, backends)
    run_dir = Path(str(config.run_dir))
    as_composed = config
    config = with_rewinds(config, run_dir)
    if arguments.print_config:
        print(to_yaml(as_composed), end="")
        _print_aside(early_notes(config, run_dir))
        return EXIT_DONE
    may_not_fit = check_run(config, size, backends)
    with ExitStack() as made:
        one_node = config.parallel.nodes == 1
        if rank() == 0 and (launched or one_node):
            refuse_second(run_dir)
        is_coming = _bring_back(config, run_dir, made, decides=launched or one_node)
        # of several processes that do not come from here rank 0 decides, once they have met
        decides = not (launched and size > 1) and one_node and not is_coming
        if decides and (done := finished_at(config, run_dir)) is not None:
            if unused := unused_origin(config, run_dir):
                say(unused)
            if rank() == 0:
                _conclude(config, run_dir, done)
            return EXIT_DONE
        check_services(config)
        if rank() == 0:
            made.enter_context(folder_for(run_dir, "run_dir"))
            made.enter_context(cache_for(config.data))
        if CONFIG_VARIABLE not in os.environ or HASH_VARIABLE in os.environ:
            shown = _without_unused_origin(config, run_dir)
            asked = shlex.split(os.environ[OVERRIDES_VARIABLE])
            say(f"{backends.table()}\n\n{overview(shown, asked, size)}")
            say(f"run_dir    {run_dir} (the whole configuration is in its config.yaml)\n")
            if not launched and size // config.parallel.nodes < backends.gpu_count:
                batch, micro = config.train.global_batch_size, config.train.micro_batch_size
                gpus = f"using {size // config.parallel.nodes} of {backends.gpu_count} GPUs"
                say(f"{gpus}: {counted(batch, 'sequence')} per step, {micro} at once")
            for note in [may_not_fit, *early_notes(config, run_dir)] if rank() == 0 else []:
                if note is not None:
                    say(note)
        return _start(config, backends, run_dir, size, launched=launched)


def _conclude(config: Config, run_dir: Path, done: Reached) -> None:
    """Complete what a run with nothing left to train was killed over, and say how good it was."""
    report = partial(append_event, run_dir)
    for _ in copy_rest(config.checkpoint, run_dir, say, report, done.spared):
        pass
    prune_reporting(run_dir / "checkpoints", done.kept, done.spared, done.step, report)
    print_finished(run_dir, done.step, config.train.max_steps, done.max_steps)


def _bring_back(config: Config, run_dir: Path, made: ExitStack, *, decides: bool) -> bool:
    """Fetch what a start looks at from the store of a run whose folder is lost or has fallen
    behind; return whether it goes on from there."""
    if config.checkpoint.store is None:
        return False
    if rank() == 0:
        made.enter_context(folder_for(run_dir, "run_dir"))
    is_coming = bring_back(config.checkpoint, run_dir, say, decides=decides and rank() == 0)
    if is_coming:
        check_start(config, run_dir)
    return is_coming


def _start(config: Config, backends: Backends, run_dir: Path, size: int, *, launched: bool) -> int:
    """Get the corpus, then train in this process or in processes of their own."""
    config, corpus = _opened(config, run_dir)
    check_packed(config, corpus)
    if rank() == 0:  # whose view of the folder counts
        check_start(config, run_dir, corpus)  # before anything is written or started
    find_start(config, run_dir, loads=True)  # which may take long, so before the ranks meet
    is_first = rank() == 0 and config.data.verify != "size"
    open_own_sets(config, corpus, "hash" if is_first else "size")
    if not launched and size > 1:
        kills = kernel_kills()
        code = start_workers(config, size)  # which inherit the overrides
        estimate = partial(needs, config, size, backends)
        if named := kill_named(worker_killed(code), kills, estimate):
            print(named, file=sys.stderr)
            # memory is short again; whoever else kills a process, a node that fails with it
            # included, leaves checkpoints to continue from
            return EXIT_NO_RETRY if kernel_kills() > kills else EXIT_RETRY
        return code
    if not launched:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}

    with ended_at_once():
        from loopcoder.train.provenance import Launch
        from loopcoder.train.world import train

    overrides = tuple(shlex.split(os.environ[OVERRIDES_VARIABLE]))
    began = float(os.environ[BEGAN_VARIABLE])
    launch = Launch(overrides, is_point=FIRST_VARIABLE in os.environ, began=began)
    return train(config, corpus, backends, run_dir, launch)


def _opened(config: Config, run_dir: Path) -> tuple[Config, Corpus]:
    """Open the corpus of a run, after building it if need be; return the config with the reader
    that it has."""
    from data_pipeline.driver import prepare

    first = os.environ.get(FIRST_VARIABLE)
    sibling = Path(first) if first else None
    pinned = pinned_corpus(config, run_dir, say, sibling=sibling)
    start = find_start(config, run_dir)
    own = start.checkpoint if start is not None else None
    building = config if pinned is not None else with_own_tokenizer(config, own)
    refuse = partial(refuse_other_tokens, building, run_dir)
    config = with_kept_reader(config, start, sibling)

    def opened(verify: Verify) -> Corpus:
        if pinned is not None:
            return load_corpus(pinned, verify)
        return prepare(building.data, report=say, verify=verify, before_build=refuse)

    verify = opening(config.data) if rank() == 0 else "size"
    corpus = opened(verify)
    config = with_reader(config, corpus)
    if verify != "size" and opening(config.data) != verify:
        corpus = opened(opening(config.data))  # its reader compares nothing itself
    return config, corpus


def _without_unused_origin(config: Config, run_dir: Path) -> Config:
    """Leave out of what is shown where weights come from, if they are the run's own."""
    start = find_start(config, run_dir)
    if start is None or not start.resumes:
        return config
    return replace(config, checkpoint=replace(config.checkpoint, init_from=None))


def _note_beginning() -> None:
    """Note when the command began, for the account of a run's time; workers have it from their
    parent, unless torchrun starts them again."""
    is_worker = CONFIG_VARIABLE in os.environ and BEGAN_VARIABLE in os.environ
    if not is_worker or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        os.environ[BEGAN_VARIABLE] = str(time.monotonic())


def _have_a_user_name() -> None:
    """Call this user by a number where nothing has a name: torch names folders by its user."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
