"""A build that is killed again and again, or runs out of disk, ends as if it had not been."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline.driver import prepare
from loopcoder.config.build import ExecutorConfig, RepositoryConfig, SourceConfig
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import load_corpus
from tests.data_pipeline.test_corpus import environment, hashes, plant, quiet, settings

pytestmark = pytest.mark.chaos

KILLS = 6 if "LOOPCODER_TEST_PART" in os.environ else 20
"""Of each build; fewer where CI runs parts."""
REPOSITORY = Path(__file__).parents[2]
CHILD = """
import json, sys
from data_pipeline.driver import prepare
from loopcoder.config.data import DataConfig
from loopcoder.errors import InputError
try:
    prepare(DataConfig(**json.loads(sys.argv[1])))
except InputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start(config: DataConfig) -> subprocess.Popen[str]:
    """Build in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", CHILD, json.dumps(dataclasses.asdict(config))],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("whom", ["driver", "group", "group, repositories"])
def test_killed_at_random_moments(tmp_path: Path, seed: int, whom: str) -> None:
    """Whether its workers die with the driver or are left behind."""
    folder = tmp_path / "in"
    folder.mkdir()
    plant(folder, seed)
    rng = random.Random(seed)
    fields: dict[str, Any] = {"executor": ExecutorConfig(workers=2)}
    if "repositories" in whom:
        fields["sources"] = [SourceConfig(kind="files", path=str(folder))]
        fields["repository"] = RepositoryConfig(enabled=True, max_bytes=9000)
    whole = settings(folder, tmp_path / "whole", seed, **fields)
    begin = time.monotonic()
    with start(whole) as process:
        assert process.wait(300) == 0
    seconds = time.monotonic() - begin
    expected = hashes(prepare(whole, report=quiet))
    config = settings(folder, tmp_path / "killed", seed, **fields)
    killed = 0
    while killed < KILLS:
        process = start(config)
        try:
            # not much longer than it takes to get to the stage where the last one died
            process.wait(rng.uniform(0, 0.4 * seconds))
        except subprocess.TimeoutExpired:
            if whom == "driver":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            killed += 1
            process.wait()
            continue
        # complete: the rest of the kills hit a new build
        assert hashes(prepare(config, report=quiet)) == expected
        config = dataclasses.replace(
            config,
            build=dataclasses.replace(config.build, cache_dir=str(tmp_path / f"again{killed}")),
        )
    with start(config) as process:
        assert process.stdout is not None
        assert process.wait(300) == 0, process.stdout.read()
    corpus = prepare(config, report=quiet)
    assert hashes(corpus) == expected
    names = [p.name for p in Path(config.build.cache_dir).iterdir() if not p.name.endswith(".lock")]
    assert names == [corpus.dir.name]
    mine = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not mine


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for the beginning of a build."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    if os.getuid() != 0 or mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk(tmp_path: Path, small_disk: Path, seed: int, workers: int) -> None:
    """More and more room: each time it stops with a clear error, until it is enough."""
    plant(tmp_path, seed)
    expected = hashes(prepare(settings(tmp_path, tmp_path / "whole", seed), report=quiet))
    executor = ExecutorConfig(workers=workers)
    config = settings(tmp_path, small_disk / "cache", seed, executor=executor)
    failed = 0
    kilobytes = 60
    while kilobytes < 20_000:
        kilobytes = kilobytes * 5 // 4
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", small_disk], check=True)
        with start(config) as process:
            output, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == 76, output
        assert "no space left" in output and "continues where it was" in output
        failed += 1
    assert failed > 3
    (folder,) = [p for p in (small_disk / "cache").iterdir() if (p / "manifest.json").exists()]
    assert hashes(load_corpus(folder)) == expected
