"""The processes over which a model is split to decode: one, or those that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from loopcoder.config.schema import ParallelConfig
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.leading import Decodes, control_group, leading
from loopcoder.infer.split import WHOLE, Split
from loopcoder.parallel import mcore


@dataclass(frozen=True)
class World:
    """This process's part of a model, and how rank 0 leads."""

    split: Split = WHOLE
    control: Any = None
    """Group of `control_group`, of several processes."""

    @contextmanager
    def leading(self, decoder: Decoder) -> Iterator[Decodes | None]:
        """Give rank 0 what it calls; the others follow inside, and get None."""
        if self.split.size == 1:
            yield decoder
            return
        with leading(decoder, self.control) as leader:
            yield leader


@contextmanager
def world_of(parallel: ParallelConfig) -> Iterator[World]:
    """Join the `parallel.tp` processes of this launch, and leave them in the end; all of them must
    call it. Without a launcher this process is the only one."""
    if parallel.tp == 1:
        yield World()
        return
    mcore.start_processes(parallel.timeout_s, parallel.report_after_s)
    try:
        size = dist.get_world_size()
        split = Split(int(os.environ["RANK"]), size, dist.group.WORLD)
        yield World(split, control_group(range(size)))
    finally:
        mcore.shutdown()
