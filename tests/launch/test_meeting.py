"""How several nodes are told where they meet, and what is refused."""

from __future__ import annotations

import random
import re
import socket
from dataclasses import replace

import pytest

from launch import nodes
from launch.nodes import Attendance, arguments_of_torchrun, meeting_point, refuse_other_launch
from loopcoder.backends import Backends
from loopcoder.config.resolve import processes_to_start
from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import InputError, ProcessLost
from tests.configs import small_config


def two(rendezvous: str | None, **fields: float) -> ParallelConfig:
    return ParallelConfig(nodes=2, rendezvous=rendezvous, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gpu1:29500", ("gpu1", 29500)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[fd00::1]:7", ("fd00::1", 7)),
    ],
)
def test_where_they_meet(text: str, place: tuple[str, int]) -> None:
    assert meeting_point(two(text)) == place


@pytest.mark.parametrize("text", [None, "gpu1", "gpu1:port", ":29500", "gpu1:0", "gpu1:65536"])
def test_a_place_that_is_none(text: str | None) -> None:
    with pytest.raises(InputError, match=r"parallel.rendezvous=HOST:29500"):
        meeting_point(two(text))


def test_one_node_does_not_need_its_name() -> None:
    assert "--local-addr=127.0.0.1" in arguments_of_torchrun(ParallelConfig())


@pytest.mark.parametrize(
    ("host", "named"),
    [("127.0.0.1", "is the loopback"), ("no-such-host.invalid", "there is no way to it")],
)
def test_a_place_that_others_do_not_reach(host: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        arguments_of_torchrun(two(f"{host}:29500"))


def test_a_place_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(nodes, "place_of", lambda host, port: (False, nodes.Route("10.0.0.2", "e")))
    monkeypatch.setattr("loopcoder.network._TRY_EVERY_S", 0.1)
    with pytest.raises(ProcessLost, match=f"127.0.0.1:{port}: .*timeout_s") as error:
        arguments_of_torchrun(two(f"127.0.0.1:{port}", timeout_s=0.5, report_after_s=0.1))
    assert error.value.exit_code == 75
    said = f"waits for the other nodes: 127.0.0.1:{port}: Connection refused"
    assert said in capsys.readouterr().err


def test_a_launcher_that_started_others(rng: random.Random) -> None:
    local, others = rng.randint(1, 8), rng.randint(2, 5)
    environ = {"WORLD_SIZE": str(local * others), "LOCAL_WORLD_SIZE": str(local)}
    asked = ParallelConfig(nproc_per_node=local, nodes=others)
    refuse_other_launch(asked, environ)
    refuse_other_launch(ParallelConfig(), environ)
    refuse_other_launch(asked, {"WORLD_SIZE": "1"})
    with pytest.raises(
        InputError, match=f"nproc_per_node={local + 1}, .* has started {local} here"
    ):
        refuse_other_launch(replace(asked, nproc_per_node=local + 1), environ)
    with pytest.raises(InputError, match=f"nodes={others + 1}, .* {local * others} proc"):
        refuse_other_launch(replace(asked, nodes=others + 1), environ)


@pytest.mark.parametrize(
    ("gpus", "parallel", "batch", "size"),
    [
        (8, {"nodes": 2}, 64, 16),
        (8, {"nodes": 2, "tp": 4}, 8, 16),  # four copies
        (8, {"nodes": 2}, 4, 2),  # two sequences at once on each
        (0, {"nodes": 2, "tp": 4}, 8, 4),
        (0, {"nodes": 3, "nproc_per_node": 2}, 8, 6),
    ],
)
def test_how_many_processes(gpus: int, parallel: dict[str, int], batch: int, size: int) -> None:
    config = small_config(**parallel)
    config = replace(config, train=replace(config.train, global_batch_size=batch))
    backends = Backends(gpus, "H200" if gpus else None, (9, 0) if gpus else None)
    assert processes_to_start(config, backends) == size


class Torchrun:
    """Counts how often it is killed."""

    kills = 0

    def kill(self) -> None:
        self.kills += 1


def test_torchrun_that_does_not_see_its_workers_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    torchrun, workers = Torchrun(), [object()]
    attendance = Attendance(two("gpu1:29500"))

    def look(at: float, found: list[object], failed: bool = True) -> int:
        now[0] = at
        attendance.look(torchrun, found, failed=failed)  # type: ignore[arg-type]
        return torchrun.kills

    assert not look(19, [])
    assert not capsys.readouterr().err
    assert not look(21, []) and not look(500, [])  # it waits for the others
    said = capsys.readouterr().err
    assert re.search(r"not all of 2 nodes have come to gpu1:29500", said)
    assert said.count("\n") == 1
    assert not look(600, workers) and not look(601, []) and not look(630, [])
    assert not look(632, [], failed=False)  # they are done, those of other nodes may not be
    assert look(632, []) == 1
    assert look(932, [], failed=False) == 2
