"""Documents between stages: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.durable import fingerprint
from data_pipeline.schema import Document, Tally
from data_pipeline.store import Store
from loopcoder.errors import InputError

ODD = ["", "\n", "a\r\nb", "\u2028line\u2029", "\x00nul", "é\U0001f600\u200d", "x" * 3_000_000]


def documents(seed: int, count: int = 50) -> list[Document]:
    rng = random.Random(seed)
    texts = ODD + [
        "".join(rng.choices(string.printable, k=rng.randint(0, 400))) for _ in range(count)
    ]
    return [
        Document(
            f"{i:032x}", text, "code", "Python", "src", f"a/{i}.py", {"row": i, "é": [1, None]}
        )
        for i, text in enumerate(texts)
    ]


def counted(found: list[Document], tally: Tally) -> Iterator[Document]:
    for document in found:
        tally.rows_in += 1
        if document.text == "\n":
            tally.drop("empty")
            continue
        tally.rows_out += 1
        yield document


def test_round_trip(tmp_path: Path, seed: int) -> None:
    store = Store(tmp_path, "clean", fingerprint({"a": 1}), world_size=2)
    assert store.missing() == [0, 1]
    for rank in (0, 1):
        tally = Tally("clean")
        store.write(rank, counted(documents(seed + rank), tally), tally)
    assert store.missing() == []
    for rank in (0, 1):
        assert list(store.read(rank)) == [d for d in documents(seed + rank) if d.text != "\n"]
    total = store.tally()
    assert (total.rows_in, total.rows_out, total.drops["empty"]) == (114, 112, 2)
    assert {p.suffix for p in store.folder.iterdir()} == {".zst", ".json"}


def test_what_fails_leaves_nothing(tmp_path: Path, seed: int) -> None:
    store = Store(tmp_path, "clean", "f", world_size=1)
    tally = Tally("clean")

    def breaks() -> Iterator[Document]:
        yield from counted(documents(seed), tally)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.write(0, breaks(), tally)
    assert list(store.folder.iterdir()) == [] and store.missing() == [0]

    lost = Tally("clean")
    found = list(counted(documents(seed), lost))
    lost.rows_out -= 1
    with pytest.raises(RuntimeError, match="rows in"):
        store.write(0, found, lost)
    assert list(store.folder.iterdir()) == [] and store.missing() == [0]


def test_killed_between_file_and_marker_is_done_again(tmp_path: Path, seed: int) -> None:
    store = Store(tmp_path, "clean", "f", world_size=1)
    for _ in range(2):
        tally = Tally("clean")
        store.write(0, counted(documents(seed), tally), tally)
        content = (store.folder / "00000.jsonl.zst").read_bytes()
        (store.folder / "00000.done.json").unlink()
        assert store.missing() == [0]
    assert (store.folder / "00000.jsonl.zst").read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_told(tmp_path: Path, seed: int, damage: str) -> None:
    store = Store(tmp_path, "clean", "f", world_size=1)
    tally = Tally("clean")
    store.write(0, counted(documents(seed), tally), tally)
    path = store.folder / "00000.jsonl.zst"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-10])
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(InputError, match="00000") as error:
        list(store.read(0))
    assert "00000.done.json" in error.value.problems[0].fix


def test_another_config_is_another_folder(tmp_path: Path) -> None:
    a, b = (Store(tmp_path, "clean", fingerprint("clean", {"x": x}), 1) for x in (1, 2))
    a.finish(0, Tally("clean"))
    assert a.is_done(0) and not b.is_done(0)
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
