"""Ranks that differ, or do not reach each other, are refused on all of them."""

from __future__ import annotations

import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from loopcoder.errors import InputError, LoopcoderError, ProcessLost
from loopcoder.network import Route
from loopcoder.parallel import handshake
from loopcoder.parallel.handshake import GLOO_INTERFACE, shake_hands
from loopcoder.parallel.peers import Peer, Peers


class Store(HashStore):  # type: ignore[misc]
    """The store of a world in one process."""

    def clone(self) -> Store:
        return self


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(GLOO_INTERFACE, "")  # which is put back at the end
    monkeypatch.delenv(GLOO_INTERFACE)


def meet(shown: list[dict[str, str]], *, machines: int) -> list[LoopcoderError | None]:
    """Let ranks shake hands, on machines in turn; return what each of them raises."""
    store, size = Store(), len(shown)

    def rank(number: int) -> LoopcoderError | None:
        peers = Peers(store, number, size)
        peers.me = Peer(number, f"host{number}", 1, f"machine {number % machines}")
        try:
            shake_hands(peers, lambda: shown[number], timeout_s=20)
        except LoopcoderError as error:
            return error
        return None

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


def test_ranks_that_agree_use_the_way_to_rank_0(rng: random.Random) -> None:
    shown = {"seed": str(rng.random())}
    assert meet([shown] * 3, machines=rng.choice([1, 3])) == [None] * 3
    loopback = os.environ[GLOO_INTERFACE]
    assert handshake.route_of(loopback) == Route("127.0.0.1", loopback)


def test_what_differs_is_told_to_all(rng: random.Random) -> None:
    size, value = rng.randint(2, 5), str(rng.random())
    odd = rng.randrange(1, size)
    shown = [{"seed": "1", "optim.lr": "2"} for _ in range(size)]
    shown[odd]["optim.lr"] = value
    for error in meet(shown, machines=2):
        assert isinstance(error, InputError)
        assert f"rank {odd} has optim.lr={value}, rank 0 2" in str(error)
        assert "seed" not in str(error)


@pytest.mark.parametrize("given", [None, "lo"])
def test_who_is_not_reached_is_told_to_all(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    if given is not None:
        monkeypatch.setenv(GLOO_INTERFACE, given)

    def nowhere(address: str) -> socket.socket:
        """Has a port that is closed before anybody connects."""
        listener = socket.create_server((address, 0))
        port = listener.getsockname()[1]
        listener.close()
        closed = socket.socket()
        monkeypatch.setattr(closed.__class__, "getsockname", lambda _: (address, port))
        return closed

    monkeypatch.setattr(handshake, "_listening", nowhere)
    errors = meet([{}, {}], machines=2)
    assert {type(e) for e in errors} == {ProcessLost if given is None else InputError}
    for error in errors:
        assert "rank 0 (host0, process 1) does not reach rank 1 at 127.0.0.1" in str(error)
        assert (f"{GLOO_INTERFACE}={given}" in str(error)) == (given is not None)


def test_an_interface_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO_INTERFACE, "ib7,ib8")
    for error in meet([{}, {}], machines=2):
        assert isinstance(error, InputError)
        assert "has no interface GLOO_SOCKET_IFNAME=ib7" in str(error)
