"""Machines of a test: network namespaces on a bridge, each with processes, a name and mounts of its
own. Their names do not resolve, as in many clusters."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def cannot_make() -> str | None:
    """Return why there can be no such machines here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux)"
    name = f"loopcoder{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Node:
    """One machine."""

    def __init__(self, number: int, prefix: str):
        self.name, self.address = f"node{number}", f"10.77.0.{number}"
        self.namespace, self._switch, self._port = f"{prefix}{self.name}", f"{prefix}sw", self.name

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        disk_of_its_own: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command; killing the process that is returned kills all that came of it, as when
        the power fails.

        Args:
            folder: It is started there.
            disk_of_its_own: A folder in which this machine sees another disk.
        """
        script = f"hostname {self.name}\n"
        if disk_of_its_own is not None:
            script += f"mount -t tmpfs none {disk_of_its_own}\n"
        inside = ["ip", "netns", "exec", self.namespace]
        inside += ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return subprocess.Popen(
            [*inside, "sh", "-e", "-c", f'{script}exec "$@"', "sh", *command],
            cwd=folder,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut(self) -> None:
        """Pull its cable; what is sent is lost without a word."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("-n", self._switch, "link", "set", self._port, "up")


@contextmanager
def nodes(count: int) -> Iterator[list[Node]]:
    """Make machines on one network."""
    prefix = f"loopcoder{os.getpid()}"
    made = [Node(number, prefix) for number in range(1, count + 1)]
    switch = f"{prefix}sw"
    names = [switch, *(node.namespace for node in made)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for node in made:
            _ip("netns", "add", node.namespace)
            ends = ["eth0", "netns", node.namespace, "type", "veth", "peer", "name", node.name]
            _ip("link", "add", "name", *ends, "netns", switch)
            _ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", node.namespace, "link", "set", device, "up")
            _ip("-n", switch, "link", "set", node.name, "master", "bridge")
            _ip("-n", switch, "link", "set", node.name, "up")
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
