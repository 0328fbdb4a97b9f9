"""Slurm's variables become torch.distributed's."""

import random

import pytest

from launch.slurm_env import adopt_slurm, expand_hostlist
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


def test_a_task_of_srun() -> None:
    environ = {
        "SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
        "SLURM_JOB_NODELIST": "gpu[03-04]", "SLURM_JOB_ID": "24001",
    }  # fmt: skip
    assert adopt_slurm(environ)
    assert [environ[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["5", "8", "1"]
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("gpu03", "20001")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "RANK": "3"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # the script of an sbatch
    ],
)
def test_other_processes_are_left_alone(environ: dict[str, str]) -> None:
    before = dict(environ)
    assert not adopt_slurm(environ)
    assert environ == before


def test_what_the_user_has_set_stays() -> None:
    environ = {
        "SLURM_PROCID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "9",
    }
    assert adopt_slurm(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("x", "9")
