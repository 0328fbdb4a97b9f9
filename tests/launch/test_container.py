"""The container file: what it copies is there, and what it runs is what this checkout does."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "launch" / "container" / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    whole = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", TEXT))
    return [line.partition(" ")[2].strip() for line in whole.splitlines() if line.startswith(name)]


def test_what_is_copied_is_tracked_and_enough_to_install() -> None:
    sources = [name for line in instructions("COPY") for name in line.split()[:-1]]
    tracked = subprocess.run(
        ["git", "ls-files", *sources], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if tracked.returncode == 0:  # in a checkout
        names = tracked.stdout.splitlines()
        assert all(any(n == s or n.startswith(f"{s}/") for n in names) for s in sources)
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert not set(sources) & set(ignored)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = {*project["tool"]["mypy"]["files"], "conf", "kernels", "requirements.lock"}
    assert needed <= set(sources)


def test_its_steps_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"(?m)^([\w-]+):.*##", (REPOSITORY / "Makefile").read_text()))
    made = [shlex.split(line)[1:] for line in instructions("RUN") if line.startswith("make ")]
    assert made and set().union(*made) <= targets
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for line in instructions("RUN"):
        for extra in re.findall(r"'\.\[(\w+)\]'", line):
            assert extra in extras["optional-dependencies"]
            assert "-c requirements.lock" in line  # the versions that are tested


def test_cuda_is_that_of_torch() -> None:
    (base,) = instructions("FROM")
    torch = re.search(r"(?m)^torch==(\S+)$", (REPOSITORY / "requirements.lock").read_text())
    cuda = re.search(r"cuda:(\d+)\.(\d+)\.\d+-cudnn-devel", base)
    assert torch and cuda
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert re.search(rf"(?m)^cuda-toolkit=={cuda[1]}\.{cuda[2]}\.", lock)
