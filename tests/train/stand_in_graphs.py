"""`loopcoder train` on a CPU with a stand-in for CUDA's graphs, whose replays call what was
captured: python -m tests.train.stand_in_graphs OVERRIDES"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from loopcoder.cli import train
from loopcoder.train import world
from loopcoder.train.graph_choice import GraphChoice


class StandIn:
    """Makes of a call the call itself."""

    def __init__(self, _: Any):
        pass

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return run


def main() -> int:
    from loopcoder.train import graph, loop

    patched: Any = loop
    patched.choose_graphs = lambda *_: GraphChoice(True, "steps are stand-ins for CUDA graphs")
    patched.use_own_stream = lambda _: None
    graph.CudaCapture = StandIn  # type: ignore[assignment, misc]
    assert world.Run is loop.Run
    return train.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
