"""datatrove's local executor with processes that exit with their parent, and with quiet logging.

datatrove's own starts a manager as a fork of the process that drives a build. When that is killed,
the manager lives on and with it the lock of the folder, which nobody could take over then; and when
a worker is killed, its pool waits for ever.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from datatrove.executor import LocalPipelineExecutor

from loopcoder.storage.process import exit_with_parent, use_short_socket_paths


class QuietExecutor(LocalPipelineExecutor):  # type: ignore[misc] # it is untyped
    """Logs to the files of its folder; only errors go to the terminal."""

    def run(self) -> None:
        """Run all tasks and wait for them.

        Raises:
            BrokenProcessPool: a worker was killed.
        """
        use_short_socket_paths()
        # what a fork server starts inherits nothing
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(self.workers, context, exit_with_parent) as pool:
            list(pool.map(self._quietly, range(self.tasks)))

    def _quietly(self, rank: int) -> None:
        # local_rank 1: only the first of a machine tells the terminal more than errors
        self._run_for_rank(rank, local_rank=1)
