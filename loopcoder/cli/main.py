"""The command line: the verbs, the messages of errors, and exit codes.

A verb is a file beside this one with a function `run`, and a line in VERBS.
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loopcoder import __version__
from loopcoder.cli import (
    checkpoint,
    compare,
    data,
    diagnose,
    doctor,
    evaluate,
    export,
    generate,
    import_,
    launch,
    runs,
    serve,
    sweep,
    train,
)
from loopcoder.cli.messages import (
    another_rank_failed_first,
    print_error,
    print_interrupted,
)
from loopcoder.cli.streams import is_utf8, lasting_output
from loopcoder.errors import (
    EXIT_DONE,
    EXIT_NO_RETRY,
    EXIT_RETRY,
    DiskFull,
    InputError,
    LoopcoderError,
    record_exit,
)
from loopcoder.storage.disk import is_disk_full, is_too_large, remedy, too_large

USAGE = """\
loopcoder trains looped code models (Parallel Loop Transformers) on Megatron-core.

usage: loopcoder VERB [key=value ...]

{verbs}

`loopcoder train --help` explains overrides with examples."""


@dataclass(frozen=True)
class Verb:
    """One thing that `loopcoder` can do."""

    run: Callable[[list[str]], int]
    help: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors meant for the user print no traceback.

    Output that nobody takes changes nothing; where a full disk takes away what a command is there
    to print, it has failed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with lasting_output() as out:
        code = _run(arguments)
        sys.stdout.flush()
        if code == EXIT_DONE and any(o.is_full for o in out) and not _trains(arguments):
            code = EXIT_NO_RETRY
            print("loopcoder: no space left for what is printed", file=sys.stderr)
    record_exit(code)
    return code


def _trains(arguments: Sequence[str]) -> bool:
    """Say whether a command is there to train, not for what it prints."""
    return arguments[:1] == ["train"] and not {"-h", "--help", "--print-config"} & {*arguments}


def _run(arguments: list[str]) -> int:
    """Run one verb; print its error, if any, and return the exit code."""
    try:
        code = _dispatch(arguments)
    except LoopcoderError as error:
        code = error.exit_code
        _from_here_on_deaf()
        print_error(error)
    except KeyboardInterrupt as error:
        code = EXIT_RETRY
        _from_here_on_deaf()
        print_interrupted(error)
    except Exception as error:
        code = _unexpected(error)
    return code


def _from_here_on_deaf() -> None:
    """Say the last words whatever torchrun, which ends us when another rank ended, sends."""
    if "RANK" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _unexpected(error: Exception) -> int:
    """Print the traceback of a fault of the program; return the exit code."""
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.expanduser
        homeless = InputError.of(
            "a path begins with ~, and there is no home directory",
            "HOME is not set, and this user is not in /etc/passwd",
            "export HOME=DIR, or data.build.cache_dir=DIR and no ~ in other paths",
        )
        print_error(homeless)
        return homeless.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        named = InputError.of(
            f"{error.filename or 'a path'}: {error.strerror}",
            "file systems take names of up to 255 bytes, and paths of up to 4,096",
            "a shorter path",
        )
        print_error(named)
        return named.exit_code
    if is_disk_full(error):
        full = _of_full_disk(error)
        print_error(full)
        return full.exit_code
    its_own = not another_rank_failed_first()
    _from_here_on_deaf()
    if its_own:
        traceback.print_exc()
    return 1


def _of_full_disk(error: Exception) -> DiskFull:
    if is_too_large(error):
        why = "a file that may not grow stops what writes it; the disk need not be full"
        return DiskFull.of(too_large(error, "a file"), why, remedy(error))
    return DiskFull.of(
        str(error),
        "there is no room for what has to be written (or no quota is left)",
        "free space there, or export TMPDIR=FOLDER if it is a temporary file",
    )


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "help"
    if name in ("-h", "--help"):
        name = "help"
    if name in ("-V", "--version"):
        print(f"loopcoder {__version__}")
        return EXIT_DONE
    unreadable = next((a for a in arguments if "=" in a and not is_utf8(a)), None)
    if unreadable is not None:
        raise InputError.of(
            unreadable,
            "it is not UTF-8, in which configurations and records are written",
            "a name of letters that are UTF-8 (convmv renames files)",
        )
    if name not in VERBS:
        nearest = difflib.get_close_matches(name, VERBS, n=1) or ["help"]
        raise InputError.of(
            f"loopcoder {name}",
            f"so far the verbs are {', '.join(VERBS)}",
            f"loopcoder {nearest[0]}",
        )
    return VERBS[name].run(arguments[1:])


def _help(argv: list[str]) -> int:
    verb = next((a for a in argv if a in VERBS and a != "help"), None)
    if verb is None and any(a.startswith("--config-dir") for a in argv):
        verb = "train"  # whose presets the folder has
    if verb is None and argv and not argv[0].startswith("-") and argv[0] != "help":
        return _dispatch([argv[0]])  # which is no verb
    if verb is not None:
        return VERBS[verb].run(["--help", *(a for a in argv if a != verb)])
    print(
        USAGE.format(verbs="\n".join(f"  {name:<10} {verb.help}" for name, verb in VERBS.items()))
    )
    return EXIT_DONE


VERBS = {
    "train": Verb(train.run, "train a model, or several with -m"),
    "sweep": Verb(sweep.run, "train every combination of some values, on all GPUs, and compare"),
    "launch": Verb(launch.run, "train on a cluster, by Slurm or Kubernetes"),
    "evaluate": Verb(evaluate.run, "the validation loss of a checkpoint, or its scores in tasks"),
    "diagnose": Verb(diagnose.run, "what each loop of a checkpoint does, and what it costs"),
    "generate": Verb(generate.run, "what a model writes after a prompt"),
    "export": Verb(export.run, "write a checkpoint as a folder for transformers"),
    "serve": Verb(serve.run, "a model behind OpenAI's API, for one machine"),
    "import": Verb(import_.run, "make a checkpoint of weights in the format of transformers"),
    "compare": Verb(compare.run, "the logits of two models on a text, and where they differ"),
    "data": Verb(data.run, "build a corpus; list, show and clean what is built"),
    "checkpoint": Verb(checkpoint.run, "list the checkpoints of a run, or verify them"),
    "runs": Verb(runs.run, "list run folders, or compare them in one table and plot"),
    "doctor": Verb(doctor.run, "show what this machine has and whether a config fits it"),
    "help": Verb(_help, "this text; `help VERB` for one verb"),
}
