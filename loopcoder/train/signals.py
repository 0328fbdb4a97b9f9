"""Asked to stop: finish the step, save, exit with 75 so that the launcher starts the same command
again."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from loopcoder.storage.signals import heard, leave_terminal, name_of


class StopSignal:
    """Remembers the signals that ask to stop; all ranks agree before any of them acts."""

    def __init__(self, *, is_starting: bool = False) -> None:
        """
        Args:
            is_starting: There is nothing to save before `started` is called: a signal interrupts.
        """
        self.name: str | None = None
        self._is_starting = is_starting
        self._on_its_way: tuple[torch.cuda.Event, torch.Tensor] | None = None
        for number in heard():
            signal.signal(number, self._remember)

    def started(self) -> None:
        """Remember signals from here on."""
        self._is_starting = False

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.name is not None:
            # it does not wait for the step
            raise KeyboardInterrupt("a second Ctrl-C: ended at once, without a checkpoint")
        if number == signal.SIGHUP:
            leave_terminal()
        self.name = signal.Signals(number).name
        if self._is_starting:
            raise KeyboardInterrupt(
                f"{name_of(number)} before the first step; the same command continues"
            )

    def requested(self, device: torch.device, *, now: bool = False) -> bool:
        """Say whether any rank was asked to stop; every rank must call it after every step.

        On GPUs the answer is that of the call before, which was on its way while this step was
        launched: so the host is never more than a step ahead, and the GPU never waits for it.

        Args:
            now: wait for what the ranks say now. All of them must ask so.
        """
        if dist.get_world_size() == 1:
            return self.name is not None
        flag = torch.full((1,), int(self.name is not None), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if device.type == "cpu" or now:
            self._on_its_way = None  # whoever was asked before says so now as well
            return bool(flag.item())
        answer = torch.empty(1, dtype=flag.dtype, pin_memory=True)
        answer.copy_(flag, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        before, self._on_its_way = self._on_its_way, (arrived, answer)
        if before is None:
            return False
        before[0].synchronize()
        return bool(before[1].item())
