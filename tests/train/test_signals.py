"""Asked to stop: remembered, agreed on by all ranks, and a second Ctrl-C does not wait."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from loopcoder.storage.signals import ASKS as HEARD
from loopcoder.train.signals import StopSignal
from tests.dist.launch import in_processes

CPU = torch.device("cpu")


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """A StopSignal; what listened before listens again afterwards."""
    before = {number: signal.getsignal(number) for number in HEARD}
    for number in HEARD:  # whatever started the tests may ignore some
        signal.signal(number, signal.SIG_DFL)
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
    with pytest.raises(KeyboardInterrupt, match="without a checkpoint"):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_launcher_may_repeat_itself(ranks, stop, number):
    """Launchers send their signal to the process and to its group, or warn and then terminate."""
    try:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(number)
    except KeyboardInterrupt:
        pytest.fail("the step was interrupted")  # pytest itself would stop at a KeyboardInterrupt
    assert stop.requested(CPU)


def test_nobody_else_is_deaf():
    """Signals that are not for stopping do what they did."""
    others = [n for n in signal.valid_signals() if n not in HEARD]
    before = {n: signal.getsignal(n) for n in signal.valid_signals()}
    try:
        StopSignal()
        assert {n: signal.getsignal(n) for n in others} == {n: before[n] for n in others}
    finally:
        for number in HEARD:
            signal.signal(number, before[number])


def test_slurm_s_and_a_limit_s_are_requests():
    assert {signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU} < set(HEARD)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_is_for_others(stop, number):
    signal.signal(number, signal.SIG_IGN)  # as a shell's script, and nohup, starts it
    in_background = StopSignal()
    signal.raise_signal(number)
    assert in_background.name is None
    signal.raise_signal(signal.SIGTERM)
    assert in_background.name == "SIGTERM"


def _answers(rank: int, asked: int) -> list[bool]:
    """What a rank hears before and after rank `asked` gets a signal."""
    stop = StopSignal()
    answers = [stop.requested(CPU)]
    if rank == asked:
        signal.raise_signal(signal.SIGTERM)
    return [*answers, stop.requested(CPU)]


@pytest.mark.dist
@pytest.mark.chaos
def test_all_ranks_agree():
    """Only one is asked; if it alone left the loop, the other would wait in a collective for
    ever."""
    assert in_processes(2, _answers, 1) == [[False, True]] * 2
