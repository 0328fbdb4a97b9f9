"""The memory of one rank, before anything is built: what is arithmetic, and what is an estimate.

Weights, gradients and optimizer are exact: they are what megatron-core allocates, to the byte.
Everything else is marked as an estimate where it is shown.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loopcoder.checkpoint.format import find
from loopcoder.config.chat import CHECKPOINT
from loopcoder.config.schema import VOCAB_MULTIPLE, Config
from loopcoder.data.manifest import read_manifest
from loopcoder.data.mirror import folder_of
from loopcoder.errors import InputError
from loopcoder.model.flops import parameters
from loopcoder.plan.activations import (
    activation_bytes,
    evaluation_bytes,
    evaluation_floor_bytes,
    logits_bytes,
    number_bytes,
)
from loopcoder.plan.parameters import buffer_of, rank_tensors
from loopcoder.storage.remote import is_stored

RUNTIME_BYTES = 1 << 30
"""Python, PyTorch and its libraries, or the context of a GPU."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank at the fullest moment of a step."""

    parameters: int
    """Parameters that the rank holds."""
    weights_bytes: int
    """Exact, as are the next two."""
    gradients_bytes: int
    """The buffer in which they are summed over loops, microbatches and ranks."""
    optimizer_bytes: int
    """Two moments, and the fp32 main weights of bf16 ones."""
    fp8_bytes: int
    """Estimate: copies of the weights in FP8, by rows and by columns."""
    loop_gradients_bytes: int
    """Estimate: gradients of later loops that wait for those of loop 0."""
    activations_bytes: int
    """Estimate."""
    logits_bytes: int
    """Estimate."""
    evaluation_bytes: int
    """Estimate: of an evaluation at its longest length, instead of the three above."""
    evaluation_floor_bytes: int
    """What such an evaluation cannot do without: logits and masks."""

    @property
    def fixed_bytes(self) -> int:
        """What training cannot do without, whatever the batch: exact."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def estimated_bytes(self) -> int:
        """What comes on top of it: an estimate."""
        backward = self.loop_gradients_bytes + self.activations_bytes + self.logits_bytes
        return RUNTIME_BYTES + self.fp8_bytes + max(backward, self.evaluation_bytes)

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.estimated_bytes


def rank_memory(
    config: Config, vocab_size: int, world_size: int, pp_rank: int, dp_rank: int = 0
) -> RankMemory:
    """Return the memory of a rank of a layout.

    Args:
        config: resolved (`config.resolve`) and checked.
        vocab_size: rows of embedding and head, padded.
        world_size: number of processes of the run.
        pp_rank: its pipeline stage.
        dp_rank: its data-parallel rank; the optimizer's shards differ by the padding only.
    """
    parallel, size = config.parallel, number_bytes(config)
    dp_size = max(1, world_size // (parallel.tp * parallel.pp * parallel.cp))
    tensors = rank_tensors(config, vocab_size, pp_rank)
    buffer = buffer_of([numel for _, numel in tensors], parallel, dp_size, pp_rank)
    numel = sum(numel for _, numel in tensors)
    owned = buffer.owned(dp_size, dp_rank) if parallel.distributed_optimizer else numel
    gradient = 4 if config.precision.grad_reduce_in_fp32 else size
    layers = sum(numel for part, numel in tensors if part in ("layers", "gates"))
    per_rank = config.train.global_batch_size // (config.train.micro_batch_size * dp_size)
    length = max(stage.seq_length for stage in config.stages)
    has_head = pp_rank == parallel.pp - 1
    longest = longest_evaluated(config)
    return RankMemory(
        parameters=numel,
        weights_bytes=buffer.numel * size,
        gradients_bytes=buffer.numel * gradient,
        # megatron-core shards fp32 weights as views of themselves
        optimizer_bytes=owned * (8 if size == 4 else 12),
        fp8_bytes=2 * layers if config.precision.name.startswith("fp8") else 0,
        loop_gradients_bytes=layers * size if _waits_for_loop_0(config, gradient) else 0,
        activations_bytes=activation_bytes(config, pp_rank, max(1, per_rank), length),
        logits_bytes=(
            logits_bytes(config, vocab_size, length, max(1, per_rank)) if has_head else 0
        ),
        evaluation_bytes=evaluation_bytes(config, vocab_size, pp_rank, longest),
        evaluation_floor_bytes=evaluation_floor_bytes(config, vocab_size, pp_rank, longest),
    )


def longest_evaluated(config: Config) -> int:
    """Return the tokens of the longest sequence that validation reads; 0: there is none."""
    if not config.eval.happens:
        return 0
    return max([*(stage.seq_length for stage in config.stages), *(config.eval.lengths or [])])


def _waits_for_loop_0(config: Config, gradient: int) -> bool:
    """Say whether autograd adds up the gradients of loops by itself: Transformer Engine's layers
    add them to the buffer at once, as all do where it is wider than the weights (`gradient` bytes
    per number; model/reuse.py), and a pipeline's loops have graphs of their own."""
    model = config.model
    in_one_graph = model.num_loops > 1 and config.parallel.pp == 1
    return in_one_graph and model.layer_spec != "te" and gradient == number_bytes(config)


def largest_rank(config: Config, vocab_size: int, world_size: int) -> RankMemory:
    """Return the memory of the rank that needs most: the first stages run ahead of the others, and
    the last one has the head."""
    stages = range(config.parallel.pp)
    found = (rank_memory(config, vocab_size, world_size, stage) for stage in stages)
    return max(found, key=lambda memory: memory.total_bytes)


def planned_vocabulary(config: Config) -> int:
    """Return the rows of embedding and head as far as they are known before there is a corpus.

    They are those of the config, of the finished corpus that it names or of the checkpoint of this
    machine whose tokenizer it takes, else those of a tokenizer of the size that is asked for.
    """
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    start = config.checkpoint.init_from
    if config.data.build.tokenizer == CHECKPOINT and start is not None and not is_stored(start):
        with suppress(InputError):  # opening it says more
            return find(Path(start)).state().vocab_size
    data, tokens = config.data, config.data.build.tokenizer_vocab_size
    if not data.build.sources and isinstance(data.path, str):
        manifest = read_manifest(folder_of(data))
        tokens = manifest.get("tokenizer", {}).get("vocab_size", tokens)  # opening it says more
    return -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def checkpoint_bytes(config: Config, vocab_size: int) -> int:
    """Return the size of a checkpoint: weights, main weights and two moments of all ranks.

    Nothing in it is padded or doubled, whatever the layout.
    """
    total = parameters(config.model, vocab_size, config.objective)
    return total * (number_bytes(config) + 12)
