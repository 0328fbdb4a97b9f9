"""Host memory that a background save copies tensors into, while training stands still.

It is shared with the writer that is forked, so that forking copies no page tables for it, and
pinned, so that the device fills it at the rate of its link. It is taken once: pinning tens of
gigabytes takes seconds, which pass beside the first steps.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 4096
_PIECE = 64 << 20
"""Bytes that are pinned at once: the driver serves nobody else meanwhile."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14), which the standard library does not name."""


class Staging:
    """Memory for what one rank writes; one save at a time has it."""

    def __init__(self, device: torch.device, note: Callable[[str], None]):
        """
        Args:
            note: is told once if the memory cannot be pinned, which makes saves slower.
        """
        self.device, self._note = device, note
        self._memory: mmap.mmap | None = None
        self._size = 0
        self._thread: threading.Thread | None = None
        self._fault: str | None = None
        self._pinned: list[int] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def is_prepared(self) -> bool:
        return self._memory is not None

    @property
    def is_preparing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def prepare(self, size: int) -> None:
        """Take memory for so many bytes, beside what the caller goes on with."""
        self.close()
        self._size = max(-(-size // _PIECE), 1) * _PIECE
        self._memory = mmap.mmap(-1, self._size)
        self._thread = threading.Thread(target=self._pin, name="pins memory for saves")
        self._thread.start()

    def copy(self, buckets: Sequence[Any]) -> list[Any]:
        """Begin to copy the tensors of megatron-core's write buckets; return the buckets with the
        copies, which are whole after `wait`."""
        tensors = [t for _, _, (_, held) in buckets for _, t in held]
        needed = sum(_aligned(_bytes(t)) for t in tensors)
        if self._memory is None or needed > self._size:
            self.prepare(needed)
        self._settled()
        if self._stream is None:
            return self._filled(buckets)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            return self._filled(buckets)

    def wait(self) -> None:
        """Wait until the copies are whole; only then may the tensors change."""
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """Give the memory back, once no copy is used any more."""
        self._settled()
        self._unpin()
        self._memory = None

    def _filled(self, buckets: Sequence[Any]) -> list[Any]:
        out, at = [], 0
        for file, key, (objects, tensors) in buckets:
            copies = []
            for item, tensor in tensors:
                copies.append((item, self._copied(tensor, at)))
                at += _aligned(_bytes(tensor))
            out.append((file, key, (objects, copies)))
        return out

    def _copied(self, tensor: Tensor, at: int) -> Tensor:
        if tensor.numel() == 0:
            return tensor.cpu()
        assert self._memory is not None
        # a storage of its own: torch.save writes all of one
        copy = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=at)
        source = tensor.detach().reshape(-1)
        begin = 0
        while begin < len(source):  # CUDA refuses what reaches over what was pinned at once
            room = _PIECE - (at + begin * tensor.itemsize) % _PIECE
            end = min(begin + room // tensor.itemsize, len(source))
            copy[begin:end].copy_(source[begin:end], non_blocking=True)
            begin = end
        return copy.view(tensor.shape)

    def _settled(self) -> None:
        """Wait for the pinning, and say what kept it from happening."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fault is not None:
            self._note(self._fault)
            self._fault = None

    def _pin(self) -> None:
        for begin, size in self._pieces():
            _populate(begin, size)
            if not threading.main_thread().is_alive():
                return  # the run ends
        if self._stream is None:
            return
        torch.cuda.set_device(self.device)  # of this thread
        runtime = torch.cuda.cudart()
        for begin, size in self._pieces():
            if not threading.main_thread().is_alive():
                return
            code = int(runtime.cudaHostRegister(begin, size, 0))
            if code != 0:
                self._fault = (
                    f"memory for checkpoints cannot be pinned (CUDA's error {code}): training "
                    "stands still for longer at saves; raise the limit of locked memory (ulimit "
                    "-l), or checkpoint.async_save=false"
                )
                return
            self._pinned.append(begin)

    def _unpin(self) -> None:
        for begin in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(begin)
        self._pinned = []

    def _pieces(self) -> list[tuple[int, int]]:
        assert self._memory is not None
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        return [(begin + at, _PIECE) for at in range(0, self._size, _PIECE)]


def _populate(begin: int, size: int) -> None:
    """Let the kernel provide the pages now; where it cannot, they come when they are written."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), ctypes.c_int(_POPULATE_WRITE))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
