"""Whether the steps of a run are CUDA graphs (`train.cuda_graphs`)."""

from __future__ import annotations

from dataclasses import dataclass

from loopcoder.backends import Backends
from loopcoder.config.check_graphs import graph_limits
from loopcoder.config.schema import Config
from loopcoder.model.flops import block_parameters

LAUNCH_BOUND_FLOPS = 4e12
"""FLOPs of a layer's forward and backward pass over a microbatch below which `auto` takes graphs.

Launching a layer's kernels takes the host about 4.5 ms, whatever their size: a step of 6 layers
took 27 ms, and one of 12 layers 56 ms (H200, 3b7e4bd). In that time an H200 does 3e12 FLOPs of
matrix products at 700 TFLOP/s; a little above it kernels still wait for each other.
"""


@dataclass(frozen=True)
class GraphChoice:
    """What was decided."""

    uses: bool
    """Steps are graphs."""
    said: str | None
    """A line for the user; None where nobody asked."""
    insists: bool = False
    """It is an error if they cannot be."""


def choose_graphs(config: Config, world_size: int, backends: Backends) -> GraphChoice:
    """Decide, for a config that has passed `check`."""
    asked = config.train.cuda_graphs
    if asked == "off":
        return GraphChoice(False, None)
    if asked == "on":
        return GraphChoice(True, "steps are CUDA graphs (train.cuda_graphs=on)", insists=True)
    limit = next(graph_limits(config, world_size, backends), None)
    if limit is not None:
        return GraphChoice(False, f"no CUDA graphs (train.cuda_graphs=auto): {limit.fact}")
    lengths = [stage.seq_length for stage in config.stages]
    tokens = config.train.micro_batch_size * min(lengths)
    flops = 6.0 * block_parameters(config.model) * tokens
    uses = flops < LAUNCH_BOUND_FLOPS
    what = "steps are CUDA graphs" if uses else "no CUDA graphs"
    than = "less" if uses else "not less"
    return GraphChoice(
        uses,
        f"{what} (train.cuda_graphs=auto): a layer computes {flops:.1e} FLOPs over a microbatch of "
        f"{tokens:,} tokens, {than} than {LAUNCH_BOUND_FLOPS:.0e}",
    )
