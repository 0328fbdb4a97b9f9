"""`loopcoder doctor`: what this machine has, and whether a run can start and fits."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from loopcoder.backends import detect, refuse_missing
from loopcoder.checkpoint.copies.stored import open_store
from loopcoder.checkpoint.pinned import pinned_corpus
from loopcoder.checkpoint.start import early_notes, unused_origin
from loopcoder.cli.arguments import composed, parse_arguments
from loopcoder.cli.checks import check_config
from loopcoder.config.compose import conf_dir
from loopcoder.config.resolve import processes_to_start
from loopcoder.data.corpus import load_corpus
from loopcoder.errors import EXIT_DONE, counted
from loopcoder.plan.device import device_memory
from loopcoder.plan.fit import check_memory
from loopcoder.plan.memory import planned_vocabulary
from loopcoder.plan.table import disk_warning, rows
from loopcoder.storage.files import in_words

HELP = """\
Show what this machine has, what a run would take, and whether it can start and fits.

usage: loopcoder doctor [key=value ...]

  loopcoder doctor model=plt_7b precision=fp8_tensorwise parallel=tp2

Weights, gradients and optimizer are exact; activations are an estimate. Nothing is built."""


def run(argv: list[str]) -> int:
    """Print a table of this machine and one of the run; raise InputError where `train` would refuse
    it at the start."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    backends = detect()
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"{'python':<18}  {platform.python_version()} {sys.executable}")
    print(f"{'cpu':<18}  {counted(cores, 'core')}, {memory_bytes / 2**30:.1f} GiB memory")
    print(f"{'disk':<18}  {shutil.disk_usage('.').free / 2**30:.1f} GiB free here")
    print(f"{'presets':<18}  {conf_dir()}")
    print(backends.table())
    refuse_missing()
    config = composed(arguments, backends)
    size = processes_to_start(config, backends)
    check_config(config, size, backends)

    from data_pipeline.cache import cache_size
    from data_pipeline.driver import check_input

    run_dir = Path(str(config.run_dir))
    if unused := unused_origin(config, run_dir):
        print(unused)
    pinned = pinned_corpus(config, run_dir, print)
    if pinned is None:
        check_input(config.data)
    else:
        load_corpus(pinned, "size")
    if config.checkpoint.store is not None:
        open_store(config.checkpoint.store).try_out()
    vocab_size, device = planned_vocabulary(config), device_memory(backends, size)
    cache = Path(config.data.build.cache_dir).expanduser()
    corpora = ("corpora", f"{in_words(cache_size(cache))} in {cache} (loopcoder data list)")
    print(f"\n{_table([*rows(config, vocab_size, size, run_dir, device), corpora])}\n")
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
    return EXIT_DONE


def _table(lines: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<18}  {value}" for name, value in lines)
