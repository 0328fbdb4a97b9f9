"""Which layers a pipeline stage holds, and how microbatches are grouped: pure arithmetic.

Loop r of a stage's layers is scheduled as a virtual pipeline chunk of its own; all chunks of a
stage use the same weights. With `chunks_per_loop` > 1 a loop is cut into parts, and each stage
holds one piece of each part.
"""

from __future__ import annotations


def stage_layers(num_layers: int, pp: int, chunks_per_loop: int, stage: int) -> list[list[int]]:
    """Return the layers (0-based, in the model) that a stage runs in each part of a loop.

    Layers need not divide evenly: pieces differ by one layer at most, and the last stages, which
    also hold the head, have the smaller ones.
    """
    pieces = pp * chunks_per_loop
    base, extra = divmod(num_layers, pieces)
    sizes = [base + (piece < extra) for piece in range(pieces)]
    starts = [sum(sizes[:piece]) for piece in range(pieces)]
    return [list(range(starts[p], starts[p] + sizes[p])) for p in range(stage, pieces, pp)]


def microbatch_group(microbatches: int, pp: int) -> int:
    """Return how many microbatches run through a chunk before the next chunk has its turn.

    megatron-core wants pp <= group <= microbatches, and a last group that is whole or at least pp.
    Raises ValueError if there is none: fewer microbatches than stages.
    """
    for group in range(pp, microbatches + 1):
        if microbatches % group == 0 or microbatches % group >= pp:
            return group
    raise ValueError(f"{microbatches} microbatches cannot fill {pp} pipeline stages")
