"""What the script of a job decides, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch.slurm import SlurmConfig, check_job, job_script
from loopcoder.errors import InputError


class Job:
    """Runs the script of a job whose processes end with given codes."""

    def __init__(self, folder: Path):
        self.run_dir = folder / "my run"
        job_dir = self.run_dir / "launch-x"
        job_dir.mkdir(parents=True)
        self.requeued = folder / "requeued"
        text = job_script(
            SlurmConfig(nodes=2), name="x", tasks_per_node=1, run_dir=self.run_dir,
            folder=job_dir, code=folder, config=folder, config_sha256="", asked=[],
        )  # fmt: skip
        self._script = folder / "job.sh"
        self._script.write_text(text)
        self._bin = folder / "bin"
        self._bin.mkdir()
        left = 'for code in $LEFT; do echo $code > "$LOOPCODER_EXIT_FILE.$((n++))"; done'
        self._command("srun", f"{left}\nexit $CODE")
        show = '[ "$1" = show ] && { echo "JobState=$STATE Reason=None"; exit; }'
        self._command("scontrol", f'{show}\ntouch "{self.requeued}"; exit 1')  # there is no Slurm
        self._starts = 0

    def _command(self, name: str, text: str) -> None:
        (self._bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (self._bin / name).chmod(0o755)

    def start(self, code: int, left: list[int], state: str = "RUNNING") -> tuple[int, bool]:
        """Return the job's exit code, and whether it asked to be started again."""
        self.requeued.unlink(missing_ok=True)
        variables = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(self._starts),
            "CODE": str(code),
            "LEFT": " ".join(map(str, left)),
            "STATE": state,
        }
        self._starts += 1
        environ = os.environ | variables
        done = subprocess.run(["bash", str(self._script)], env=environ, check=False)
        return done.returncode, self.requeued.exists()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_codes_decide(job: Job, rng: random.Random) -> None:
    others = [75] * rng.randint(0, 12)
    assert job.start(0, []) == (0, False)
    for final in (76, 3):
        codes = [*others, final, 75]
        rng.shuffle(codes)
        assert job.start(76, codes) == (final, False)
    assert job.start(75, [75, *others]) == (75, True)
    assert job.start(2, []) == (2, False)
    assert job.start(75, []) == (75, True)  # the codes of ranks could not be written


def test_a_cancelled_job_stays_cancelled(job: Job, rng: random.Random) -> None:
    state = rng.choice(["CANCELLED", "COMPLETING"])
    assert job.start(75, [75, 75], state) == (75, False)


def test_kills_without_a_new_checkpoint_end_it(job: Job, rng: random.Random) -> None:
    """By the kernel for want of memory, for one; the others leave 75."""
    codes = [137, 139, 134]
    step = 0
    for _ in range(2):
        assert [job.start(rng.choice(codes), [75]) for _ in range(3)] == [(75, True)] * 3
        step += rng.randint(1, 10**6)
        manifest = job.run_dir / "checkpoints" / f"step_{step:08d}" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
    assert [job.start(rng.choice(codes), [75]) for _ in range(3)] == [(75, True)] * 3
    assert job.start(75, [75]) == (75, True)  # no kill
    assert job.start(rng.choice(codes), [75]) == (76, False)


def test_a_setup_that_fails_ends_the_job(tmp_path: Path) -> None:
    for setup, code in (("false", 3), ("true\nexport A=1", 0)):
        text = job_script(
            SlurmConfig(setup=setup), name="x", tasks_per_node=1, run_dir=tmp_path, folder=tmp_path,
            code=tmp_path, config=tmp_path, config_sha256="", asked=[],
        )  # fmt: skip
        script = text.partition("# the ranks see")[0]
        assert subprocess.run(["bash", "-c", script], check=False).returncode == code


def test_options_with_blanks_are_one_word() -> None:
    text = job_script(
        SlurmConfig(options=["--comment=a b $HOME", "--exclusive"]), name="x", tasks_per_node=1,
        run_dir=Path(), folder=Path(), code=Path(), config=Path(), config_sha256="", asked=[],
    )  # fmt: skip
    assert "#SBATCH --comment='a b $HOME'\n#SBATCH --exclusive\n" in text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"time": "lots"}, "time=lots"),
        ({"time": "1:2:3:4"}, "time=1:2:3:4"),
        ({"time": "3"}, "as soon as it starts"),
        ({"time": "1-00", "signal_before_s": 86400}, "as soon as it starts"),
        ({"options": ["--a\nrm -r x"]}, "line break"),
    ],
)
def test_what_slurm_would_read_otherwise(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_job(SlurmConfig(**fields))


def test_times_of_sbatch() -> None:
    for time in ("4", "5:00", "0:05:00", "1-0", "0-00:05", "1-00:00:00"):
        check_job(SlurmConfig(time=time))
