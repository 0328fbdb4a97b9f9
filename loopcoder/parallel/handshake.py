"""Before they make groups, the ranks show what they run, and that they reach each other.

Collectives of ranks that differ hang or compute nonsense, and a network that does not connect them
fails after long with an address that says nothing. The store of the world tells it at once.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from loopcoder.errors import InputError, ProcessLost
from loopcoder.network import Route, is_loopback, route_of, route_to
from loopcoder.parallel.patient import StoreSilent
from loopcoder.parallel.peers import Peers

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_CONNECTS_S = 10.0
_AGAIN_S = 0.05
_SHOWN = 8
ALL = "all"
"""In the place of a rank: what rank 0 tells all."""
"""In the place of a rank: what rank 0 tells all."""


@dataclass(frozen=True)
class _Hello:
    """What a rank shows."""

    machine: str
    alike: dict[str, str]
    """What has to be the same on all, by its name; one rank of each machine shows it."""
    address: str | None
    """By which others reach it."""
    fault: str | None = None
    """Why there is none."""


def shake_hands(peers: Peers, alike: Callable[[], Mapping[str, str]], timeout_s: float) -> None:
    """Refuse ranks that differ or do not reach each other, and let gloo use the interface by which
    they do. All ranks must call it, once in a world.

    Args:
        peers: All are there.
        alike: Says what has to be the same on all machines, by its name; is called on one rank of
            each.
        timeout_s: How long to wait for the others.

    Raises:
        InputError: ranks differ, or gloo was given an interface by which others are not reached.
        ProcessLost: ranks do not reach each other.
    """
    exchange, me = Exchange(peers, timeout_s), peers.me
    route, fault = _own_route()
    shows = me.rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0"
    hello = _Hello(
        me.machine, dict(alike()) if shows else {}, None if route is None else route.address, fault
    )
    told = exchange.settle("hello", json.dumps(asdict(hello)), _compared)
    if told["unlike"]:
        raise InputError.of(
            told["unlike"],
            "all ranks have to compute the same step",
            "the same installation and the same command on all nodes",
        )
    if told["faults"] or route is None:
        raise InputError.of(
            "; ".join(told["faults"][:_SHOWN]),
            "gloo connects all ranks by one interface of each machine",
            f"unset {GLOO_INTERFACE}, by which the interface that leads to rank 0 is taken; or "
            "export MASTER_ADDR=ADDRESS on all nodes, if it does not resolve",
        )
    if told["outside"] is not None:
        route, faults = _connected(exchange, told["outside"], route)
        if faults:
            raise _unreached(faults)
    if route.interface is not None:
        os.environ.setdefault(GLOO_INTERFACE, route.interface)


class Exchange:
    """What the ranks tell through the store; rank 0 reads all and tells what follows."""

    def __init__(self, peers: Peers, timeout_s: float):
        self.me, self.size, self._store = peers.me, peers.size, peers.store
        self._until = time.monotonic() + timeout_s
        self.pause_s = 0.01 + self.size / 2000
        """Seconds between two looks at what another rank tells."""

    def tell(self, what: str, value: str, by: int | str | None = None) -> None:
        """Tell all ranks a value: this rank's, or that of `by`."""
        key = f"loopcoder/{what}/{self.me.rank if by is None else by}"
        while time.monotonic() < self._until:
            try:
                self._store.set(key, value)
            except StoreSilent:
                time.sleep(_AGAIN_S)
            else:
                return

    def read(self, what: str, rank: int | str) -> str:
        """Return what a rank told, once it has."""
        key = f"loopcoder/{what}/{rank}"
        while time.monotonic() < self._until:
            with suppress(StoreSilent):
                if self._store.check([key]):
                    return self._store.get(key).decode()
            time.sleep(self.pause_s)
        raise ProcessLost.of(
            f"{self.me} waits for what rank {0 if rank == ALL else rank} tells of itself "
            "(parallel.timeout_s)",
            "every rank has to be there before the first step",
            "start the same command again",
        )

    def settle(self, what: str, value: str, judge: Callable[[list[Any]], Any]) -> Any:
        """Tell a value; return what rank 0 makes of those of all ranks, by rank."""
        self.tell(what, value)
        if self.me.rank == 0:
            told = [json.loads(self.read(what, rank)) for rank in range(self.size)]
            self.tell(what, json.dumps(judge(told)), by=ALL)
        return json.loads(self.read(what, ALL))


def _compared(told: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what differs, and an address that is reached from outside of rank 0's machine."""
    hellos = [_Hello(**one) for one in told]
    unlike = [
        f"rank {rank} has {name}={value}, rank 0 {hellos[0].alike[name]}"
        for rank, hello in enumerate(hellos)
        for name, value in hello.alike.items()
        if value != hellos[0].alike.get(name, value)
    ]
    machines = {hello.machine for hello in hellos}
    addresses = [h.address for h in hellos if h.address and not is_loopback(h.address)]
    more = f"; and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
    outside = next(iter(addresses), hellos[0].address) if len(machines) > 1 else None
    faults = [f"rank {rank}: {h.fault}" for rank, h in enumerate(hellos) if h.fault is not None]
    return {"unlike": "; ".join(unlike[:_SHOWN]) + more, "outside": outside, "faults": faults}


def _faults(told: list[str | None]) -> list[str]:
    return [fault for fault in told if fault is not None]


def _own_route() -> tuple[Route | None, str | None]:
    """Return how others reach this rank, by the interface that gloo was given or by that which
    leads to rank 0; or else why they do not."""
    host, given = socket.gethostname(), os.environ.get(GLOO_INTERFACE, "").partition(",")[0]
    if not given:
        master = os.environ["MASTER_ADDR"]
        try:
            return route_to(master), None
        except OSError as error:
            return None, f"no way from {host} to MASTER_ADDR={master} ({error.strerror})"
    if (route := route_of(given)) is None:
        return None, f"{host} has no interface {GLOO_INTERFACE}={given}, or that has no address"
    return route, None


def _reached_from(outside: str, route: Route) -> Route:
    """Return the way to another machine, where a name leads to the loopback: as Debian's
    /etc/hosts has it for a machine's own."""
    if not is_loopback(route.address) or os.environ.get(GLOO_INTERFACE):
        return route
    return route_to(outside)


def _connected(exchange: Exchange, outside: str, route: Route) -> tuple[Route, list[str]]:
    """Be there for the rank before and connect to the next one; return the way by which this rank
    is reached, and what is wrong anywhere."""
    try:
        route = _reached_from(outside, route)
        listener = _listening(route.address)
    except OSError as error:
        exchange.tell("at", json.dumps(None))
        fault = f"{exchange.me} cannot be reached at {route.address}: {error.strerror}"
        return route, exchange.settle("faults", json.dumps(fault), _faults)
    with listener:
        port = listener.getsockname()[1]
        exchange.tell("at", json.dumps([route.address, port, route.interface]))
        tried = json.dumps(_fault_to_next(exchange))
        return route, exchange.settle("faults", tried, _faults)  # all have tried by then


def _listening(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)


def _fault_to_next(exchange: Exchange) -> str | None:
    """Connect to the next rank; say what is wrong."""
    other = (exchange.me.rank + 1) % exchange.size
    place = json.loads(exchange.read("at", other))
    if place is None:  # which it tells itself
        return None
    address, port, interface = place
    try:
        socket.create_connection((address, port), timeout=_CONNECTS_S).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
        at = f"{address} (its interface {interface})"
        return f"{exchange.me} does not reach rank {other} at {at}: {reason}"
    return None


def _unreached(faults: list[str]) -> Exception:
    fact = "; ".join(faults[:_SHOWN])
    if given := os.environ.get(GLOO_INTERFACE):
        return InputError.of(
            f"{fact}; {GLOO_INTERFACE}={given}",
            "gloo connects all ranks by the interface that it is given",
            f"unset {GLOO_INTERFACE}, or name an interface that the other nodes reach",
        )
    return ProcessLost.of(
        fact,
        "all ranks have to reach each other, on any port",
        "see to the network, a firewall between the nodes say, or export "
        f"{GLOO_INTERFACE}=INTERFACE on each node; then start the same command again",
    )
