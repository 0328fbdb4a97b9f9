"""datatrove's local executor without its talk: the pipeline has progress lines of its own."""

from __future__ import annotations

from typing import Any

from datatrove.executor import LocalPipelineExecutor


class QuietExecutor(LocalPipelineExecutor):  # type: ignore[misc] # it is untyped
    """Logs to the files of its folder; only errors go to the terminal."""

    def _launch_run_for_rank(
        self, rank: int, ranks_q: Any, completed: Any = None, completed_lock: Any = None
    ) -> Any:
        return super()._launch_run_for_rank(rank, ranks_q)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        # what is not the first local rank tells the terminal of errors only
        return super()._run_for_rank(rank, local_rank + 1, node_rank)
