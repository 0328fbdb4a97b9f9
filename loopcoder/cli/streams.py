"""What a command prints to: nothing that is closed, full or without a reader stops it, and secrets
are not printed."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Buffer, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from loopcoder.storage.disk import DISK_FULL
from loopcoder.storage.secrets import masked, secret_values

_NOBODY_READS = frozenset({errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF})
"""`| head` has ended, a terminal is closed, a descriptor is not for writing."""


class Output(io.FileIO):
    """A file descriptor whose first failed write sends it, and what follows, nowhere.

    Only what says that nobody takes the output counts; other errors are raised.
    """

    lost: OSError | None = None
    """Why writes go nowhere."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS | DISK_FULL:
                raise
            self.lost = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes

    @property
    def is_full(self) -> bool:
        """Whether a full disk took the output away."""
        return self.lost is not None and self.lost.errno in DISK_FULL


class MaskedText(io.TextIOWrapper):
    """Writes *** in place of passwords in URLs and of the environment's secrets."""

    secrets: Sequence[str] = ()

    def write(self, text: str, /) -> int:
        super().write(masked(text, self.secrets))
        return len(text)


@contextmanager
def lasting_output() -> Iterator[list[Output]]:
    """Let every print of the block succeed; yield the standard output, if it is a file at all.

    A standard stream that is closed is /dev/null. What the encoding does not have is printed as
    \\xe4; of a file's name that is not UTF-8, its bytes. Our streams are put back after
    the block, and all that was printed is written by then.
    """
    _open_closed_ones()
    before = sys.stdout, sys.stderr
    sys.stdout, out = _lasting(sys.stdout)
    sys.stderr, _ = _lasting(sys.stderr)
    try:
        yield out
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = before


def nobody_reads() -> bool:
    """Say whether what is printed goes nowhere by now; of a stream that is none of ours, no."""
    buffer = getattr(sys.stdout, "buffer", None)
    output = getattr(buffer, "raw", buffer)
    return isinstance(output, Output) and output.lost is not None


def is_utf8(text: str) -> bool:
    """Say whether a text can be written as UTF-8; an argument or a name of other bytes cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _any_character(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:  # what Python makes of a byte that is not UTF-8 (PEP 383)
        return bytes([code - 0xDC00]), error.start + 1
    error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


_ANY_CHARACTER = "loopcoder.any_character"
codecs.register_error(_ANY_CHARACTER, _any_character)


def _open_closed_ones() -> None:
    # a file that is opened later would get a free number below 3, and our prints
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays
            setattr(sys, name, nowhere)


def _lasting(stream: TextIO) -> tuple[TextIO, list[Output]]:
    """Return a stream as `lasting_output` has it; one that is no file is only reconfigured."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream, []
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
        stream.reconfigure(errors=_ANY_CHARACTER)
        return stream, []
    output = Output(stream.fileno(), "wb", closefd=False)
    lasting = MaskedText(
        output if stream.write_through else io.BufferedWriter(output),
        stream.encoding,
        _ANY_CHARACTER,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    lasting.secrets = list(secret_values())
    return lasting, [output]
