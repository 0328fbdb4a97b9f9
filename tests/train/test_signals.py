"""Asked to stop: remembered, agreed on by all ranks, and a second Ctrl-C does not wait."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from loopcoder.train.signals import StopSignal
from tests.dist.launch import in_processes

HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
CPU = torch.device("cpu")


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """A StopSignal; what listened before listens again afterwards."""
    before = {number: signal.getsignal(number) for number in HEARD}
    yield StopSignal()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HEARD)
def test_remembers_each_signal(ranks, stop, number):
    assert stop.name is None
    assert not stop.requested(CPU)
    signal.raise_signal(number)  # returns: nothing is interrupted
    assert stop.name == number.name
    assert stop.requested(CPU)
    assert stop.requested(CPU)  # for good


def test_a_second_ctrl_c_does_not_wait(ranks, stop):
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_launcher_may_repeat_itself(ranks, stop, number):
    """Launchers send their signal to the process and to its group, or warn and then terminate."""
    try:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(number)
    except KeyboardInterrupt:
        pytest.fail("the step was interrupted")  # pytest itself would stop at a KeyboardInterrupt
    assert stop.requested(CPU)


def test_nobody_else_is_deaf(stop):
    """Signals that are not for stopping do what they did."""
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def _answers(rank: int, asked: int) -> list[bool]:
    """What a rank hears before and after rank `asked` gets a signal."""
    stop = StopSignal()
    answers = [stop.requested(CPU)]
    if rank == asked:
        signal.raise_signal(signal.SIGTERM)
    return [*answers, stop.requested(CPU)]


@pytest.mark.dist
def test_all_ranks_agree():
    """Only one is asked; if it alone left the loop, the other would wait in a collective for
    ever."""
    assert in_processes(2, _answers, 1) == [[False, True]] * 2
