"""A decoder that is split over ranks: rank 0 leads, the others make the calls that it makes.

Rank 0 uses a `Leader` as it would use a Decoder. The others `follow`, until it closes or ends.
What is called travels between the hosts' memories, so that nobody waits for a GPU; the tokens of a
step, which may have been drawn on the GPU, travel between the GPUs.

A rank that fails ends, and its launcher ends the others. Where rank 0 survives a failure, the
ranks no longer have the same cache, and it refuses further calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import batched, chain
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.errors import LoopcoderError
from loopcoder.infer.decoder import Decoder, ReadLogits

_PREFILL, _STEP, _END = range(3)
_IDLE = timedelta(days=365)
"""A server may have nothing to do for long. A rank that is gone is noticed at once."""


class Decodes(Protocol):
    """What a Decoder and a Leader have in common."""

    model: ModelConfig
    vocabulary: int
    num_places: int
    max_length: int

    @property
    def lengths(self) -> list[int]: ...

    def prefill(
        self,
        prompts: Mapping[int, Sequence[int]],
        read: ReadLogits | None = None,
        wanted: Collection[int] | None = None,
    ) -> Tensor: ...

    def step(self, places: Sequence[int], tokens: Tensor | Sequence[int]) -> Tensor: ...


def control_group(ranks: Sequence[int]) -> Any:
    """Make the group over which calls travel. All ranks of the world must call it.

    Args:
        ranks: Those of the decoder, in the order of its `split`.
    """
    return dist.new_group(list(ranks), backend="gloo", timeout=_IDLE)


@contextmanager
def leading(decoder: Decoder, control: Any) -> Iterator[Decodes | None]:
    """Give rank 0 of a decoder what it calls; the others follow inside, and get None."""
    if decoder.split.rank > 0:
        follow(decoder, control)
        yield None
        return
    leader = Leader(decoder, control)
    try:
        yield leader
    finally:
        leader.close()


class Leader:
    """The decoder of rank 0, whose calls the other ranks make too."""

    def __init__(self, decoder: Decoder, control: Any):
        """
        Args:
            control: Of `control_group`.
        """
        self.model, self.vocabulary = decoder.model, decoder.vocabulary
        self.num_places, self.max_length = decoder.num_places, decoder.max_length
        self._decoder, self._control = decoder, control
        self._is_broken = self._is_closed = False

    @property
    def lengths(self) -> list[int]:
        return self._decoder.lengths

    def prefill(
        self,
        prompts: Mapping[int, Sequence[int]],
        read: ReadLogits | None = None,
        wanted: Collection[int] | None = None,
    ) -> Tensor:
        """See `Decoder.prefill`."""
        self._decoder.check_prompts(prompts)
        with self._together():
            told = {*(prompts if wanted is None else wanted)} if read is not None else set()
            heads = [n for p, ids in prompts.items() for n in (p, len(ids), int(p in told))]
            payload = [len(prompts), *heads, *chain.from_iterable(prompts.values())]
            self._tell(_PREFILL, [len(payload)])
            dist.broadcast(torch.tensor(payload), group=self._control, group_src=0)
            return self._decoder.prefill(prompts, read, told)

    def step(self, places: Sequence[int], tokens: Tensor | Sequence[int]) -> Tensor:
        """See `Decoder.step`."""
        self._decoder.check_places(places, len(tokens))
        with self._together():
            self._tell(_STEP, places)
            given = self._decoder.on_device(tokens)
            dist.broadcast(given, group=self._decoder.split.group, group_src=0)
            return self._decoder.step(places, given)

    def close(self) -> None:
        """Let the others go; nothing can be called any more."""
        if not (self._is_closed or self._is_broken):
            self._tell(_END, [])
        self._is_closed = True

    def _tell(self, kind: int, numbers: Sequence[int]) -> None:
        message = torch.zeros(2 + self.num_places, dtype=torch.int64)
        message[0], message[1] = kind, len(numbers)
        message[2 : 2 + len(numbers)] = torch.tensor(list(numbers), dtype=torch.int64)
        dist.broadcast(message, group=self._control, group_src=0)

    @contextmanager
    def _together(self) -> Iterator[None]:
        if self._is_broken or self._is_closed:
            raise LoopcoderError.of(
                "the ranks of this decoder do not run together any more",
                "a call failed on one of them, or it was closed",
                "start the command again",
            )
        try:
            yield
        except BaseException:
            self._is_broken = True
            raise


def follow(decoder: Decoder, control: Any) -> None:
    """Make the calls that rank 0 makes, until it closes."""
    while True:
        message = torch.zeros(2 + decoder.num_places, dtype=torch.int64)
        dist.broadcast(message, group=control, group_src=0)
        kind, count, *numbers = message.tolist()
        if kind == _END:
            return
        if kind == _STEP:
            tokens = torch.empty(count, dtype=torch.int64, device=decoder.device)
            dist.broadcast(tokens, group=decoder.split.group, group_src=0)
            decoder.step(numbers[:count], tokens)
            continue
        payload = torch.empty(numbers[0], dtype=torch.int64)
        dist.broadcast(payload, group=control, group_src=0)
        decoder.prefill(*_prompts(payload.tolist()))


def _prompts(payload: list[int]) -> tuple[dict[int, list[int]], ReadLogits | None, set[int]]:
    """Return the arguments of `prefill`."""
    count, *rest = payload
    ids, prompts, wanted = rest[3 * count :], {}, set()
    for place, length, is_wanted in batched(rest[: 3 * count], 3):
        prompts[place], ids = ids[:length], ids[length:]
        if is_wanted:
            wanted.add(place)
    return prompts, _ignore if wanted else None, wanted


def _ignore(place: int, first: int, logits: Tensor) -> None:
    """Rank 0 alone looks at logits; the head is computed by all."""
