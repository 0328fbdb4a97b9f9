"""`loopcoder doctor`: what this machine has, and whether a config fits it."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from loopcoder.backends import detect
from loopcoder.cli.arguments import composed, parse_arguments
from loopcoder.config.check import check
from loopcoder.config.compose import conf_dir
from loopcoder.config.resolve import processes_to_start
from loopcoder.errors import EXIT_DONE

HELP = """\
Show what this machine has, and whether a config fits it.

usage: loopcoder doctor [key=value ...]

  loopcoder doctor model=plt_7b precision=fp8_tensorwise parallel=tp2"""


def run(argv: list[str]) -> int:
    """Print a table of this machine; raise InputError where the config does not fit it."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    backends = detect()
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"{'python':<18}  {platform.python_version()} {sys.executable}")
    print(f"{'cpu':<18}  {cores} cores, {memory_bytes / 2**30:.1f} GiB memory")
    print(f"{'disk':<18}  {shutil.disk_usage('.').free / 2**30:.1f} GiB free here")
    print(f"{'presets':<18}  {conf_dir()}")
    print(backends.table())
    config = composed(arguments, backends)
    size = processes_to_start(config, backends)
    check(config, size, backends)
    print(
        f"\n{config.model.name} with precision={config.precision.name}, "
        f"model.layer_spec={config.model.layer_spec} fits on "
        f"{size} process{'' if size == 1 else 'es'}"
    )
    return EXIT_DONE
