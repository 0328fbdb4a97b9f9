"""`loopcoder serve` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Server:
    url: str
    """With /v1."""
    process: subprocess.Popen[str]

    @property
    def resident_bytes(self) -> int:
        """Memory that the process holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")


@contextmanager
def served(checkpoint: Path, *settings: str, env: Mapping[str, str] = {}) -> Iterator[Server]:
    """Serve weights on a free port; the server must end by SIGTERM with 0 and say nothing wrong."""
    command = [sys.executable, "-m", "loopcoder", "serve", f"checkpoint={checkpoint}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    process = subprocess.Popen(
        [*command, "serve.port=0", *settings],
        env=environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving on (http://\S+/v1)\n", line)
        assert found, line + str(process.communicate()[1])
        yield Server(found[1], process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints and "ERROR" not in complaints, complaints
