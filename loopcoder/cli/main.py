"""The command line: the verbs, the messages of errors, and exit codes.

A verb is a file beside this one with a function `run`, and a line in VERBS.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch.torchrun import record_exit
from loopcoder.cli import data, doctor, runs, train
from loopcoder.cli.arguments import rank
from loopcoder.errors import EXIT_DONE, EXIT_RETRY, InputError, LoopcoderError

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
    if rank() > 0:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"loopcoder: rank {rank()}: {first}", file=sys.stderr)
    elif isinstance(error, InputError) and len(error.problems) > 1:
        numbered = "\n".join(f"{i}. {p}" for i, p in enumerate(error.problems, 1))
        print(f"loopcoder: {len(error.problems)} problems\n{numbered}", file=sys.stderr)
    else:
        print(f"loopcoder: {error}", file=sys.stderr)


def _help(argv: list[str]) -> int:
    if argv and argv[0] in VERBS and argv[0] != "help":
        return VERBS[argv[0]].run(["--help"])
    print(USAGE.format(verbs="\n".join(f"  {name:<8} {verb.help}" for name, verb in VERBS.items())))
    return EXIT_DONE


VERBS = {
    "train": Verb(train.run, "train a model, or several with -m"),
    "data": Verb(data.run, "build a corpus; list, show and clean what is built"),
    "runs": Verb(runs.run, "list run folders, or compare them in one table and plot"),
    "doctor": Verb(doctor.run, "show what this machine has and whether a config fits it"),
    "help": Verb(_help, "this text; `help VERB` for one verb"),
}
