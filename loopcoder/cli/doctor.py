"""`loopcoder doctor`: what this machine has, and whether a run can start and fits."""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from launch.nodes import meeting_point
from launch.slurm_env import adopt_slurm
from loopcoder.backends import Backends, detect, refuse_missing
from loopcoder.checkpoint.copies.stored import open_store
from loopcoder.checkpoint.pinned import pinned_corpus
from loopcoder.checkpoint.start import early_notes, unused_origin
from loopcoder.cli.arguments import Arguments, composed, parse_arguments, rank
from loopcoder.cli.checks import check_config
from loopcoder.cli.examination import Examined, hangs, look_at_node, measure, place, time_limit
from loopcoder.cli.findings import in_table, to_json
from loopcoder.cli.own_tokenizer import with_own_tokenizer
from loopcoder.config.compose import conf_dir
from loopcoder.config.resolve import processes_to_start
from loopcoder.config.schema import Config
from loopcoder.data.corpus import load_corpus
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_DONE, LoopcoderError, counted
from loopcoder.plan.device import device_memory
from loopcoder.plan.fit import check_memory
from loopcoder.plan.memory import planned_vocabulary
from loopcoder.plan.table import disk_warning, rows
from loopcoder.storage.files import in_words

HELP = """\
Look at this machine, or at all nodes of a job, and at what a run would take and whether it can
start and fits. It takes less than a minute, whatever hangs.

usage: loopcoder doctor [--json] [key=value ...]

  loopcoder doctor model=plt_7b precision=fp8_tensorwise parallel=tp2
  loopcoder doctor parallel.nodes=2 parallel.rendezvous=HOST:29500    on each of two nodes, at once
  srun loopcoder doctor                                               on all nodes of a job

  --json    one object for machines (docs/doctor.md)

Every finding is ok, a note, a warning or an error, and the last three come with what mends them.
exit codes: 0 nothing worse than a warning, 3 an error.

Weights, gradients and optimizer are exact; activations are an estimate. Nothing is built."""
_JSON = "--json"


def run(argv: list[str]) -> int:
    """Print a table of this machine, one of the run, and what was found; raise InputError where
    `train` would refuse it at the start."""
    began = time.monotonic()
    arguments = parse_arguments([a for a in argv if a != _JSON], takes=[_JSON])
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    adopt_slurm(os.environ)
    as_json, told = _JSON in argv, _Told()
    with redirect_stdout(io.StringIO()) if as_json or rank() > 0 else nullcontext():
        _look(arguments, began, told)
    if as_json and rank() == 0:
        print(json.dumps(to_json(told.examined, told.run, told.refused, time.monotonic() - began)))
    if told.refused is None:
        return EXIT_BAD_INPUT if told.examined.level == "error" else EXIT_DONE
    if as_json:
        return told.refused.exit_code
    raise told.refused


@dataclass
class _Told:
    """What was found, and why the run was refused."""

    examined: Examined = field(default_factory=lambda: Examined([]))
    run: dict[str, str] = field(default_factory=dict)
    refused: LoopcoderError | None = None


def _look(arguments: Arguments, began: float, told: _Told) -> None:
    """Look at the machine, then at the run, then measure; print each, and note it in `told`."""
    backends = detect()
    _show_machine(backends)
    try:
        refuse_missing()
        config = composed(arguments, backends)
        if "RANK" not in os.environ and config.parallel.nodes > 1:
            meeting_point(config.parallel)
        size = _processes(config, backends)
    except LoopcoderError as error:
        told.refused = error
        return
    at = place(config, size)
    node = look_at_node(config, backends, at)
    told.examined.nodes = [] if node is None else [node]
    # its disks would hang what follows as well; other ranks leave it to the first of a machine
    if node is not None and not hangs(node):
        # before the time limit: importing takes long on a busy machine, and is no disk that hangs
        import data_pipeline.cache
        import data_pipeline.driver  # noqa: F401

        try:
            with time_limit():
                told.run = _show_run(config, backends, size)
        except LoopcoderError as error:
            told.refused = error
    if told.refused is None:
        told.examined = measure(config, backends, at, node, began)
    print(f"\n{in_table(told.examined)}")


def _processes(config: Config, backends: Backends) -> int:
    """Return the number of processes of the run."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return processes_to_start(config, backends)


def _show_machine(backends: Backends) -> None:
    """Print what this machine has."""
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"{'python':<18}  {platform.python_version()} {sys.executable}")
    print(f"{'cpu':<18}  {counted(cores, 'core')}, {memory_bytes / 2**30:.1f} GiB memory")
    print(f"{'disk':<18}  {shutil.disk_usage('.').free / 2**30:.1f} GiB free here")
    print(f"{'presets':<18}  {conf_dir()}")
    print(backends.table())


def _show_run(config: Config, backends: Backends, size: int) -> dict[str, str]:
    """Print what a run takes and whether it can start; return the table.

    Raises InputError where `train` would refuse it.
    """
    check_config(config, size, backends)

    from data_pipeline.cache import cache_size
    from data_pipeline.driver import check_input

    run_dir = Path(str(config.run_dir))
    if unused := unused_origin(config, run_dir):
        print(unused)
    pinned = pinned_corpus(config, run_dir, print)
    if pinned is None:
        check_input(with_own_tokenizer(config).data)
    else:
        load_corpus(pinned, "size")
    if config.checkpoint.store is not None:
        open_store(config.checkpoint.store).try_out()
    vocab_size, device = planned_vocabulary(config), device_memory(backends, size)
    cache = Path(config.data.build.cache_dir).expanduser()
    corpora = ("corpora", f"{in_words(cache_size(cache))} in {cache} (loopcoder data list)")
    table = [*rows(config, vocab_size, size, run_dir, device), corpora]
    print(f"\n{_table(table)}\n")
    warning = check_memory(config, vocab_size, size, device)
    processes = counted(size, "process")
    what = f"{config.model.name} with precision={config.precision.name}, "
    what += f"model.layer_spec={config.model.layer_spec}"
    if device is None:
        print(f"{what} can start on {processes}; how much memory there is, is unknown")
    elif warning is None:
        print(f"{what} fits on {processes}, by the estimate above")
    else:
        print(f"{what} can start on {processes}\n{warning}")
    for note in early_notes(config, run_dir):
        print(note)
    if too_little := disk_warning(config, vocab_size, run_dir):
        print(too_little)
    return {name.strip(): value for name, value in table}


def _table(lines: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<18}  {value}" for name, value in lines)
