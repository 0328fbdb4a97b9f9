"""Copies of checkpoints on an S3 server: what kills the run, the server or a file on the way costs
no more than steps, and the curve is that of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import xxhash

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.places import find_at
from loopcoder.checkpoint.copies.sending import Sender
from loopcoder.checkpoint.copies.stored import open_store
from loopcoder.cli.copies import shown_copies
from loopcoder.metrics.writer import read_metrics
from tests.checkpoint.saved import mend_manifest
from tests.checkpoint.test_format import write
from tests.data.stores import (
    Line,
    Server,
    files_of,
    line_to,
    needs_server,
    server,
    set_environment,
)
from tests.parts import one_of
from tests.train.conftest import SMALL, documents, environment, finish  # noqa: F401

pytestmark = [pytest.mark.chaos, needs_server]

BUCKET = "copies"
STEPS = 10
OPTIONS = [f"train.max_steps={STEPS}", "checkpoint.interval=2", "checkpoint.keep=1"]
Train = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ready(tmp_path_factory.mktemp("s3") / "server") as started:
        yield started


def ready(folder: Path) -> Any:
    """Run a server that has a bucket and takes objects."""

    class Ready:
        def __enter__(self) -> Server:
            self._held = server(folder)
            started = self._held.__enter__()
            started.fs.mkdir(BUCKET)
            until(lambda: takes_objects(started))
            return started

        def __exit__(self, *error: Any) -> None:
            self._held.__exit__(*error)

    return Ready()


def takes_objects(started: Server) -> bool:
    """Its first volumes take some seconds."""
    try:
        started.fs.pipe_file(f"{BUCKET}/first", b"1")
    except OSError:
        return False
    return True


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 250
    while not condition():
        if time.monotonic() > end or (process is not None and process.poll() is not None):
            pytest.fail(process.communicate()[0] if process is not None else "it took too long")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def train(
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    running: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Train:
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(
        run_dir: Path,
        *overrides: str,
        to: Server | Line = running,
        more: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        own = running.environment() | {"AWS_ENDPOINT_URL": to.endpoint} | (more or {})
        command = [sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"]
        return subprocess.Popen(
            [*command, *OPTIONS, f"run_dir={run_dir}", *overrides],
            cwd=elsewhere,
            env=environment | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return run


def curve(run_dir: Path) -> list[tuple[int, float, float]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def sums(run_dir: Path) -> Any:
    return json.loads((layout.find(run_dir).path / "digest.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return the folder of a run without copies on so many ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def of(ranks: int) -> Path:
        run_dir = folder / str(ranks)
        if not run_dir.exists():
            finish(train(run_dir, f"parallel.nproc_per_node={ranks}"))
        return run_dir

    return of


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def copied(running: Server, store: str) -> list[int]:
    """Return the steps of which there is a copy with a manifest."""
    found = running.fs.find(f"{store.removeprefix('s3://')}/checkpoints")
    names = [path.rsplit("/", 2)[1:] for path in found]
    return sorted(int(step[5:]) for step, name in names if name == "manifest.json")


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.mark.parametrize(
    ("ranks", "is_lost"), one_of([(1, True), (2, True), (1, False), (2, False)])
)
def test_a_run_that_is_killed_in_mid_upload(
    train: Train,
    running: Server,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    ranks: int,
    is_lost: bool,
) -> None:
    """In its first upload or a later one, with its folder or without it: it ends as if nothing had
    been, and what counts in the store is whole."""
    rng, run_dir, store = random.Random(seed), tmp_path / "run", f"s3://{BUCKET}/{tmp_path.name}"
    options = [f"checkpoint.store={store}", f"parallel.nproc_per_node={ranks}"]
    whole = undisturbed(ranks)
    size = sum(p.stat().st_size for p in layout.find(whole).path.iterdir())
    with line_to(running.endpoint) as line:
        # from the beginning, since all may have been sent before anybody looks at how far it is
        line.hold_after(rng.choice([0, size]) + rng.randrange(size // 2, size))
        process = train(run_dir, *options, to=line)
        until(line.is_held.is_set, process)
        kill(process)
        line.cut()
        line.go_on()
    there, own = copied(running, store), layout.complete(run_dir / "checkpoints")
    if is_lost:
        shutil.rmtree(run_dir)
    output = finish(train(run_dir, *options))
    if is_lost and there:
        assert f"fetching step {there[-1]} " in output
    if not is_lost and own:
        assert "fetching" not in output and f"step {own[-1].step}" in output
    assert curve(run_dir) == curve(whole) and sums(run_dir) == sums(whole)
    assert copied(running, store)[-1] == STEPS
    set_environment(monkeypatch, running.environment())
    shown = {one.step: one for one in shown_copies(store, reads_all=True)}
    assert {one.state for one in shown.values()} <= {"complete", "incomplete"}
    folder = f"{store.removeprefix('s3://')}/checkpoints/step_{STEPS:08d}"
    names = {path.rpartition("/")[2] for path in running.fs.find(folder)}
    assert names == {path.name for path in layout.find(run_dir).path.iterdir()}


def test_a_server_that_is_killed_in_mid_upload_and_comes_back(
    train: Train, undisturbed: Callable[[int], Path], tmp_path: Path, seed: int
) -> None:
    """Training does not wait for it, and does not end before its copy is complete."""
    rng, run_dir, store = random.Random(seed), tmp_path / "run", f"s3://{BUCKET}/run"
    with ready(tmp_path / "server") as own, line_to(own.endpoint) as line:
        line.hold_after(rng.randrange(100_000, 1_000_000))  # more than it sends at its start
        process = train(run_dir, f"checkpoint.store={store}", to=line)
        until(line.is_held.is_set, process)
        own.kill()
        line.cut()
        line.go_on()
        until(lambda: events(run_dir, "store_unreachable"), process)
        back = threading.Thread(target=own.start)
        back.start()
        output = finish(process)
        back.join()
        assert "answers again" in output
        assert copied(own, store)[-1] == STEPS
        assert curve(run_dir) == curve(undisturbed(1))
        shutil.rmtree(run_dir)
        finish(train(run_dir, f"checkpoint.store={store}", to=own))
    assert curve(run_dir) == curve(undisturbed(1)) and sums(run_dir) == sums(undisturbed(1))


@pytest.mark.parametrize("damage", one_of(["flipped", "cut off", "missing", "manifest", "state"]))
def test_a_damaged_object_is_named_and_the_next_newest_is_used(
    train: Train,
    running: Server,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    seed: int,
    damage: str,
) -> None:
    rng, run_dir, store = random.Random(seed), tmp_path / "run", f"s3://{BUCKET}/{tmp_path.name}"
    options = [f"checkpoint.store={store}", "checkpoint.async_save=true"]
    finish(train(run_dir, *options))
    shutil.rmtree(run_dir)
    *_, before, newest = copied(running, store)
    name = {"manifest": "manifest.json", "state": "state.json"}.get(damage, "__0_0.distcp")
    folder = f"{store.removeprefix('s3://')}/checkpoints/step_{newest:08d}"
    content = bytearray(running.fs.cat_file(f"{folder}/{name}"))
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(7)
    if damage == "missing":
        running.fs.rm_file(f"{folder}/{name}")
    elif damage == "cut off":
        running.fs.pipe_file(f"{folder}/{name}", bytes(content[: rng.randrange(len(content))]))
    else:
        running.fs.pipe_file(f"{folder}/{name}", bytes(content))
    output = finish(train(run_dir, *options))
    assert f"fetching step {before} " in output and f"{folder}" in output
    # a flipped bit of a manifest may make any file one that it does not describe
    assert "damaged" in output and (name in output or damage == "manifest")
    on_record = [note["text"] for note in events(run_dir, "note")]
    assert any(text.startswith(f"fetching step {before} ") for text in on_record)
    assert curve(run_dir) == curve(undisturbed(1)) and sums(run_dir) == sums(undisturbed(1))
    assert copied(running, store)[-1] == STEPS


def test_a_server_that_stays_away_and_a_run_that_is_asked_to_stop(
    train: Train, running: Server, tmp_path: Path
) -> None:
    """Out at once when asked; 75 at the end, and the same command makes it up."""
    run_dir, store = tmp_path / "run", f"s3://{BUCKET}/{tmp_path.name}"
    with line_to(running.endpoint) as line:
        process = train(run_dir, f"checkpoint.store={store}", "train.max_steps=3000", to=line)
        until(lambda: copied(running, store), process)
        line.hold_after(100_000)
        until(line.is_held.is_set, process)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert "its checkpoint is complete" in finish(process, code=75)
        assert time.monotonic() - began < 30
        line.cut()
        step = layout.find(run_dir).step
        line.go_on()
        # nothing is to be sent before the line is closed
        last = [f"train.max_steps={step + 40}", "checkpoint.interval=1000"]
        process = train(run_dir, f"checkpoint.store={store}", *last, to=line)
        until(lambda: events(run_dir, "run_started")[1:], process)
        line.close()  # from here on it is refused
        output = finish(process, code=75)
        assert "could not be copied" in output and "complete on the disk" in output
    assert copied(running, store)[-1] < step + 40 == layout.find(run_dir).step
    finish(train(run_dir, f"checkpoint.store={store}", *last))
    assert copied(running, store)[-1] == step + 40


@pytest.mark.parametrize("ends", ["line", "server"])
def test_an_upload_in_parts_that_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, ends: str
) -> None:
    """Of a file of 150 MB some parts are there; they are no object, and in nobody's way."""
    rng, run_dir, store = random.Random(seed), tmp_path / "run", f"s3://{BUCKET}/parts"
    write(run_dir, 1, seed, manifest=False)
    (layout.step_folder(run_dir, 1) / "__0_0.distcp").write_bytes(rng.randbytes(150_000_000))
    mend_manifest(layout.step_folder(run_dir, 1))
    with ready(tmp_path / "server") as own, line_to(own.endpoint) as line:
        set_environment(monkeypatch, own.environment() | {"AWS_ENDPOINT_URL": line.endpoint})
        line.hold_after(rng.randrange(60_000_000, 140_000_000))
        manifest = (layout.step_folder(run_dir, 1) / layout.MANIFEST).read_bytes()
        jobs = {1: xxhash.xxh3_128_hexdigest(manifest)}
        first = Sender(open_store(store), run_dir)
        first.send(jobs)
        until(line.is_held.is_set)
        assert "__0_0.distcp" in first.doing
        first.close()  # it ends with the request that is under way
        if ends == "server":
            own.kill()
        line.go_away()
        line.go_on()
        first.wait(250)
        assert not first.is_busy
        line.come_back()
        if ends == "server":
            own.start()
            until(lambda: takes_objects(own))
        folder = f"{BUCKET}/parts/checkpoints/step_00000001"
        assert not own.fs.exists(f"{folder}/__0_0.distcp")
        again = Sender(open_store(store), run_dir)
        again.send(jobs)
        again.wait(250)
        found = find_at(store, tmp_path / "cache")
        assert files_of(found.path) == files_of(layout.step_folder(run_dir, 1))


def test_what_a_store_refuses_is_said_before_the_first_step(train: Train, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    other = {"AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "othersecret"}
    refused = train(run_dir, f"checkpoint.store=s3://{BUCKET}/run", more=other)
    output = finish(refused, code=3)
    assert "may not be written" in output and "AWS_SECRET_ACCESS_KEY" in output
    assert not run_dir.exists()


def test_a_start_without_an_answer(
    train: Train, running: Server, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    """A run with a checkpoint of its own goes on, and ends when its copy is made."""
    run_dir, option = tmp_path / "run", f"checkpoint.store=s3://{BUCKET}/{tmp_path.name}"
    with line_to(running.endpoint) as line:
        line.go_away()
        output = finish(train(run_dir, option, to=line), code=75)
        assert "cannot be written" in output and not run_dir.exists()
        finish(train(run_dir, "train.max_steps=4"))
        process = train(run_dir, option, to=line)
        until(lambda: events(run_dir, "store_unreachable"), process)
        line.come_back()
        output = finish(process)
    assert "goes on from its own step 4" in output and "answers again" in output
    assert copied(running, f"s3://{BUCKET}/{tmp_path.name}")[-1] == STEPS
