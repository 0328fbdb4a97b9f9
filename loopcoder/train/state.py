"""What a run trains: the model, its gradient buffers and its optimizer on this rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config
from loopcoder.model.init import initialise
from loopcoder.model.plt import PipelineStage, PLTModel
from loopcoder.model.reuse import share_over_loops
from loopcoder.model.specs import transformer_config
from loopcoder.model.step_objective import step_objective
from loopcoder.optim.optimizer import build_optimizer
from loopcoder.parallel.layout import stage_layers
from loopcoder.parallel.mcore import Ranks
from loopcoder.parallel.schedule import LoopChunk, build_chunks
from loopcoder.parallel.shift import position_before
from loopcoder.train.compute import ComputeTime


@dataclass
class TrainState:
    """The things that a checkpoint holds, and what they are built on."""

    ranks: Ranks
    config: TransformerConfig
    network: PLTModel
    ddp: Any
    """megatron-core's DistributedDataParallel around the network."""
    optimizer: Any
    compute: ComputeTime
    """What this rank computes in a step, by the timers of the schedules."""
    chunks: list[LoopChunk]
    """The network as chunks of a pipeline; empty without pipeline stages."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def chunks_of(self, loops: int) -> list[LoopChunk]:
        """Return the chunks of a pipeline that runs `loops` loops, as many as the model has or
        fewer."""
        if not self.chunks or loops == self.network.model.num_loops:
            return self.chunks
        parts = len(self.chunks) // self.network.model.num_loops
        return build_chunks(self.config, self.ddp, loops, parts)


def build_network(
    config: Config, ranks: Ranks, vocab_size: int
) -> tuple[PLTModel, TransformerConfig]:
    """Build the model of this rank on its device, with weights from the seed."""
    mcore_config = transformer_config(config)
    before = position_before(ranks.groups.tp) if config.parallel.sp else None
    parallel, pp_rank = config.parallel, ranks.pp_rank
    stage = PipelineStage(
        stage_layers(config.model.num_layers, parallel.pp, parallel.chunks_per_loop, pp_rank),
        is_first=pp_rank == 0,
        is_last=pp_rank == parallel.pp - 1,
    )
    network = PLTModel(
        mcore_config,
        config.model,
        vocab_size,
        ranks.groups,
        before,
        stage,
        has_exit_gate=config.objective.has_gate(config.model.num_loops),
    )
    network.to(ranks.device)
    initialise(network, config.model, config.seed)
    return network, mcore_config


def _finish_gradients(
    ddp: Any, is_alone: bool, _: Any, num_tokens: Any = None, **kwargs: Any
) -> None:
    """Reduce the gradients over ranks, of which there is one where it `is_alone`; they stay those
    of the summed loss.

    megatron-core would divide them by `num_tokens` in a pass of its own; Adam does it on the way.
    """
    if not is_alone:
        finalize_model_grads([ddp], None, **kwargs)


def build_state(config: Config, ranks: Ranks, vocab_size: int) -> TrainState:
    """Build model, gradient buffers and optimizer, and wire them into megatron's schedules."""
    parallel = config.parallel
    network, mcore_config = build_network(config, ranks, vocab_size)
    ddp = DistributedDataParallel(
        mcore_config,
        DistributedDataParallelConfig(
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            grad_reduce_in_fp32=config.precision.grad_reduce_in_fp32,
        ),
        network,
    )
    loops = config.model.num_loops
    reads_loops = len(step_objective(config.objective, loops, loops).read_loops) > 1
    share_over_loops(ddp, network.used_in_every_loop(reads_loops=reads_loops), loops)
    optimizer = build_optimizer(
        ddp, config.model, config.optim, parallel, mcore_config.params_dtype
    )
    mcore_config.grad_scale_func = optimizer.scale_loss
    is_alone = ranks.world_size == 1 and not parallel.overlap_grad_reduce
    is_alone &= ranks.device.type == "cpu"  # on a GPU it was not measured
    mcore_config.finalize_model_grads_func = partial(_finish_gradients, ddp, is_alone)
    if parallel.overlap_grad_reduce:
        mcore_config.no_sync_func = ddp.no_sync
    if parallel.overlap_param_gather:
        mcore_config.param_sync_func = ddp.start_param_sync
    mcore_config.timers = compute = ComputeTime(ranks.device)
    chunks = []
    if parallel.pp > 1:
        chunks = build_chunks(mcore_config, ddp, loops, parallel.chunks_per_loop)
    return TrainState(
        ranks, mcore_config, network, ddp, optimizer, compute, chunks, config.objective
    )
