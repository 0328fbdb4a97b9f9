"""What a run does about shards that are compared with the manifest while it trains on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.labels import LABELS
from loopcoder.data.mask import MASK
from loopcoder.data.verifier import Verifier, unverified
from loopcoder.errors import InputError, counted


class Verification:
    """Shards that are verified in the background of a run; every rank has one.

    The first process of each node compares them. All ranks have to agree before anything is saved.
    """

    def __init__(self, config: Config, corpus: Corpus, say: Callable[[str], None]):
        self._corpus, self._say = corpus, say
        self._shards = unverified(config, corpus)
        self._verifier: Verifier | None = None
        if self._shards and os.environ.get("LOCAL_RANK", "0") == "0":
            index = [".idx"] if config.data.reader == "megatron" else []
            self._verifier = Verifier(self._shards, (".bin", *index, LABELS, MASK))
        self._said = not self._shards
        if self._shards:
            say(
                f"data: {counted(len(self._shards), 'shard')} of {corpus.dir} are compared with "
                "the manifest while training goes on: until then samples are used unverified"
            )

    @property
    def found_fault(self) -> bool:
        """Whether this process found a damaged shard."""
        return self._verifier is not None and self._verifier.fault is not None

    def refuse_damaged(self, device: torch.device) -> None:
        """Raise on every rank what any of them found; all call it, before anything is saved.

        Raises:
            LoopcoderError: a shard is damaged or cannot be read.
        """
        if not self._shards:
            return
        flag = torch.full((1,), int(self.found_fault), device=device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if not flag.item():
            return
        if self._verifier is not None and self._verifier.fault is not None:
            raise self._verifier.fault
        raise InputError.of(
            f"a process of this run found a damaged shard of {self._corpus.dir}",
            "its shards are compared with the manifest while training goes on",
            "see the message of that process, which names the shard",
        )

    def tell_finished(self, step: int, event: Callable[..., None]) -> None:
        """Say once that all shards are whole, with the step up to which samples were used that were
        not verified yet."""
        if self._said or self._verifier is None or not self._verifier.is_finished:
            return
        self._said = True
        number = counted(len(self._shards), "shard")
        event("shards_verified", step=step, shards=len(self._shards))
        self._say(f"data: {number} verified after step {step}: none is damaged")

    def close(self, event: Callable[..., Any]) -> None:
        """Stop, and say what was not compared."""
        if self._verifier is None:
            return
        self._verifier.close()
        if not self._said and not self.found_fault:
            done, number = self._verifier.done, len(self._shards)
            event("shards_unverified", shards=number - done)
            self._say(
                f"data: {number - done} of {counted(number, 'shard')} were not verified when the "
                "run ended; loopcoder data validate compares a corpus"
            )
