"""`python -m loopcoder.parallel.elastic`: torchrun without its comments.

The workers say themselves what went wrong, and leave their exit codes. torchrun would add a log,
a table of failures and a traceback, also where all of them stopped because they were asked to.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence

from loopcoder.errors import EXIT_DONE, EXIT_KILLED, EXIT_RETRY
from loopcoder.storage.signals import ASKS, OF_A_SCHEDULER

_OTHERS_READ_S = 8.0
"""How long this process, which may keep their store, lets other nodes read why ranks have left."""


def main(arguments: Sequence[str]) -> int:
    """Run workers as torchrun does with these arguments; return 0, 137 if one was killed (SIGKILL),
    75 if the other nodes were lost or did not come, or 1 if one failed in another way."""
    logging.disable(logging.CRITICAL)
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    for number in OF_A_SCHEDULER:  # Slurm sends it to all processes; the workers know what to do
        signal.signal(number, lambda *_: None)
    options = parse_args(arguments)
    try:
        run(options)
    except SignalException:
        return 1
    except (RendezvousError, DistError) as error:
        first = str(error).partition("\n")[0]
        print(f"loopcoder: lost the other nodes, or they did not come: {first}", file=sys.stderr)
        return EXIT_RETRY
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        for rank, code in codes.items():
            if code < 0 and -code not in ASKS:
                print(f"loopcoder: rank {rank} was {_ended_by(-code)}", file=sys.stderr)
        if not options.standalone:
            time.sleep(_OTHERS_READ_S)
        return EXIT_KILLED if -signal.SIGKILL in codes.values() else 1
    return EXIT_DONE


def _ended_by(number: int) -> str:
    if number == signal.SIGKILL:
        return "killed (SIGKILL)"
    return f"ended by {signal.Signals(number).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
