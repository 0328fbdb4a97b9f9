"""Documents between stages: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.schema import Document
from data_pipeline.tasks import chunks as store
from data_pipeline.tasks.chunks import ChunkWriter, read_chunk
from loopcoder.errors import InputError

ODD = ["", "\n", "a\r\nb", "\u2028line\u2029", "\x00nul", "é\U0001f600\u200d", "x" * 3_000_000]
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True, params=[True, False], ids=["zstd", "gzip"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to pack: with the data extra, and without it."""
    monkeypatch.setattr(store, "_FAST", request.param)


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


def test_round_trip_in_chunks(tmp_path: Path, seed: int) -> None:
    found = documents(seed)
    limit = random.Random(seed).randint(1, 5000)
    with ChunkWriter(tmp_path, 3, limit) as out:
        for document in found:
            out.add(document)
    assert [c.name[:10] for c in out.chunks] == [f"00003-{i:04d}" for i in range(len(out.chunks))]
    read = [list(read_chunk(tmp_path, chunk)) for chunk in out.chunks]
    assert [d for part in read for d in part] == found
    for part, chunk in zip(read, out.chunks, strict=True):
        sizes = [len(d.text.encode()) for d in part]
        assert chunk.documents == len(part)
        assert chunk.text_bytes == {"code": sum(sizes)}
        # a chunk ends with the document that fills it
        assert sum(sizes[:-1]) < limit
    assert all(sum(c.text_bytes.values()) >= limit for c in out.chunks[:-1])
    assert sorted(p.name for p in tmp_path.iterdir()) == [c.name for c in out.chunks]


def test_what_is_packed_by_itself_comes_back() -> None:
    for text in ODD:
        assert store.unpacked(store.packed(text.encode())) == text.encode()


def test_number_of_documents_is_limited(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_CHUNK_DOCUMENTS", 10)
    with ChunkWriter(tmp_path, 0, 1 << 60) as out:
        for document in documents(seed, 28):
            out.add(document)
    assert [c.documents for c in out.chunks] == [10, 10, 10, 5]


def test_no_documents_are_no_chunk(tmp_path: Path) -> None:
    with ChunkWriter(tmp_path, 0, 100) as out:
        pass
    assert out.chunks == [] and list(tmp_path.iterdir()) == []


def test_what_fails_leaves_only_whole_chunks(tmp_path: Path, seed: int) -> None:
    with pytest.raises(OSError, match="No space"), ChunkWriter(tmp_path, 0, 1000) as out:
        for number, document in enumerate(documents(seed)):
            if number == 40:
                raise OSError(28, "No space left on device")
            out.add(document)
    assert sorted(p.name for p in tmp_path.iterdir()) == [c.name for c in out.chunks]
    for chunk in out.chunks:
        assert list(read_chunk(tmp_path, chunk))


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_told(tmp_path: Path, seed: int, damage: str) -> None:
    with ChunkWriter(tmp_path, 0, 1 << 60) as out:
        for document in documents(seed):
            out.add(document)
    (chunk,) = out.chunks
    path = tmp_path / chunk.name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-10])
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(InputError, match=chunk.name):
        list(read_chunk(tmp_path, chunk))


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    odd = Document("1", "text", "code", "C", "s", "a/\udcff.c")
    with ChunkWriter(tmp_path, 0, 100) as out:
        out.add(odd)
    assert [d.path for d in read_chunk(tmp_path, out.chunks[0])] == ["a/\\udcff.c"]


def test_import_needs_no_extra() -> None:
    code = "import sys; sys.modules['zstandard'] = sys.modules['orjson'] = None\n"
    code += "from data_pipeline.tasks import chunks as store"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
