"""Loops as virtual chunks of megatron-core's pipeline schedules, which run unmodified.

Chunk c of a stage is part c % V of loop c // V (V = chunks_per_loop). All chunks of a stage call
one network: one copy of the weights, one gradient buffer, one optimizer state. What later loops
need of loop 0 stays on the stage, by microbatch (`model.shared_kv.DetachedSharedKV`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from loopcoder.data.batch import Batch
from loopcoder.model.plt import ChunkInput
from loopcoder.model.probe import Probe
from loopcoder.model.shared_kv import DetachedSharedKV
from loopcoder.model.step_objective import StepObjective
from loopcoder.parallel.layout import microbatch_group


class LoopChunk(MegatronModule):
    """What a schedule sees as one virtual model chunk."""

    _ddp: Any
    """The stage's network in megatron-core's DistributedDataParallel, the same in all chunks."""

    def __init__(
        self,
        config: TransformerConfig,
        ddp: Any,
        shared_kv: dict[int, DetachedSharedKV],
        index: int,
        chunks_per_loop: int,
        is_final: bool,
    ):
        super().__init__(config)
        self.model_type = ModelType.encoder_or_decoder
        self.vp_stage = index if config.virtual_pipeline_model_parallel_size else None
        self.loop_idx, self.part = divmod(index, chunks_per_loop)
        self.is_final = is_final
        self.ends_in_loss = is_final and ddp.module.post_process
        self.shared_kv = shared_kv
        # Not by nn.Module's own setter, which would make the one network a submodule of each chunk.
        object.__setattr__(self, "_ddp", ddp)
        self._input: Tensor | None = None

    def set_is_first_microbatch(self) -> None:
        """Called before a chunk's first microbatch of a step; the first chunk's comes first."""
        if self.loop_idx == 0 and self.part == 0:
            self._ddp.set_is_first_microbatch()

    def set_input_tensor(self, tensor: Any) -> None:
        """Take what the schedule received from the chunk before."""
        self._input = tensor[0] if isinstance(tensor, list) else tensor

    def forward(
        self,
        microbatch: int,
        batch: Batch,
        every_loop: bool = False,
        probe: Probe | None = None,
        objective: StepObjective | None = None,
        *,
        reads_logits: bool = False,
    ) -> Any:
        """Run the chunk for a microbatch; the first chunk opens its store, the last closes it.

        Args:
            reads_logits: the last chunk returns logits in place of the loss.
        """
        if self.loop_idx == 0 and self.part == 0:
            self.shared_kv[microbatch] = DetachedSharedKV()
        chunk = ChunkInput(self.loop_idx, self.part, self._input, self.shared_kv[microbatch])
        self._input = None
        out = self._ddp(
            batch.tokens,
            batch.documents,
            None if reads_logits else batch.labels,
            every_loop=every_loop,
            chunk=chunk,
            probe=probe,
            objective=objective,
        )
        if self.is_final:
            # The graphs of earlier chunks hold what their backward passes still need.
            del self.shared_kv[microbatch]
        return out


def build_chunks(
    config: TransformerConfig, ddp: Any, num_loops: int, chunks_per_loop: int
) -> list[LoopChunk]:
    """Wrap a stage's network as the chunks of a schedule that runs `num_loops` loops.

    The network was built with `config`, which knows no virtual pipeline; the schedule gets a copy
    that does.
    """
    count = num_loops * chunks_per_loop
    schedule = copy.copy(config)
    # Parameters are gathered by DDP's own hooks: by chunk they would be gathered once per loop.
    schedule.param_sync_func = None
    if count > 1:
        schedule.virtual_pipeline_model_parallel_size = count
        # Interleaving on two stages with batched point-to-point is silently wrong.
        schedule.batch_p2p_comm, schedule.overlap_p2p_comm = False, True
    shared_kv: dict[int, DetachedSharedKV] = {}
    return [
        LoopChunk(schedule, ddp, shared_kv, index, chunks_per_loop, index == count - 1)
        for index in range(count)
    ]


def run_chunks(
    chunks: list[LoopChunk],
    microbatches: list[Batch],
    step: Callable[..., Any],
    *,
    forward_only: bool = False,
) -> Any:
    """Run all chunks over the microbatches through megatron's pipeline schedule; return its
    reports."""
    from megatron.core.pipeline_parallel import schedules

    config, rows = chunks[0].config, microbatches[0].tokens
    if len(chunks) == 1:
        run: Any = schedules.forward_backward_pipelining_without_interleaving
        iterator: Any = iter(list(enumerate(microbatches)))
    else:
        run = schedules.forward_backward_pipelining_with_interleaving
        iterator = [iter(list(enumerate(microbatches))) for _ in chunks]
        config.microbatch_group_size_per_vp_stage = microbatch_group(
            len(microbatches), config.pipeline_model_parallel_size
        )
        assert config.overlap_p2p_comm and not config.batch_p2p_comm
    return run(
        forward_step_func=step,
        data_iterator=iterator,
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(microbatches),
        seq_length=rows.shape[1],
        micro_batch_size=rows.shape[0],
        forward_only=forward_only,
    )
