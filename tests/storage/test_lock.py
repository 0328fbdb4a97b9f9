"""Lock files: who holds one, and what becomes of those who wait for one that is removed."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path

import pytest

from loopcoder.storage.lock import hold, is_held, shared, without_readers


class Busy(Exception):
    pass


def refuse(holder: str) -> None:
    raise Busy(holder)


def test_whether_a_lock_is_held(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert not is_held(lock) and not lock.exists()
    with hold(lock, refuse):
        assert is_held(lock) and is_held(lock, also_shared=True)
    assert not is_held(lock)
    with hold(lock, refuse, shared=True):
        assert is_held(lock, also_shared=True) and not is_held(lock)
    assert not is_held(tmp_path)  # a folder of that name is no lock


def test_who_waits_for_a_lock_that_is_removed_holds_the_next_one(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    waits, done, free = threading.Event(), threading.Event(), threading.Event()
    held_by_name = []

    def wait() -> None:
        with hold(lock, lambda _: waits.set()):
            held_by_name.append(is_held(lock))
            done.set()
            free.wait(10)

    with hold(lock, refuse):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(10)
        lock.unlink()
    assert done.wait(10) and held_by_name == [True]
    with pytest.raises(Busy), hold(lock, refuse):
        pass
    free.set()
    thread.join()


def test_a_file_that_is_read_is_not_taken_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy() -> None:
        raise Busy("read")

    file = tmp_path / "manifest.json"
    file.write_text("content")
    file.chmod(0o444)
    with shared(file), shared(file):
        assert is_held(file, also_shared=True)
        with pytest.raises(Busy), without_readers(file, busy):
            pass
    with without_readers(file, busy):
        assert is_held(file)
    assert file.read_text() == "content" and not is_held(file, also_shared=True)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with shared(file), without_readers(file, busy):
        pass
