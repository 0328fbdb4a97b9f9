"""The state of a sharded optimizer in checkpoints: each rank saves and loads what it holds.

Data-parallel ranks share weights and moments as ranges of the flattened weights, which cut through
rows. megatron-core's `fully_reshardable` format gathers all of them on every rank, in the memory of
the host, twice: at 7B that is 84 GB a rank, and training stands still for it. Here a range is
rectangles (of a matrix three: the end of a row, whole rows, the beginning of a row) of the tensor
that the checkpoint names. Names and shapes in checkpoints are those of that format: either reads
what the other wrote, in any layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and shape."""
_PREFIX = "optimizer.state"


def save_by_parts(optimizer: Any) -> None:
    """Let each rank save and load what it holds of a megatron-core optimizer."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(inner, DistributedOptimizer):
            inner.sharded_param_state_fully_reshardable = partial(_parts, inner)
            inner.load_parameter_state_from_fully_reshardable = partial(_keep, inner)


def rectangles(begin: int, end: int, shape: tuple[int, ...]) -> Iterator[Rectangle]:
    """Yield, in order, rectangles of which the range of a flattened tensor consists.

    Args:
        begin, end: The range.
        shape: Of the tensor.
    """
    if begin >= end:
        return
    if len(shape) <= 1:
        yield (begin,) * len(shape), (end - begin,) * len(shape)
        return
    row = prod(shape[1:])
    first, last = -(-begin // row), end // row
    """Whole rows."""
    if first > last:  # inside of one row
        yield from _in_row(last, begin - last * row, end - last * row, shape)
        return
    yield from _in_row(first - 1, begin - (first - 1) * row, row, shape)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _in_row(last, 0, end - last * row, shape)


def _in_row(row: int, begin: int, end: int, shape: tuple[int, ...]) -> Iterator[Rectangle]:
    if begin < prod(shape[1:]):
        for offset, size in rectangles(begin, end, shape[1:]):
            yield (row, *offset), (1, *size)


def _parts(
    optimizer: Any, model: Any, is_loading: bool = False, metadata: Any = None
) -> dict[int, dict[str, list[Any]]]:
    """Return the parts of this rank, by parameter and kind of state. Their data are the state
    itself, into which loading writes.

    Args:
        model: Sharded state of the model.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

    sharded, _ = extract_sharded_tensors_and_factories(model)
    by_parameter = {id(value.data): value for value in nested_values(sharded)}
    out: dict[int, dict[str, list[Any]]] = {}
    for index, (parameter, begin, end) in enumerate(_ranges(optimizer)):
        weight = by_parameter[id(parameter)]
        whole = weight.build() if isinstance(weight, ShardedTensorFactory) else [weight]
        state = {kind: held.detach().view(-1) for kind, held in _state_of(optimizer, parameter)}
        out[index] = {kind: [] for kind in state}
        for tensor in whole:
            at = tensor.data.storage_offset() - parameter.data.storage_offset()
            first, last = max(begin - at, 0), min(end - at, tensor.data.numel())
            axes = (1,) * tensor.prepend_axis_num  # which torch wants to see in every part
            taken = first + at - begin
            for offset, shape in rectangles(first, last, tuple(tensor.local_shape)):
                within = (0,) * len(axes) + offset
                origin = tuple(a + b for a, b in zip(tensor.global_offset, within, strict=True))
                for kind, held in state.items():
                    out[index][kind].append(
                        ShardedTensor(
                            key=f"{_PREFIX}.{kind}.{tensor.key}",
                            data=held[taken : taken + prod(shape)].view(*axes, *shape),
                            dtype=held.dtype,
                            local_shape=(*axes, *shape),
                            global_shape=tensor.global_shape,
                            global_offset=origin,
                            axis_fragmentations=None,
                            allow_shape_mismatch=tensor.allow_shape_mismatch,
                            # no other data-parallel rank has it
                            replica_id=(*tensor.replica_id[:-1], 0),
                        )
                    )
                taken += prod(shape)
    return out


def _keep(optimizer: Any, loaded: dict[int, dict[str, list[Tensor]]]) -> None:
    """Take what was loaded, as far as it is not in its place already."""
    for index, (parameter, _, _) in enumerate(_ranges(optimizer)):
        for kind, held in _state_of(optimizer, parameter):
            flat, at = held.detach().view(-1), 0
            for part in loaded[index][kind]:
                place = flat[at : at + part.numel()]
                at += part.numel()
                if place.data_ptr() != part.data_ptr() or place.device != part.device:
                    place.copy_(part.reshape(-1))


def _ranges(optimizer: Any) -> Iterator[tuple[Tensor, int, int]]:
    """Yield the parameters of which this rank has a range of the state, with that range."""
    for by_type in optimizer.gbuf_ranges:
        for buckets in by_type.values():
            for bucket in buckets:
                for parameter, found in bucket["param_map"].items():
                    yield parameter, found["param"].start, found["param"].end


def _state_of(optimizer: Any, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield weight and moments of the range of a parameter that this rank has."""
    for kind, held in optimizer._get_main_param_and_optimizer_states(parameter).items():
        if kind != "step":
            yield kind, held
