"""Nodes of a job: what differs, whose clock is off, who sees no shared folder."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import HashStore

from loopcoder.doctor import thresholds as t
from loopcoder.doctor import together
from loopcoder.doctor.clock import check_clock, clock_finding
from loopcoder.doctor.compare import differences
from loopcoder.doctor.findings import Finding, Node, Seen
from loopcoder.parallel.handshake import Exchange
from loopcoder.parallel.peers import Peers


class Store(HashStore):  # type: ignore[misc]
    """The store of a world in one process."""

    def clone(self) -> Store:
        return self


def on_nodes(count: int, work: Callable[[Exchange, int], Seen]) -> list[Finding]:
    """Let nodes of one rank work together; return what was found, the same on all."""
    store = Store()

    def rank(number: int) -> list[Finding]:
        return work(Exchange(Peers(store, number, count), timeout_s=30), number).findings

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(rank, range(count)))
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds by which the clocks of nodes are ahead, by the name of their thread."""
    ahead: dict[str, float] = {}
    monkeypatch.setattr(
        together, "now", lambda: time.time() + ahead.get(threading.current_thread().name, 0)
    )
    monkeypatch.setattr(together, "_SEEN_WITHIN_S", 0.3)
    return ahead


def compared(
    clocks: dict[str, float], ahead_s: list[float], folders: list[Path | None]
) -> list[Finding]:
    def work(exchange: Exchange, number: int) -> Seen:
        clocks[threading.current_thread().name] = ahead_s[number]
        folder, seen = folders[number], Seen()
        run_dir = None if folder is None else str(folder / "run")
        together.compare_nodes(exchange, f"node{number}", run_dir, seen)
        return seen

    return on_nodes(len(folders), work)


def test_nodes_that_share_all(clocks: dict[str, float], tmp_path: Path) -> None:
    found = compared(clocks, [0, 0.5, -0.5], [tmp_path] * 3)
    assert [f.level for f in found] == ["ok"] * 3
    assert f"all nodes see {tmp_path}" in found[-1].fact
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_off(clocks: dict[str, float], tmp_path: Path, rng: random.Random) -> None:
    off, level = rng.choice([(30.0, "warning"), (-3600.0, "error")])
    _, wrong, _ = compared(clocks, [0, 0, off], [tmp_path] * 3)
    assert wrong.level == level and wrong.fact.startswith("node2 is ")
    assert ("ahead of" if off > 0 else "behind") in wrong.fact and "chronyc" in wrong.fix
    assert wrong.value is not None and abs(wrong.value - off) < t.CLOCK_WARNING_S


@pytest.mark.parametrize(
    ("off", "level"),
    [
        (t.CLOCK_WARNING_S, "ok"),
        (t.CLOCK_WARNING_S + 0.01, "warning"),
        (-t.CLOCK_ERROR_S, "warning"),
        (-t.CLOCK_ERROR_S - 0.01, "error"),
    ],
)
def test_clocks_at_the_boundary(off: float, level: str) -> None:
    assert clock_finding("a", off, 0).level == level


@pytest.mark.parametrize(("year", "level"), [(1970, "error"), (2026, "ok"), (2101, "error")])
def test_a_clock_of_another_age(year: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = time.struct_time((year, 6, 1, 0, 0, 0, 0, 152, 0))
    monkeypatch.setattr(time, "gmtime", lambda _: there)
    (finding,) = check_clock().findings
    assert finding.level == level and str(year) in finding.fact


def test_a_folder_that_is_not_shared(
    clocks: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node sees another disk in that place."""
    real, blind = together._appears, "node1"
    names: dict[str, str] = {}

    def appears(path: Path) -> bool:
        elsewhere = tmp_path / "another" / path.name
        return real(elsewhere if names[threading.current_thread().name] == blind else path)

    def work(exchange: Exchange, number: int) -> Seen:
        names[threading.current_thread().name] = f"node{number}"
        seen = Seen()
        together.compare_nodes(exchange, f"node{number}", str(tmp_path), seen)
        return seen

    monkeypatch.setattr(together, "_appears", appears)
    *_, finding = on_nodes(3, work)
    assert finding.level == "error" and finding.fact.endswith("is not seen by node1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_can_write_is_not_looked_for(clocks: dict[str, float]) -> None:
    assert [f.check for f in compared(clocks, [0, 0], [None, None])] == ["clocks"]


def test_all_nodes_know_what_was_seen_on_each(rng: random.Random) -> None:
    facts = [str(rng.random()) for _ in range(3)]

    def work(exchange: Exchange, number: int) -> Seen:
        own = Node(f"node{number}", Seen([Finding("x", "ok", facts[number])], {"python": "3"}))
        seen = Seen()
        for node in together.gather(exchange, f"key {number}", own).values():
            seen.join(node.seen)
        return seen

    assert [f.fact for f in on_nodes(3, work)] == facts


def nodes(*values: dict[str, str]) -> list[Node]:
    return [Node(f"node{n}", Seen(values={"python": "3.12"} | v)) for n, v in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ([{"torch": "2.11"}, {"torch": "2.10"}, {"torch": "2.11"}], "error"),
        ([{"torch": "2.11"}, {}, {"torch": "2.11"}], "error"),
        ([{"driver": "1"}, {"driver": "2"}, {"driver": "1"}], "warning"),
        ([{"driver": "1"}, {}, {"driver": "1"}], None),
        ([{"torch": "2.11"}] * 3, None),
    ],
)
def test_what_differs_is_named(values: list[dict[str, str]], level: str | None) -> None:
    found = list(differences(nodes(*values)))
    assert [f.level for f in found] == ([] if level is None else [level])
    if level is not None:
        assert "on node0, node2; " in found[0].fact and found[0].fact.endswith(" on node1")
    seen = Seen()
    together.compare_all(nodes(*values), seen)
    assert bool(found) != any(f.check == "nodes" and f.level == "ok" for f in seen.findings)


def test_a_node_that_could_not_look_is_not_compared() -> None:
    silent = Node("silent", Seen())
    assert list(differences([*nodes({"torch": "2"}), silent])) == []
