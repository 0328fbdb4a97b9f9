"""Slurm's variables become torch.distributed's."""

import os
import random
from pathlib import Path

import pytest

from launch import slurm_env
from launch.slurm_env import adopt_slurm, expand_hostlist, tasks_per_node
from loopcoder.errors import InputError


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", ["login"]),
        ("a[1-3,7]", ["a1", "a2", "a3", "a7"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("b[2],a,c-[1-2].x", ["b2", "a", "c-1.x", "c-2.x"]),
        ("r[1-2]n[3,5]", ["r1n3", "r1n5", "r2n3", "r2n5"]),
        ("n[099-100]", ["n099", "n100"]),
    ],
)
def test_hostlists(text: str, hosts: list[str]) -> None:
    assert expand_hostlist(text) == hosts


def test_a_random_list_is_read_back(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        width, first = rng.randint(1, 4), rng.randint(0, 9)
        hosts = [f"node{n:0{width}d}" for n in range(first, first + rng.randint(1, 20))]
        first_n, last_n = hosts[0][4:], hosts[-1][4:]
        assert expand_hostlist(f"node[{first_n}-{last_n}],x") == [*hosts, "x"]


@pytest.mark.parametrize("text", ["", "a[1-3", "a]1"])
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="MASTER_ADDR"):
        expand_hostlist(text)


STEP = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "24001", "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_NODELIST": "gpu[01-04]", "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_TASKS_PER_NODE": "4(x4)", "SLURM_STEP_TASKS_PER_NODE": "2,6",
}  # fmt: skip
"""A step of 8 tasks in a job of 16."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Those that resolve."""
    found = {"gpu03", "10.0.0.3"}

    def lookup(host: str, port: None) -> None:
        if host not in found:
            raise OSError(host)

    monkeypatch.setattr(slurm_env.socket, "getaddrinfo", lookup)
    return found


def test_a_task_has_what_belongs_to_its_step(names: set[str]) -> None:
    environ = dict(STEP)
    assert adopt_slurm(environ)
    assert [environ[k] for k in ("RANK", "WORLD_SIZE")] == ["5", "8"]
    assert [environ[k] for k in ("LOCAL_RANK", "LOCAL_WORLD_SIZE")] == ["1", "6"]
    assert environ["MASTER_ADDR"] == "gpu03"
    assert int(environ["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 6)
    environ = STEP | {"SLURM_CPUS_PER_TASK": "7"}
    assert adopt_slurm(environ) and environ["OMP_NUM_THREADS"] == "7"


def test_steps_have_ports_of_their_own(names: set[str], rng: random.Random) -> None:
    job = rng.randrange(10**7)
    ports = set()
    for number in (job, job + 1):
        for step in range(50):
            environ = STEP | {"SLURM_JOB_ID": str(number), "SLURM_STEP_ID": str(step)}
            adopt_slurm(environ)
            ports.add(int(environ["MASTER_PORT"]))
    assert len(ports) == 100
    assert min(ports) >= 20000 and max(ports) < 32768


def test_slurm_knows_the_address_of_a_name_that_does_not_resolve(
    names: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names.discard("gpu03")
    scontrol = tmp_path / "scontrol"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for said, address in [("NodeAddr=10.0.0.3 NodeHostName=x", "10.0.0.3"), ("NodeAddr=gpu03", "")]:
        scontrol.write_text(f"#!/bin/sh\n[ \"$*\" = 'show node gpu03' ] && echo '{said}'\n")
        scontrol.chmod(0o755)
        environ = dict(STEP)
        if address:
            assert adopt_slurm(environ)
            assert environ["MASTER_ADDR"] == address
        else:
            with pytest.raises(InputError, match=r"gpu03.*(?s:.)*export MASTER_ADDR=ADDRESS"):
                adopt_slurm(environ)


@pytest.mark.parametrize(
    ("text", "tasks"), [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("", []), ("two", [])]
)
def test_tasks_per_node(text: str, tasks: list[int]) -> None:
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun -n1
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},  # the shell of an salloc
        {"SLURM_STEP_ID": "4294967291"},  # the script of an sbatch
        {"RANK": "3"},
        {"SLURM_PROCID": None},
        {"SLURM_STEP_ID": None},
    ],
)
def test_other_processes_are_left_alone(changed: dict[str, str | None]) -> None:
    environ = {k: v for k, v in (STEP | changed).items() if v is not None}
    before = dict(environ)
    assert not adopt_slurm(environ)
    assert environ == before


def test_what_the_user_has_set_stays() -> None:
    own = {"MASTER_ADDR": "x", "MASTER_PORT": "9", "OMP_NUM_THREADS": "3"}
    environ = STEP | own
    assert adopt_slurm(environ)
    assert {name: environ[name] for name in own} == own
