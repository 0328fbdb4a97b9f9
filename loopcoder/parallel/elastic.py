"""`python -m loopcoder.parallel.elastic`: torchrun without its comments.

The workers say themselves what went wrong, and leave their exit codes. torchrun would add a log,
a table of failures and a traceback, also where all of them stopped because they were asked to.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

from loopcoder.errors import EXIT_DONE, EXIT_KILLED
from loopcoder.storage.signals import ASKS, OF_A_SCHEDULER


def main(arguments: Sequence[str]) -> int:
    """Run workers as torchrun does with these arguments; return 0, 137 if one was killed (SIGKILL),
    or 1 if one failed in another way."""
    logging.disable(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for number in OF_A_SCHEDULER:  # Slurm sends it to all processes; the workers know what to do
        signal.signal(number, lambda *_: None)
    try:
        run(parse_args(arguments))
    except SignalException:
        return 1
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        for rank, code in codes.items():
            if code < 0 and -code not in ASKS:
                print(f"loopcoder: rank {rank} was {_ended_by(-code)}", file=sys.stderr)
        return EXIT_KILLED if -signal.SIGKILL in codes.values() else 1
    return EXIT_DONE


def _ended_by(number: int) -> str:
    if number == signal.SIGKILL:
        return "killed (SIGKILL)"
    return f"ended by {signal.Signals(number).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
