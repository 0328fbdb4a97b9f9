"""Host memory that a background save copies tensors into, while training stands still.

It is shared with the writer that is forked, so that forking copies no page tables for it, and
pinned, so that the device fills it at the rate of its link. It is taken once: pinning tens of
gigabytes takes seconds, which pass beside the first steps.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from loopcoder.storage.files import in_words

_ALIGNED = 4096
_PIECE = 64 << 20
"""Bytes that are pinned at once: the driver serves nobody else meanwhile."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14), which the standard library does not name."""


class Staging:
    """Memory for what one rank writes; one save at a time has it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.fault: str | None = None
        """What keeps the memory from being as fast as it should be, or from being there."""
        self._memory: mmap.mmap | None = None
        self._size = 0
        self._thread: threading.Thread | None = None
        self._pinned: list[int] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def is_prepared(self) -> bool:
        """Whether memory was taken, or could not be."""
        return self._memory is not None or self.fault is not None

    @property
    def is_preparing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def prepare(self, sizes: Iterable[int]) -> None:
        """Take memory for tensors of so many bytes each, beside what the caller goes on with."""
        self.close()
        self._size = max(-(-sum(map(_aligned, sizes)) // _PIECE), 1) * _PIECE
        try:
            self._memory = mmap.mmap(-1, self._size)
        except OSError as error:
            self.fault = self._no_memory(error)
            return
        self._thread = threading.Thread(target=self._pin, name="pins memory for saves")
        self._thread.start()

    def copy(self, buckets: Sequence[Any]) -> list[Any] | None:
        """Begin to copy the tensors of megatron-core's write buckets.

        Returns:
            the buckets with the copies, which are whole after `wait`; None: there is no memory.
        """
        sizes = [t.nbytes for _, _, (_, held) in buckets for _, t in held]
        if not self.is_prepared or (self._memory and sum(map(_aligned, sizes)) > self._size):
            self.prepare(sizes)
        self._settled()
        if self._memory is None:
            return None
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
        self.wait()
        for begin in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(begin)
        self._pinned, self._memory = [], None

    def _filled(self, buckets: Sequence[Any]) -> list[Any]:
        out, at = [], 0
        for file, key, (objects, tensors) in buckets:
            copies = []
            for item, tensor in tensors:
                copies.append((item, self._copied(tensor, at)))
                at += _aligned(tensor.nbytes)
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
        """Wait until the memory is there, or cannot be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _pin(self) -> None:
        try:
            for begin, size in self._pieces():
                _populate(begin, size)
                if not threading.main_thread().is_alive():
                    return  # the run ends
        except OSError as error:
            self.fault, self._memory = self._no_memory(error), None
            return
        try:
            self._register()
        except Exception as error:
            self.fault = (
                f"memory for checkpoints cannot be pinned ({error}): training stands still for "
                "longer at saves; raise the limit of locked memory (ulimit -l), or "
                "checkpoint.async_save=false"
            )

    def _register(self) -> None:
        if self._stream is None:
            return
        torch.cuda.set_device(self.device)  # of this thread
        for begin, size in self._pieces():
            if not threading.main_thread().is_alive():
                return
            code = int(torch.cuda.cudart().cudaHostRegister(begin, size, 0))
            if code != 0:
                raise RuntimeError(f"CUDA's error {code}")
            self._pinned.append(begin)

    def _no_memory(self, error: OSError) -> str:
        return (
            f"there are no {in_words(self._size)} of memory for checkpoints on the host "
            f"({error.strerror or error}): megatron-core copies tensor by tensor, and training "
            "stands still for longer at saves; give the run more, or checkpoint.async_save=false"
        )

    def _pieces(self) -> list[tuple[int, int]]:
        assert self._memory is not None
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        return [(begin + at, _PIECE) for at in range(0, self._size, _PIECE)]


def _populate(begin: int, size: int) -> None:
    """Let the kernel provide the pages now; an older one provides them when they are written.

    Raises:
        OSError: there is not as much memory.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), ctypes.c_int(_POPULATE_WRITE)):
        number = ctypes.get_errno()
        if number != errno.EINVAL:
            raise OSError(number, os.strerror(number))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
