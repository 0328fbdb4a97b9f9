"""What keeps a step from being a CUDA graph (`train.cuda_graphs`)."""

from __future__ import annotations

from collections.abc import Iterator

from loopcoder.backends import Backends
from loopcoder.config.schema import Config
from loopcoder.errors import Problem, counted

_OFF = "train.cuda_graphs=off"


def check_graphs(config: Config, world_size: int, backends: Backends) -> Iterator[Problem]:
    """Yield what stands between this config and the graphs that it insists on."""
    if config.train.cuda_graphs == "on":
        for problem in graph_limits(config, world_size, backends):
            fact = f"train.cuda_graphs=on, {problem.fact}"
            fix = f"{_OFF}, or {problem.fix}" if problem.fix else _OFF
            yield Problem(fact, problem.why, fix)


def graph_limits(config: Config, world_size: int, backends: Backends) -> Iterator[Problem]:
    """Yield why a step cannot be captured; a fix is what to change so that it can be, or empty."""
    parallel, precision, log = config.parallel, config.precision.name, config.logging
    if not backends.has_gpu:
        yield Problem("no GPU", "a CUDA graph is launched on a GPU", "")
    elif not backends.has_te:
        yield Problem(
            "a GPU, no Transformer Engine",
            "without its kernels megatron-core reads the norm of the gradients on the host",
            "pip install --no-build-isolation '.[te]'",
        )
    if world_size > 1:
        yield Problem(
            counted(world_size, "process"),
            "a step that sends to other processes was never tried as a graph: one process alone "
            "captures it",
            "parallel.nproc_per_node=1 without tp and pp",
        )
    if precision.startswith("fp8"):
        yield Problem(
            f"precision={precision}",
            "FP8 copies of weights are made and dropped by the host in every step",
            "precision=bf16",
        )
    if precision == "fp32" and config.model.layer_spec == "te":
        yield Problem(
            "precision=fp32 model.layer_spec=te",
            "Transformer Engine's attention in fp32 is made of parts that were never tried in a "
            "graph",
            "precision=bf16, or model.layer_spec=torch",
        )
    if parallel.recompute != "none":
        yield Problem(
            f"parallel.recompute={parallel.recompute}",
            "what is recomputed reads the state of random numbers on the host, which a graph "
            "cannot",
            "parallel.recompute=none",
        )
    if parallel.overlap_grad_reduce:
        yield Problem(
            "parallel.overlap_grad_reduce=true",
            "its collectives on streams of their own were never tried in a graph, and one process "
            "reduces nothing",
            "parallel.overlap_grad_reduce=false parallel.overlap_param_gather=false",
        )
    if config.objective.draws_loops:
        yield Problem(
            f"objective.loop_count={config.objective.loop_count}",
            "a graph runs the loops that it was made of",
            "objective.loop_count=fixed",
        )
    measured = [name for name in ("loop_losses", "loop_gradients") if getattr(log, name)]
    if log.diagnostics_interval == 1:
        measured.append("diagnostics_interval")
    if measured and log.interval == 1:
        fields = " ".join(f"logging.{name}={str(getattr(log, name)).lower()}" for name in measured)
        yield Problem(
            f"{fields} logging.interval=1",
            "steps in which loops are measured are launched kernel by kernel, and here every step "
            "is one",
            "logging.interval=10",
        )
