"""A filter of system calls, by libseccomp."""

from __future__ import annotations

import ctypes
import errno
import os

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000  # with the error in the lower bits
_MASKED_EQUAL = 7

_REFUSED = (
    # Memory that outlives a mapping, and so no limit of address space counts.
    *("shmget", "memfd_create", "memfd_secret", "msgget"),
    # Networks, also those of a namespace in which somebody forgot something.
    "socket",
    # Other processes, and the keys of the user.
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
    *("keyctl", "add_key", "request_key"),
    # Privileges, and parts of the kernel with a history of holes that no such program needs.
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_by_handle_at"),
    *("move_mount", "open_tree", "fsopen", "fspick", "mount_setattr"),
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter"),
    *("quotactl", "swapon", "reboot", "kexec_load", "init_module", "finit_module"),
)
_NEW_NAMESPACES = (
    *(os.CLONE_NEWUSER, os.CLONE_NEWNS, os.CLONE_NEWPID, os.CLONE_NEWNET),
    *(os.CLONE_NEWIPC, os.CLONE_NEWUTS, os.CLONE_NEWCGROUP),
)


class _Compared(ctypes.Structure):
    """`struct scmp_arg_cmp` of seccomp.h."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class Filter:
    """The system calls that a candidate does without. Made where libseccomp can be found."""

    def __init__(self) -> None:
        """Raises OSError where there is no libseccomp."""
        try:
            self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        except OSError as error:
            raise OSError(errno.ENOENT, "there is no libseccomp.so.2") from error
        self._library.seccomp_init.restype = ctypes.c_void_p

    def apply(self) -> None:
        """Refuse them to this process and to all that it starts, for good."""
        context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(_ALLOW)))
        for name in _REFUSED:
            self._refuse(context, name, errno.EPERM)
        for flag in _NEW_NAMESPACES:
            compared = _Compared(0, _MASKED_EQUAL, flag, flag)
            self._refuse(context, "clone", errno.EPERM, compared)
        # Its flags are behind a pointer. The C library then calls `clone`.
        self._refuse(context, "clone3", errno.ENOSYS)
        self._done(self._library.seccomp_load(context), "seccomp_load")

    def _refuse(
        self, context: ctypes.c_void_p, name: str, code: int, compared: _Compared | None = None
    ) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # an older libseccomp does not know it, or this architecture does not have it
        count = 0 if compared is None else 1
        result = self._library.seccomp_rule_add_array(
            context,
            ctypes.c_uint32(_REFUSE | code),
            ctypes.c_int(number),
            ctypes.c_uint(count),
            None if compared is None else ctypes.byref(compared),
        )
        self._done(result, f"seccomp_rule_add {name}")

    @staticmethod
    def _done(result: int, what: str) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result), what)
