"""Rank 0 decides what a run starts from; a rank that sees another disk is named."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopcoder.checkpoint.agreed import Decision, agree, same_error_on_all
from loopcoder.checkpoint.format import MANIFEST, Checkpoint
from loopcoder.checkpoint.shards import Written, fault_of_shards
from loopcoder.checkpoint.start import Start
from loopcoder.errors import InputError, LoopcoderError, ProcessLost
from loopcoder.storage.files import write_json
from tests.dist.launch import in_processes

STEP = Path("checkpoints", "step_00000004")
WITHIN_S = 1.0


def save(run_dir: Path, content: str) -> None:
    folder = run_dir / STEP
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(content)
    write_json(folder / MANIFEST, {"files": {"state.json": {"bytes": len(content)}}, "of": content})


def decided(start: Start | None = None, corpus: str = "c") -> Decision:
    return Decision(start, None, corpus, "loopcoder")


def outcome(run_dir: Path, decide: Callable[[], Decision], corpus: str = "c") -> tuple[str, str]:
    """What agreeing comes to: the kind of the error and its text."""
    try:
        agree(run_dir, corpus, WITHIN_S, decide)
    except LoopcoderError as error:
        return type(error).__name__, str(error)
    return "agreed", ""


def _cases(rank: int, folder: Path) -> list[tuple[str, str]]:
    """Cases by name below; a folder of the rank's own stands for a disk of its own."""
    own, shared = folder / f"of_{rank}", folder / "shared"
    from_step = Start(Checkpoint(STEP, 4), resumes=True)  # below the working folder
    found = [outcome(shared, decided), outcome(own, decided)]

    if rank == 1:  # a network disk that lags
        threading.Timer(0.4, (folder / "late_1").symlink_to, (shared,)).start()
    late = shared if rank == 0 else folder / "late_1"
    found.append(outcome(late, decided))

    os.chdir(own)
    found.append(outcome(shared, lambda: decided(from_step)))
    os.chdir(shared)
    found.append(outcome(shared, lambda: decided(from_step)))

    def refuses() -> Decision:
        raise InputError.of("the fact", "the reason", "the fix")

    found.append(outcome(shared, refuses))
    found.append(outcome(shared, decided, corpus="c" if rank == 0 else "other"))

    found.append(outcome(folder / "nowhere", decided))

    error = ProcessLost.of("lost", "a", "b") if rank == 1 else None
    try:
        same_error_on_all(error)
    except LoopcoderError as raised:
        found.append((type(raised).__name__, str(raised)))
    same_error_on_all(None)
    return found


@pytest.mark.dist
@pytest.mark.dist_full
def test_all_see_what_rank_0_decides_or_say_what_not(tmp_path: Path) -> None:
    for name in ("of_0", "of_1", "shared"):
        (tmp_path / name).mkdir()
    save(tmp_path / "shared", "trained")
    (tmp_path / "shared" / ".seen-by-all-0").touch()  # of a start that was killed
    # damaged where all see it: that is for `verified`, which takes the one before
    (tmp_path / "shared" / STEP / "state.json").write_text("")
    save(tmp_path / "of_0", "trained")  # rank 1 has this one, too, of an earlier attempt
    save(tmp_path / "of_1", "otherwise")
    began = time.monotonic()
    by_rank = in_processes(2, _cases, tmp_path)
    assert by_rank[0] == by_rank[1]  # nobody goes on alone, and nobody waits
    shared, own, late, other, same, refused, corpus, unwritable, lost = by_rank[0]
    assert shared == late == same == ("agreed", "")
    assert own[0] == "InputError" and "rank 1 (" in own[1] and "run_dir=DIR on a disk" in own[1]
    assert other[0] == "ProcessLost" and "rank 1 (" in other[1] and str(STEP) in other[1]
    assert refused[0] == "InputError" and "the fact\n    why: the reason" in refused[1]
    assert corpus[0] == "InputError" and "has the corpus other, rank 0 c" in corpus[1]
    assert unwritable[0] == "InputError" and "rank 0 cannot use" in unwritable[1]  # and no other
    assert lost[0] == "ProcessLost"
    assert not list((tmp_path / "shared").glob(".seen*"))
    assert time.monotonic() - began < 120


def _written(**sizes: int) -> Written:
    return Written("host", {n: {"bytes": size, "xxh3_128": ""} for n, size in sizes.items()})


def test_a_manifest_is_written_of_what_is_there_alone(tmp_path: Path) -> None:
    names = ["__0_0.distcp", "__1_0.distcp"]
    (tmp_path / names[0]).write_bytes(b"12345")
    needed = dict.fromkeys(names, 5)
    zero, one = _written(**{names[0]: 5}), _written(**{names[1]: 5})
    fault = fault_of_shards(tmp_path, needed, [zero, _written()], 0)
    assert fault == f"rank 1 (host) has not written {names[1]}"
    fault = fault_of_shards(tmp_path, needed, [zero, _written(**{names[1]: 4})], 0)
    assert fault == f"{names[1]} has 4 bytes, its metadata asks for 5"
    fault = fault_of_shards(tmp_path, needed, [zero, one], 0)
    assert fault and f"does not see {names[1]}" in fault and "rank 1 (host) wrote" in fault
    threading.Timer(0.3, (tmp_path / names[1]).write_bytes, (b"12345",)).start()
    assert fault_of_shards(tmp_path, needed, [zero, one], 30) is None
