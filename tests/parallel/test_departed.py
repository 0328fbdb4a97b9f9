"""Nobody waits for a rank that has ended before all had met."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopcoder.errors import EXIT_VARIABLE, ProcessLost, record_exit
from loopcoder.parallel import departed
from loopcoder.parallel.mcore import start_processes


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """Where nobody listens, in a world of three."""
    monkeypatch.setattr(departed, "_LOOK_EVERY_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (variables | {EXIT_VARIABLE: tmp_path / "codes"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    yield port


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_rank_that_ended_before_all_had_met_ends_the_others(
    waiting: int, port: int, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    """Rank 0 keeps the store and waits in it for the others, rank 1 waits for the store."""
    code = rng.choice([1, 3, 75, 76])
    monkeypatch.setenv("RANK", "2")
    record_exit(code)
    monkeypatch.setenv("RANK", str(waiting))
    with pytest.raises(ProcessLost, match=f"rank 2 has ended with {code} before") as error:
        start_processes(timeout_s=20, report_after_s=10)
    assert error.value.exit_code == code


def test_nobody_has_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record_exit(0)
    departed.Departed().look()
    monkeypatch.delenv(EXIT_VARIABLE)
    departed.Departed().look()
