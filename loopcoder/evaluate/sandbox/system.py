"""Calls of Linux that Python's standard library does not have."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8  # linux/mount.h
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR = 442  # the number of every architecture; Linux 5.12

_LIBC = ctypes.CDLL(None, use_errno=True)


def _called(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _called(
        _LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl({option}, {value})"
    )


def end_with_parent(has_ended: Callable[[], bool]) -> None:
    """Have the kernel kill this process when the one that started it ends. Changes of user and of
    privileges undo it.

    Args:
        has_ended: Whether that process is gone already, of whose end the kernel then says nothing.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if has_ended():
        os._exit(0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    texts = (source.encode(), target.encode(), kind.encode())
    result = _LIBC.mount(*texts, ctypes.c_ulong(flags), options.encode() or None)
    _called(result, f"mount {kind or source} at {target}")


def make_read_only(path: str, *, below: bool) -> None:
    """Make a mount read-only and its devices and set-user-ids void; `below`: those in it, too."""
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    result = _LIBC.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        path.encode(),
        ctypes.c_uint(_AT_RECURSIVE if below else 0),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _called(result, f"mount_setattr {path} (Linux 5.12)")


def pivot_root(new: str, old: str) -> None:
    _called(_LIBC.pivot_root(new.encode(), old.encode()), f"pivot_root {new}")


def detach(path: str) -> None:
    _called(_LIBC.umount2(path.encode(), _MNT_DETACH), f"umount {path}")


def drop_bounding_set() -> None:
    """Have no file that is executed bring capabilities."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # the kernel has no more


def drop_capabilities() -> None:
    """Give up the capabilities that this process has."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _called(_LIBC.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
