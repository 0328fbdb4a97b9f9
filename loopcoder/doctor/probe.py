"""`python -m loopcoder.doctor.probe SETTINGS FOLDER`: what one process per GPU finds out.

Its world is given by the variables that torchrun and srun set, but for RANK where neither has
started it. It writes what it knows after every
stage, so that a stage that hangs takes nothing else with it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistError, HashStore, PrefixStore

from loopcoder.config.schema import HardwareConfig
from loopcoder.doctor import measures
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Node, Seen
from loopcoder.doctor.together import compare_all, compare_nodes, gather
from loopcoder.errors import InputError, LoopcoderError
from loopcoder.parallel.handshake import Exchange, shake_hands
from loopcoder.parallel.meeting import common_store
from loopcoder.parallel.peers import Peers, meet
from loopcoder.storage.process import exit_with_parent

_LEAST_S = 3.0
"""Less is not enough for another measurement."""


@dataclass(frozen=True)
class Ask:
    """What a probe is given, as a file of JSON."""

    node: dict[str, Any] | None
    """What was seen on this machine; None where another of its ranks is asked with it."""
    token: str
    """Of this machine, by which its ranks find each other."""
    is_first: bool
    """The nodes meet on this machine."""
    until: float
    """On the monotonic clock of this machine."""
    run_dir: str | None
    hardware: dict[str, Any] = field(default_factory=dict)
    fp8: bool = False
    """Transformer Engine is there."""
    side: int = t.MATRIX_SIDE


@dataclass
class Result:
    """What a probe leaves."""

    nodes: dict[str, dict[str, Any]]
    """What was seen on every machine that has come, by its key."""
    job: dict[str, Any]
    """What was seen of all of them together."""
    stage: str = "start"
    """What it does, or did last; `end` when it has done all."""


class Probe:
    """One process of it."""

    def __init__(self, ask: Ask, result: Path):
        self._ask, self._path = ask, result
        self._hardware = HardwareConfig(**ask.hardware)
        self.size = int(os.environ["WORLD_SIZE"])
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # of another node it is known when all have met; until then it is any but 0
        first = self.local + (0 if ask.is_first else self.here)
        self.rank = int(os.environ.get("RANK", first))
        self._key = ask.token
        self.nodes: dict[str, Node] = {}
        if ask.node is not None and self.local == 0:
            self.nodes[self._key] = Node.from_json(ask.node)
        self.job, self._own = Seen(), Seen()
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", self.local % torch.cuda.device_count())

    def run(self) -> None:
        """Meet, compare, measure; whatever fails is a finding."""
        store, peers = self._meet()
        exchange = None if peers is None else Exchange(peers, self._left_s())
        try:
            if exchange is not None:
                self._together(exchange)
            self._enter("products")
            self._products()
            if peers is not None and exchange is not None:
                self._reduces(store, peers)
                self._enter("telling what was measured")
                self._share(exchange)
        except (LoopcoderError, DistError) as error:  # another rank has gone
            self.job.add_error("nodes", error)
        if exchange is None and self._key in self.nodes:
            self.nodes[self._key].seen.join(self._own)
        self._enter("end")

    def _meet(self) -> tuple[Any, Peers | None]:
        """Return the store of the world, and its ranks; None: this one is alone, or has remained
        so."""
        self._enter("waiting for the other nodes")
        if self.size == 1:
            return HashStore(), None
        limit_s = min(t.OTHERS_COME_S, self._left_s())
        try:
            store = common_store(self.rank, limit_s, limit_s, lambda: None)
            if "RANK" not in os.environ:
                self.rank = self._counted(store)
            self._key = _key_of_node(self.rank - self.local)
            if self._ask.token in self.nodes:
                self.nodes = {self._key: self.nodes[self._ask.token]}
            return store, meet(store, self.rank, self.size, limit_s, limit_s)
        except LoopcoderError as error:
            # it is not the run's own limit that has passed
            place = f" ({os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']})"
            told = re.sub(r" \(parallel\.timeout_s[^)]*\)", place, str(error))
            self.job.add_error("nodes", type(error)(told) if _is_plain(error) else error)
            return HashStore(), None

    def _counted(self, store: Any) -> int:
        """Return the rank of this process: nodes are counted as they come."""
        if self._ask.is_first:
            return self.local
        key = f"doctor/place/{self._ask.token}"
        if self.local == 0:
            store.set(key, str(store.add("doctor/places", 1)))
        rank = int(store.get(key)) * self.here + self.local
        if rank >= self.size:
            raise InputError.of(
                f"this node is one more than parallel.nodes={self.size // self.here}",
                "another command meets at the same place",
                "end it, or take another port in parallel.rendezvous",
            )
        return rank

    def _together(self, exchange: Exchange) -> None:
        self._enter("comparing the nodes")
        own = self.nodes.get(self._key)
        nodes = gather(exchange, self._key, own)
        self.nodes = nodes
        if len(nodes) > 1:
            compare_all(list(nodes.values()), self.job)
            compare_nodes(exchange, None if own is None else own.name, self._ask.run_dir, self.job)

    def _products(self) -> None:
        if self.device.type != "cuda":
            return
        torch.cuda.set_device(self.device)
        try:
            measures.bf16_product(self._own, self.device, self._hardware, self._ask.side)
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            why, fix = "nothing can be computed on it", "nvidia-smi; restart the machine"
            self._own.add(f"GPU {self.device.index} bf16", "error", first, why, fix)
            return
        if self._ask.fp8 and self._left_s() > _LEAST_S:
            self._enter("an FP8 product")
            measures.fp8_product(self._own, self.device, self._ask.side)

    def _reduces(self, store: Any, peers: Peers) -> None:
        """Measure all-reduces inside of every node, then over all."""
        self._enter("connecting the ranks")
        reached = True
        try:
            shake_hands(peers, dict, self._left_s())
        except LoopcoderError as error:
            self.job.add_error("network", error)
            reached = False
        here = self.here
        if here > 1:
            self._enter("an all-reduce inside of the nodes")
            own_store = PrefixStore(f"doctor/{self._key}", store)
            found = self._reduce(own_store, self.local, here, "all-reduce inside", inside=True)
            if found is not None and (self.local == 0 or not found[1]):
                gpu = None
                if self.device.type == "cuda":
                    gpu = torch.cuda.get_device_name(self.device)
                measures.add_inside(self._own, *found, here, self._hardware, gpu)
        if len(self.nodes) > 1 and reached:
            self._enter("an all-reduce between the nodes")
            all_store, check = PrefixStore("doctor/all", store), "all-reduce between nodes"
            found = self._reduce(all_store, self.rank, self.size, check, inside=False)
            if found is not None and (self.rank == 0 or not found[1]):
                is_gpu = self.device.type == "cuda"
                measures.add_between(self._own, *found, len(self.nodes), is_gpu)

    def _reduce(
        self, store: Any, rank: int, size: int, check: str, *, inside: bool
    ) -> tuple[float, bool] | None:
        try:
            return measures.all_reduce(
                store, rank, size, self.device, self._left_s(), inside=inside
            )
        except RuntimeError as error:  # of NCCL, gloo or torch
            first = str(error).strip().partition("\n")[0]
            why = "training exchanges gradients so in every step"
            fix = "NCCL_DEBUG=INFO loopcoder doctor ... shows the way that it takes"
            self._own.add(check, "error", f"rank {self.rank}: {first}", why, fix)
            return None

    def _share(self, exchange: Exchange) -> None:
        """Add what every rank has measured to what was seen on its machine."""
        told = exchange.settle(
            "doctor/measured", json.dumps([self._key, self._own.to_json()]), list
        )
        for key, seen in told:
            self.nodes[key].seen.join(Seen.from_json(seen))
        exchange.tell("doctor/bye", "")
        if self.rank == 0:  # which may keep the store that the others read
            for rank in range(self.size):
                exchange.read("doctor/bye", rank)

    def _left_s(self) -> float:
        return max(1.0, self._ask.until - time.monotonic())

    def _enter(self, stage: str) -> None:
        """Write what is known, and what comes next."""
        nodes = {key: node.to_json() for key, node in self.nodes.items()}
        text = json.dumps(asdict(Result(nodes, self.job.to_json(), stage)))
        beside = self._path.with_suffix(".part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self._path)


def _key_of_node(first_rank: int) -> str:
    """Return what all ranks of this machine, and no others, have in common."""
    named = None
    if "RANK" in os.environ:  # of a launcher; a shell of a job has the number of its node, too
        named = os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID")
    return f"node {named or first_rank}"


def _is_plain(error: LoopcoderError) -> bool:
    """Say whether an error is made of its text alone."""
    return not hasattr(error, "problems")


def main(settings: str, folder: str) -> None:
    """Read what is asked, and leave what was found."""
    exit_with_parent()
    ask = Ask(**json.loads(Path(settings).read_text(encoding="utf-8")))
    local = os.environ.get("LOCAL_RANK", "0")
    Probe(ask, Path(folder, f"local_{local}.json")).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # NCCL and stores may hang at the end of a process


if __name__ == "__main__":
    main(*sys.argv[1:])
