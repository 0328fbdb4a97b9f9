"""The command line: verbs, the road from overrides to a running train loop, and exit codes.

torch is imported only after the corpus is built: the data pipeline starts processes, and a process
that was started after torch was imported can hang.
"""

from __future__ import annotations

import difflib
import os
import platform
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from launch.slurm_env import adopt_slurm
from launch.torchrun import CONFIG_VARIABLE, record_exit, start_workers
from loopcoder.backends import Backends, detect
from loopcoder.config.check import check
from loopcoder.config.compose import (
    compose,
    conf_dir,
    config_hash,
    group_options,
    load_config,
    resolve_run_dir,
    to_yaml,
)
from loopcoder.config.resolve import processes_to_start, resolve
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_DONE, EXIT_RETRY, InputError, LoopcoderError, Preempted

USAGE = """\
loopcoder trains looped code models (Parallel Loop Transformers) on Megatron-core.

usage: loopcoder VERB [key=value ...]

{verbs}

`loopcoder train --help` explains overrides with examples."""

TRAIN_HELP = """\
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
  loopcoder train run_dir=DIR                      where everything is written; the same command
                                                   again continues from the newest checkpoint

groups and their presets:
{groups}

  -m, --multirun     several runs: every combination of the comma-separated values
  --config-dir DIR   presets of your own, in a folder laid out as the groups above
  --print-config     show the resolved configuration and stop

torchrun and srun start one `python -m loopcoder train ...` a process; without them loopcoder starts
parallel.nproc_per_node processes itself.
exit codes: 0 done, 3 bad configuration or input, 75 start the same command again, 76 do not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors meant for the user print no traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
    except LoopcoderError as error:
        code = error.exit_code
        _print_error(error)
    except KeyboardInterrupt:
        code = EXIT_RETRY
    except Exception:
        traceback.print_exc()
        code = 1
    record_exit(code)
    return code


@dataclass(frozen=True)
class Verb:
    """One thing that `loopcoder` can do."""

    run: Callable[[list[str]], int]
    help: str


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "help"
    if name in ("-h", "--help"):
        name = "help"
    if name not in VERBS:
        nearest = difflib.get_close_matches(name, VERBS, n=1) or ["help"]
        raise InputError.of(
            f"loopcoder {name}",
            f"so far the verbs are {', '.join(VERBS)}",
            f"loopcoder {nearest[0]}",
        )
    return VERBS[name].run(arguments[1:])


def _print_error(error: LoopcoderError) -> None:
    """Print the whole message on rank 0 and one line on every other rank."""
    rank = _rank()
    if rank > 0:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"loopcoder: rank {rank}: {first}", file=sys.stderr)
    elif isinstance(error, InputError) and len(error.problems) > 1:
        numbered = "\n".join(f"{i}. {p}" for i, p in enumerate(error.problems, 1))
        print(f"loopcoder: {len(error.problems)} problems\n{numbered}", file=sys.stderr)
    else:
        print(f"loopcoder: {error}", file=sys.stderr)


@dataclass(frozen=True)
class Arguments:
    """What stood behind a verb."""

    overrides: list[str]
    config_dir: Path | None = None
    multirun: bool = False
    print_config: bool = False
    help: bool = False


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Split options from overrides. Raises InputError for an unknown option."""
    found = Arguments([])
    rest = iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if argument in ("-h", "--help"):
            found = replace(found, help=True)
        elif argument in ("-m", "--multirun"):
            found = replace(found, multirun=True)
        elif argument == "--print-config":
            found = replace(found, print_config=True)
        elif name == "--config-dir":
            folder = value if has_value else next(rest, "")
            if not folder:
                raise InputError.of("--config-dir", "it needs a folder", "--config-dir DIR")
            found = replace(found, config_dir=Path(folder).expanduser())
        elif argument.startswith("-"):
            raise InputError.of(
                argument,
                "the options are -m, --config-dir DIR, --print-config and --help; "
                "everything else is key=value",
                f"{argument.lstrip('-').replace('-', '_')}=VALUE, or loopcoder train --help",
            )
        else:
            found.overrides.append(argument)
    return found


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _say(text: str) -> None:
    if _rank() == 0:
        print(text, flush=True)


def _composed(arguments: Arguments, backends: Backends) -> Config:
    """Compose the config, or load the one that our own launcher composed for its workers."""
    handed = os.environ.get(CONFIG_VARIABLE)
    if handed is None:
        return resolve(compose(arguments.overrides, arguments.config_dir), backends)
    if arguments.overrides:
        raise InputError.of(
            f"{CONFIG_VARIABLE}={handed} and {' '.join(arguments.overrides)}",
            "the variable names a finished config, so the overrides would have no effect",
            f"unset {CONFIG_VARIABLE}",
        )
    return resolve(load_config(Path(handed)), backends)


def _train(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    if arguments.help:
        options = group_options([conf_dir()]).items()
        width = max(len(group) for group, _ in options)
        groups = "\n".join(f"  {group:<{width}}  {', '.join(names)}" for group, names in options)
        print(TRAIN_HELP.format(groups=groups))
        return EXIT_DONE
    if arguments.multirun:
        return _sweep(arguments)

    _stop_on_signals()
    # Read when CUDA starts: kernels then run in the order of their launches, on which megatron-core
    # relies to put communication under computation.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    backends = detect()
    config = _composed(arguments, backends)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return EXIT_DONE
    adopt_slurm(os.environ)
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if launched else processes_to_start(config, backends)
    check(config, size, backends)
    run_dir = resolve_run_dir(config)
    if CONFIG_VARIABLE not in os.environ:
        _say(f"{backends.table()}\n\n{to_yaml(config)}")
        _say(f"config {config_hash(config)}, {_count(size, 'process')}, run_dir={run_dir}")
        if not launched and size < backends.gpu_count:
            batch, micro = config.train.global_batch_size, config.train.micro_batch_size
            _say(
                f"using {size} of {backends.gpu_count} GPUs: "
                f"{batch} sequences a step, {micro} at once"
            )

    from data_pipeline.driver import prepare

    corpus = prepare(config.data, report=_say, verify="hash" if _rank() == 0 else "size")
    if not launched and size > 1:
        return start_workers(replace(config, run_dir=str(run_dir)), size)
    if not launched:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}

    from loopcoder.train.loop import train

    return train(config, corpus, backends, run_dir)


def _sweep(arguments: Arguments) -> int:
    """Run every point of a sweep, then show all of them in one table and one plot."""
    from launch.sweep import sweep
    from loopcoder.metrics.sweep import SweptRun, report_sweep

    backends = detect()
    done = sweep(arguments.overrides, arguments.config_dir, backends)
    runs = [
        SweptRun(point.label, point.config.model.num_loops, point.run_dir, code)
        for point, code in zip(done.points, done.exit_codes, strict=True)
    ]
    report_sweep(runs, done.folder, plot=backends.has("matplotlib"))
    return done.code


def _stop_on_signals() -> None:
    """End with 75 when asked to stop before the train loop listens for itself."""
    starter = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != starter:  # a forked worker of the data pipeline ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Preempted(f"{signal.Signals(number).name} before the first step")

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 'es'}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


DATA_HELP = """\
Build the corpus of a run, or find it already built, and print its folder.

usage: loopcoder data [--config-dir DIR] [key=value ...]
       loopcoder data validate DIR
       loopcoder data report DIR
       loopcoder data train-langid PATH... --out FILE
       loopcoder data audit PATH... [--model FILE]

  loopcoder data data=files path=~/src              a folder; the same command again continues
  loopcoder data data=packages model=plt_7b         real text and code from Debian and npm packages
  loopcoder data data=files path=DIR data.shares=published data.executor.workers=16

  validate      compare a finished corpus with its manifest and with what training relies on
  report        write its report for people, report.html, anew
  train-langid  train the model that tells the language of code without a name
  audit         compare the languages of code with Magika's, on a sample"""


def _data(argv: list[str]) -> int:
    if argv and argv[0] in _DATA_VERBS:
        return _DATA_VERBS[argv[0]](argv[1:])
    arguments = parse_arguments(argv)
    if arguments.help:
        print(DATA_HELP)
        return EXIT_DONE
    config = _composed(arguments, detect())
    from data_pipeline.driver import prepare

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        corpus = prepare(config.data, report=report)
    except KeyboardInterrupt:
        report("data: stopped; the same command continues with what is not done yet")
        raise
    print(corpus.dir)
    return EXIT_DONE


def _corpus_folder(verb: str, argv: list[str]) -> Path | None:
    """Return the one folder that a verb of `data` is given; None: its help was asked for."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: loopcoder data {verb} DIR")
        return None
    if len(argv) != 1 or argv[0].startswith("-"):
        raise InputError.of(
            f"loopcoder data {verb} {' '.join(argv)}",
            "it takes the folder of a finished corpus and nothing else",
            f"loopcoder data {verb} DIR",
        )
    return Path(argv[0]).expanduser()


def _data_validate(argv: list[str]) -> int:
    folder = _corpus_folder("validate", argv)
    if folder is None:
        return EXIT_DONE
    from data_pipeline.shuffle.validate import validate_corpus

    problems = validate_corpus(folder)
    if problems:
        raise InputError(problems)
    print(f"{folder} is sound")
    return EXIT_DONE


def _data_report(argv: list[str]) -> int:
    folder = _corpus_folder("report", argv)
    if folder is None:
        return EXIT_DONE
    from data_pipeline.finish import report_of

    print(report_of(folder))
    return EXIT_DONE


def _data_train_langid(argv: list[str]) -> int:
    from data_pipeline.tools.train_langid import main as train_langid

    return train_langid(argv)


def _data_audit(argv: list[str]) -> int:
    from data_pipeline.tools.audit_langid import main as audit

    return audit(argv)


_DATA_VERBS = {
    "validate": _data_validate,
    "report": _data_report,
    "train-langid": _data_train_langid,
    "audit": _data_audit,
}


def _doctor(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    if arguments.help:
        print(
            "Show what this machine has, and whether a config fits it.\n\n"
            "usage: loopcoder doctor [key=value ...]\n\n"
            "  loopcoder doctor model=plt_7b precision=fp8_tensorwise parallel=tp2"
        )
        return EXIT_DONE
    backends = detect()
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"{'python':<18}  {platform.python_version()} {sys.executable}")
    print(f"{'cpu':<18}  {cores} cores, {memory_bytes / 2**30:.1f} GiB memory")
    print(f"{'disk':<18}  {shutil.disk_usage('.').free / 2**30:.1f} GiB free here")
    print(f"{'presets':<18}  {conf_dir()}")
    print(backends.table())
    config = _composed(arguments, backends)
    size = processes_to_start(config, backends)
    check(config, size, backends)
    print(
        f"\n{config.model.name} with precision={config.precision.name}, "
        f"model.layer_spec={config.model.layer_spec} fits on {size} processes"
    )
    return EXIT_DONE


def _help(argv: list[str]) -> int:
    if argv and argv[0] in VERBS and argv[0] != "help":
        return VERBS[argv[0]].run(["--help"])
    print(USAGE.format(verbs="\n".join(f"  {name:<8} {verb.help}" for name, verb in VERBS.items())))
    return EXIT_DONE


VERBS = {
    "train": Verb(_train, "train a model, or several with -m"),
    "data": Verb(_data, "build a corpus and print its folder"),
    "doctor": Verb(_doctor, "show what this machine has and whether a config fits it"),
    "help": Verb(_help, "this text; `help VERB` for one verb"),
}
