"""A real Slurm of Debian's packages on this machine: a controller, and a daemon for each node.

Its state, keys and ports are its own; nothing of the system's is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmctldParameters=node_reg_mem_percent=1
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
KillWait=30
MinJobAge=600
JobRequeue=1
LaunchParameters=use_interactive_step
NodeName=node[1-{count}] NodeAddr=127.0.0.1 NodeHostname={host} Port={ports} CPUs=2 RealMemory=4000
PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def cannot_run() -> str | None:
    """Return why there can be no Slurm here."""
    if os.geteuid() != 0:
        return "the daemons of Slurm need root"
    missing = [name for name in _PROGRAMS if _program(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None


class Cluster:
    """A running Slurm."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, psutil.Popen] = {}

    def start(self) -> None:
        """Start all daemons, and return when the nodes are idle."""
        for name in ("state", "log", "run", "spool", "munge"):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        port, *ports = _free_ports(self.count + 1)
        text = _CONF.format(
            host=host,
            port=port,
            ports=",".join(map(str, ports)),
            count=self.count,
            folder=self.folder,
        )
        self.conf.write_text(text)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = [f"--{name}={self.folder}/munge/{name}" for name in ("socket", "pid-file")]
        munge += [f"--{name}={self.folder}/munge/{name}" for name in ("log-file", "seed-file")]
        # --force: pytest's folders are for their owner alone, which munged dislikes
        self._run("munged", "--foreground", "--force", f"--key-file={key}", *munge)
        _until((self.folder / "munge" / "socket").exists)
        self._run("slurmctld", "-D")
        for number in range(1, self.count + 1):
            self.start_node(number)
        _until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(self.count))

    def start_node(self, number: int) -> None:
        """Start the daemon of a node."""
        self._run("slurmd", "-D", "-N", f"node{number}", name=f"node{number}")

    def kill_node(self, number: int) -> None:
        """End a node's daemon and all that it started, as when the power fails."""
        daemon = psutil.Process(self._daemons[f"node{number}"].pid)
        steps = [p for p in psutil.process_iter() if self._is_of(p, f"node{number}")]
        for process in [daemon, *steps, *(c for s in steps for c in s.children(recursive=True))]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._daemons.pop(f"node{number}").wait()

    def _is_of(self, process: psutil.Process, node: str) -> bool:
        with suppress(psutil.Error):
            return process.environ().get("SLURMD_NODENAME") == node and process.environ().get(
                "SLURM_CONF"
            ) == str(self.conf)
        return False

    @property
    def environment(self) -> dict[str, str]:
        """What its commands need."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        return kept | {"SLURM_CONF": str(self.conf)}

    def ask(
        self, *command: str, environ: Mapping[str, str] = {}, folder: Path | None = None
    ) -> str:
        """Run one of its commands; return what it printed."""
        done = subprocess.run(
            command,
            env=self.environment | environ,
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done.stdout + done.stderr

    def job(self, number: int | str) -> dict[str, str]:
        """Return what Slurm says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", str(number))))

    def stop(self) -> None:
        """End all daemons and what they started."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.conf) or self._keeps(process):
                    process.kill()
        for daemon in reversed(self._daemons.values()):
            with suppress(psutil.NoSuchProcess):
                daemon.send_signal(signal.SIGKILL)
            daemon.wait()

    def _keeps(self, process: psutil.Process) -> bool:
        """Say whether a process keeps a step of this Slurm: those have no environment."""
        return process.name() == "slurmstepd" and any(
            str(socket.laddr).startswith(str(self.folder))
            for socket in process.net_connections("unix")
        )

    def _run(self, program: str, *arguments: str, name: str | None = None) -> None:
        path = _program(program)
        assert path is not None
        with (self.folder / "log" / f"{name or program}.out").open("w") as log:
            self._daemons[name or program] = psutil.Popen(
                [path, *arguments], env=self.environment, stdout=log, stderr=log
            )


@contextmanager
def cluster(folder: Path, count: int = 2) -> Iterator[Cluster]:
    """Run a Slurm of some nodes with two processors each."""
    made = Cluster(folder, count)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for one in sockets:
        one.close()
    return ports


def _until(condition: object, limit_s: float = 60) -> None:
    assert callable(condition)
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "Slurm did not start in time"
        time.sleep(0.1)
