"""`python -m loopcoder.parallel.elastic`: torchrun without its comments.

The workers say themselves what went wrong, and leave their exit codes. torchrun would add a log,
a table of failures and a traceback, also where all of them stopped because they were asked to.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

from loopcoder.errors import EXIT_DONE
from loopcoder.storage.signals import ASKS


def main(arguments: Sequence[str]) -> int:
    """Run workers as torchrun does with these arguments; return 0 or, if one failed, 1."""
    logging.disable(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(arguments))
    except SignalException:
        return 1
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            if failure.exitcode < 0 and -failure.exitcode not in ASKS:
                print(f"loopcoder: rank {rank} was {_ended_by(-failure.exitcode)}", file=sys.stderr)
        return 1
    return EXIT_DONE


def _ended_by(number: int) -> str:
    if number == signal.SIGKILL:
        return "killed (SIGKILL), by the kernel if memory ran out: dmesg says so"
    return f"ended by {signal.Signals(number).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
