"""Whole files, hashes, locks, full disks, and processes that end with their parent."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import xxhash

from loopcoder.errors import DiskFull, InputError
from loopcoder.storage.digest import file_digest
from loopcoder.storage.disk import DISK_FULL, full_disk_raises, is_disk_full, no_space, remedy
from loopcoder.storage.files import fault_of, synced_entry, whole_file, write_json
from loopcoder.storage.lock import hold
from loopcoder.storage.process import use_short_paths_of_ray


def test_write_json_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    order = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        order.append(("fsync", name.name, json.loads(name.read_text()) if name.is_file() else None))
        fsync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        order.append(("rename", self.name, target.name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    value = {"step": 3, "position": {"sample": 12}}
    write_json(tmp_path / "state.json", value)
    assert order == [
        ("fsync", "state.json.tmp", value),
        ("rename", "state.json.tmp", "state.json"),
        ("fsync", tmp_path.name, None),
    ]
    assert json.loads((tmp_path / "state.json").read_text()) == value
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("fails_in", ["dump", "fsync"])
def test_write_json_that_fails_leaves_the_old_file(tmp_path, monkeypatch, fails_in):
    write_json(tmp_path / "state.json", {"step": 1})
    if fails_in == "fsync":

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, TypeError)):
        write_json(
            tmp_path / "state.json", {"step": 2} if fails_in == "fsync" else {"step": object()}
        )
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": 1}


def test_digest_of_a_file_larger_than_a_block(tmp_path, seed):
    data = random.Random(seed).randbytes((1 << 24) + 12345)
    (tmp_path / "x").write_bytes(data)
    assert file_digest(tmp_path / "x") == xxhash.xxh3_128_hexdigest(data)
    (tmp_path / "empty").write_bytes(b"")
    assert file_digest(tmp_path / "empty") == xxhash.xxh3_128_hexdigest(b"")


def test_a_file_whose_writing_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "x") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_faults_of_a_file(tmp_path, seed):
    path = tmp_path / "x"
    data = bytearray(random.Random(seed).randbytes(1000))
    path.write_bytes(data)
    entry = synced_entry(path)
    assert entry == {"bytes": 1000, "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    assert fault_of(path, entry) is None
    data[seed % 1000] ^= 1
    path.write_bytes(data)
    assert "other content" in fault_of(path, entry)
    assert fault_of(path, entry, contents=False) is None
    path.write_bytes(data[:-1])
    assert "999 bytes, 1,000 were written" in fault_of(path, entry, contents=False)
    path.unlink()
    assert "is missing" in fault_of(path, entry)


@pytest.mark.parametrize("number", sorted(DISK_FULL - {errno.EFBIG}))
def test_a_full_disk_says_what_to_do(tmp_path, number):
    with (
        pytest.raises(InputError, match=r"no space left .*bytes are free"),
        full_disk_raises(tmp_path / "not" / "there", lambda fact: InputError.of(fact, "y", "z")),
    ):
        raise OSError(number, os.strerror(number))


def test_a_limit_of_the_shell_is_no_full_disk(tmp_path):
    limits, most = resource.getrlimit(resource.RLIMIT_FSIZE), random.randrange(100, 4000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with (
            pytest.raises(DiskFull) as raised,
            full_disk_raises(tmp_path, lambda fact: DiskFull.of(fact, "w", "free space")),
        ):
            (tmp_path / "weights").write_bytes(bytes(most + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (problem,) = raised.value.problems
    assert f"{tmp_path / 'weights'} has reached the {most:,} bytes" in problem.fact
    assert "ulimit -f unlimited" in problem.fix and "free" not in problem.fix


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY, reason="ulimit -f"
)
def test_a_file_system_takes_no_larger_files(tmp_path):
    error = OSError(errno.EFBIG, "File too large", str(tmp_path / "a"))
    assert no_space(error, tmp_path).startswith(f"{tmp_path}/a is too large for its file system")
    assert "another file system" in remedy(error)


def test_other_errors_of_a_disk_pass_through(tmp_path):
    error = OSError(errno.EIO, "broken")
    assert not is_disk_full(error)
    with pytest.raises(OSError, match="broken"), full_disk_raises(tmp_path, lambda _: ValueError()):
        raise error


HOLDER = """
import sys, time
from pathlib import Path
from loopcoder.storage.lock import hold
from loopcoder.storage.process import use_short_paths_of_ray
with hold(Path(sys.argv[1]), lambda _: sys.exit("busy"), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path, kind: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


class Busy(Exception):
    pass


def refuse(holder: str) -> None:
    raise Busy(holder)


def test_a_lock_goes_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    process = start_holder(path, "alone")
    with pytest.raises(Busy, match=str(process.pid)), hold(path, refuse):
        pass
    process.kill()
    process.wait()
    with hold(path, refuse):
        assert path.read_text() == f"{os.getpid()}\n"


def test_shared_locks_exclude_only_a_lone_one(tmp_path):
    path = tmp_path / "lock"
    process = start_holder(path, "shared")
    with hold(path, refuse, shared=True):
        pass
    with pytest.raises(Busy), hold(path, refuse):
        pass
    process.kill()
    process.wait()


def test_a_busy_lock_can_be_waited_for(tmp_path):
    path = tmp_path / "lock"
    process = start_holder(path, "alone")

    def end(holder: str) -> None:
        assert holder == str(process.pid)
        process.kill()

    with hold(path, end):
        assert process.wait() == -signal.SIGKILL


def test_a_file_system_without_locks_may_do_without(tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with hold(tmp_path / "lock", refuse, needed=False):
        pass
    with pytest.raises(OSError, match="no locks"), hold(tmp_path / "lock", refuse):
        pass


STARTER = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from loopcoder.storage.process import exit_with_parent, use_short_socket_paths

def work():
    print(os.getpid(), flush=True)
    time.sleep(60)

def bound():
    exit_with_parent()
    work()

if __name__ == "__main__":
    use_short_socket_paths()
    if sys.argv[1] == "pool":
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(1, context, exit_with_parent) as pool:
            pool.submit(work).result()
    else:
        child = multiprocessing.get_context(sys.argv[1]).Process(target=bound)
        child.start()
        child.join()
"""


@pytest.mark.parametrize("kind", ["fork", "spawn", "forkserver", "pool"])
def test_a_child_ends_with_its_parent(tmp_path, kind):
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, str(script), kind], stdout=subprocess.PIPE, text=True, env=environ
    )
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(timeout=100)  # raises TimeoutExpired while it lives


TALKER = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import util
from multiprocessing.managers import SyncManager
from loopcoder.storage.process import use_short_socket_paths

def folder(_):
    return util.get_temp_dir()

if __name__ == "__main__":
    use_short_socket_paths()
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        print(*pool.map(folder, [0]))
    with SyncManager(ctx=multiprocessing.get_context("spawn")) as manager:
        print(manager.address)
"""


@pytest.mark.parametrize(("length", "moved"), [(30, False), (39, False), (40, True), (123, True)])
def test_ray_is_kept_out_of_a_long_tmpdir(length, moved, monkeypatch):
    """Its sockets are TMPDIR/ray/session_.../sockets/plasma_store, at most 107 bytes."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/".ljust(length, "x"))
    monkeypatch.setenv("RAY_TMPDIR", "")  # so that monkeypatch removes what is set
    monkeypatch.delenv("RAY_TMPDIR")
    use_short_paths_of_ray()
    assert os.environ.get("RAY_TMPDIR") == ("/tmp" if moved else None)
    monkeypatch.setenv("RAY_TMPDIR", "/mine")
    use_short_paths_of_ray()
    assert os.environ["RAY_TMPDIR"] == "/mine"


@pytest.mark.parametrize("length", [70, 76, 123])
def test_children_are_reached_from_a_long_tmpdir(tmp_path, length):
    """76 bytes are one more than leave room for the names that multiprocessing adds."""
    script = tmp_path / "talker.py"
    script.write_text(TALKER)
    folder = Path("/tmp", f"loopcoder-{os.getpid()}-".ljust(length - 5, "x"))
    folder.mkdir()
    try:
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(folder)}
        done = subprocess.run(
            [sys.executable, str(script)], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        of_pool, of_manager = done.stdout.split()
        assert of_pool.startswith(str(folder)) == (length <= 75)
        assert of_manager.startswith(str(folder)) == (length <= 75)
        if length > 75:
            assert Path(of_manager).parent == Path(of_pool)  # that of the process they belong to
            assert not Path(of_pool).exists()  # gone with it
    finally:
        shutil.rmtree(folder)
