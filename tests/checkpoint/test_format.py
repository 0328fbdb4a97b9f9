"""The checkpoint folder: what counts as complete, what damage is found, what is deleted."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import xxhash

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.state import FORMAT_VERSION
from loopcoder.errors import InputError
from loopcoder.storage import files
from loopcoder.storage.digest import file_digest
from tests.checkpoint.states import state_at


def write(
    run_dir: Path, step: int, seed: int, *, files: int = 3, manifest: bool = True
) -> Checkpoint:
    """Write a checkpoint of random files; its manifest is made without the code under test."""
    rng = random.Random(seed + step)
    folder = layout.step_folder(run_dir, step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state_at(step).to_json()))
    (folder / "config.yaml").write_text("model: {}\n")
    for i in range(files):
        (folder / f"__{i}_0.distcp").write_bytes(rng.randbytes(rng.randint(1, 5000)))
    if manifest:
        entries = {
            p.name: {
                "bytes": p.stat().st_size,
                "xxh3_128": xxhash.xxh3_128_hexdigest(p.read_bytes()),
            }
            for p in folder.iterdir()
        }
        (folder / "manifest.json").write_text(json.dumps({"files": entries}))
    return Checkpoint(folder, step)


def flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def damaged(checkpoint: Checkpoint, level: str, parts: int = 1) -> list[str | None]:
    """Return what each of several ranks finds; None: nothing."""
    found: list[str | None] = []
    for part in range(parts):
        facts = list(layout.faults(checkpoint, level, part, parts))
        for problem in layout.corrupt(checkpoint, facts[:1]).problems:
            found.append(f"{problem.fact}; {problem.fix}")
        found += [] if facts else [None]
    return found


def test_the_name_sorts_by_step(tmp_path):
    assert layout.step_folder(tmp_path, 70) == tmp_path / "checkpoints" / "step_00000070"


def test_complete_and_incomplete(tmp_path, seed):
    folder = tmp_path / "checkpoints"
    assert layout.complete(folder) == layout.incomplete(folder) == []
    steps = random.Random(seed).sample(range(10_000_000), 5)
    for step in steps:
        write(tmp_path, step, seed)
    killed = [write(tmp_path, s + 1, seed, manifest=False).path for s in sorted(steps)[:2]]
    (folder / "step_123").mkdir()  # of another program
    shutil.copytree(layout.step_folder(tmp_path, steps[0]), folder / "corrupt_step_00000001")
    assert [c.step for c in layout.complete(folder)] == sorted(steps)
    assert [c.path for c in layout.complete(folder)] == [
        layout.step_folder(tmp_path, s) for s in sorted(steps)
    ]
    assert [p for p in layout.incomplete(folder) if p.name != "step_123"] == killed


def test_find_takes_a_checkpoint_a_folder_of_them_or_a_run(tmp_path, seed, monkeypatch):
    for step in (30, 100, 20):
        write(tmp_path / "run", step, seed)
    write(tmp_path / "run", 200, seed, manifest=False)
    newest = layout.step_folder(tmp_path / "run", 100)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", newest):
        assert layout.find(path) == Checkpoint(newest, 100)
    older = layout.step_folder(tmp_path / "run", 20)
    assert layout.find(older) == Checkpoint(older, 20)
    # A copy under any name is one as well.
    shutil.copytree(older, tmp_path / "released")
    assert layout.find(tmp_path / "released") == Checkpoint(tmp_path / "released", 20)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert layout.find(Path("~/run")) == Checkpoint(newest, 100)


@pytest.mark.parametrize("kind", ["nothing", "empty", "incomplete", "a_file"])
def test_find_says_what_a_checkpoint_is(tmp_path, seed, kind):
    path = tmp_path / "run"
    if kind == "empty":
        path.mkdir()
    elif kind == "incomplete":
        path = write(path, 5, seed, manifest=False).path
    elif kind == "a_file":
        path.write_text("x")
    says = "there is no folder" if kind == "nothing" else "holds no complete checkpoint"
    with pytest.raises(InputError, match=says):
        layout.find(path)


def test_an_intact_checkpoint_passes(tmp_path, seed):
    checkpoint = write(tmp_path, 7, seed)
    (checkpoint.path / "notes.txt").write_text("a file of the user's is no damage")
    for level in ("hash", "size", "none"):
        assert damaged(checkpoint, level, parts=3) == [None] * 3


@pytest.mark.parametrize("kind", ["missing", "truncated", "longer", "altered"])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_damage_to_any_file_is_found(tmp_path, seed, kind, parts):
    rng = random.Random(seed)
    write(tmp_path, 3, seed)
    checkpoint = write(tmp_path, 7, seed)
    names = sorted(json.loads((checkpoint.path / "manifest.json").read_text())["files"])
    for index, name in enumerate(names):
        file = checkpoint.path / name
        content = file.read_bytes()
        if kind == "missing":
            file.unlink()
        elif kind == "truncated":
            os.truncate(file, rng.randrange(len(content)))
        elif kind == "longer":
            file.write_bytes(content + b"x")
        else:
            flip_a_bit(file, rng)
        by_size, by_hash = (damaged(checkpoint, level, parts) for level in ("size", "hash"))
        if kind == "altered":
            # Only a hash finds it, and only the rank that reads the file.
            assert by_size == [None] * parts
            assert [found is None for found in by_hash] == [
                part != index % parts for part in range(parts)
            ]
        else:
            assert None not in by_size + by_hash
        for found in filter(None, by_size + by_hash):
            assert name in found
            assert f"name another one: {checkpoint.path.parent} has complete checkpoints" in found
        assert damaged(checkpoint, "none", parts) == [None] * parts
        file.write_bytes(content)
    assert damaged(checkpoint, "hash", parts) == [None] * parts


def test_every_file_is_read_by_exactly_one_rank(tmp_path, seed, monkeypatch):
    checkpoint = write(tmp_path, 7, seed, files=8)
    read = []
    monkeypatch.setattr(
        files, "file_digest", lambda path: read.append(path.name) or file_digest(path)
    )
    assert damaged(checkpoint, "hash", parts=3) == [None] * 3
    assert sorted(read) == sorted(
        p.name for p in checkpoint.path.iterdir() if p.name != "manifest.json"
    )


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ([], "has no other that is complete"),
        ([3], "has complete checkpoints of step 3"),
        ([9, 3], "has complete checkpoints of steps 3 and 9"),
        (range(10, 30), "has complete checkpoints of steps 22, 23, 24, 25, 26, 27, 28 and 29, "
         "and 12 older ones"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["step_00000007", "step_00000007.damaged", "."])
def test_a_damaged_checkpoint_that_is_named_has_those_beside_it_named(
    tmp_path, seed, monkeypatch, others, says, name
):
    """Also where it was set aside, or is the folder one stands in: no command goes on without it,
    so that moving it away would mend nothing."""
    named = write(tmp_path, 7, seed).path
    for step in others:
        write(tmp_path, step, seed)
    if name == ".":
        monkeypatch.chdir(named)
    else:
        named = named.rename(named.with_name(name))
    checkpoint = Checkpoint(Path() if name == "." else named, 7)
    flip_a_bit(checkpoint.path / "__0_0.distcp", random.Random(seed))
    (advice,) = damaged(checkpoint, "hash")
    assert advice.endswith(f"; name another one: {named.parent} {says}") and "mv" not in advice


def test_a_step_that_is_not_there_has_those_that_are_named(tmp_path, seed):
    for step in (3, 9):
        write(tmp_path, step, seed)
    write(tmp_path, 7, seed, manifest=False)
    folder = tmp_path / "checkpoints"
    for asked in (folder / "step_00000004", folder / "step_00000007", tmp_path / "step_00000009"):
        with pytest.raises(InputError) as error:
            layout.find(asked)
        (problem,) = error.value.problems
        assert problem.fix.endswith(f"{folder} has complete checkpoints of steps 3 and 9")


def test_shards_are_not_read_to_compare_what_is_small(tmp_path, seed):
    checkpoint, rng = write(tmp_path, 7, seed), random.Random(seed)
    flip_a_bit(checkpoint.path / "__0_0.distcp", rng)
    assert damaged(checkpoint, "small") == [None]
    flip_a_bit(checkpoint.path / "config.yaml", rng)
    os.truncate(checkpoint.path / "__1_0.distcp", 0)
    facts = list(layout.faults(checkpoint, "small"))
    assert ["__1_0.distcp" in facts[0], "config.yaml" in facts[1], len(facts)] == [True, True, 2]


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"format_ver', b"\xff\xfe", b"[]", b"{}", b'{"format_version": 1}'],
)
def test_a_damaged_json_is_an_error_with_advice(tmp_path, seed, name, content):
    """Both are read before any hash is compared."""
    write(tmp_path, 3, seed)
    checkpoint = write(tmp_path, 7, seed)
    (checkpoint.path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        layout.find(checkpoint.path).state()
        layout.files_of(checkpoint)
    (problem,) = error.value.problems
    assert str(checkpoint.path) in problem.fact
    assert problem.fix.endswith("has complete checkpoints of step 3")


def test_state_of_another_format(tmp_path, seed):
    checkpoint = write(tmp_path, 7, seed)
    assert checkpoint.state() == state_at(7)
    for version in (0, FORMAT_VERSION + 1, None):
        (checkpoint.path / "state.json").write_text(
            json.dumps(state_at(7).to_json() | {"format_version": version})
        )
        with pytest.raises(InputError, match=f"has checkpoint format {version}"):
            checkpoint.state()
