"""Whatever is in a file, it costs at most itself; and what a share of a source costs is judged."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import files, open_source
from data_pipeline.readers.ingest import _survived
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError


def read(path: Path, **fields: Any) -> tuple[list[str], Tally]:
    source = open_source(SourceConfig(kind="files", path=str(path), **fields), 0)
    tally = Tally("read")
    found = [d.text for d in source.documents(tally)]
    tally.check()
    return found, tally


def tarred(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def with_size(size: bytes) -> bytes:
    """Return a tar whose second header tells another size."""
    data = bytearray(tarred(("a.py", b"first"), ("b.py", b"second")))
    data[1024 + 124 : 1024 + 136] = size.ljust(12, b"\0")
    header = bytes(data[1024:1536])
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    data[1024 + 148 : 1024 + 156] = f"{total:06o}\0 ".encode()
    return bytes(data)


NESTED = b"[" * 100_000
ODD = {
    "x.json": NESTED,
    "object.json": b'{"text":' * 100_000,
    "x.jsonl": NESTED + b'\n{"text": "row"}\n',
    "number.jsonl": b'{"text": "row", "n": ' + b"9" * 10_000 + b'}\n{"text": "row"}\n',
    "nan.jsonl": b'{"text": "row", "n": NaN, "m": 1e9999}\n',
    "key.jsonl": b'{"text": "row", "\\ud800": "\\udfff", "": {}}\n',
    "x.jsonl.gz": gzip.compress(NESTED + b'\n{"text": "row"}\n'),
    "x.zip": zipped(("x.json", NESTED), ("y.jsonl", b'{"text": "row"}\n')),
    "x.tar": tarred(("x.json", NESTED), ("y.jsonl", b'{"text": "row"}\n')),
    "names.zip": zipped(("a\nb.jsonl", b'{"text": "row"}\n'), ("a\\..\\..\\b.py", b"out")),
    "names.tar": tarred(("a\nb\udcff.jsonl", b'{"text": "row"}\n')),
    "negative.tar": with_size(b"\xff" * 11 + b"\xf0"),
    "huge.tar": with_size(b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),
    "letters.tar": with_size(b"xyz"),
    "empty.zip": b"",
    "end.zip": b"PK\5\6" + b"\xff" * 18,
    "bomb.jsonl.gz": gzip.compress(b"[" * (200 << 20)),
    "x.parquet": b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1",
    "sparse.py": b"",
    "nul.py": b"x = 1\n" * 1000 + b"\0",
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_costs_at_most_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ODD[name])
    if name == "sparse.py":
        with open(tmp_path / name, "r+b") as file:
            file.truncate(1 << 40)
    (tmp_path / "zz.txt").write_text("good")
    found, tally = read(tmp_path)
    assert found[-1] == "good"
    whole = {"number.jsonl": 1, "x.jsonl": 1, "x.jsonl.gz": 1, "x.zip": 1, "x.tar": 1}
    whole |= {"nan.jsonl": 1, "key.jsonl": 1, "names.zip": 1, "names.tar": 1}
    assert found.count("row") == whole.get(name, 0)
    assert tally.files >= 2


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), KeyError("x"), ValueError("y")])
@pytest.mark.parametrize("name", ["a.py", "a.jsonl", "a.zip"])
def test_a_reader_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, name: str
) -> None:
    content = b'{"text": "bad"}\n'
    (tmp_path / name).write_bytes(zipped(("x.py", content)) if name == "a.zip" else content)
    (tmp_path / "b.txt").write_text("good")

    def break_down(data: Any, *_: Any) -> Any:
        if b"bad" in data:
            raise error
        return data.decode()

    monkeypatch.setattr(files, "decode", break_down)
    monkeypatch.setattr("data_pipeline.readers.jsonl.decode", break_down)
    found, tally = read(tmp_path)
    assert found == ["good"]
    reason = f"corrupt_{type(error).__name__}"
    assert tally.drops[reason] + tally.file_drops[reason] == 1
    inner = "!x.py" if name == "a.zip" else ""
    assert tally.worst()[reason] == {f"{tmp_path}/{name}{inner}": 1}


def document(text: str) -> Document:
    return Document(text, text, "text", "Text", "0-files", text)


def step(documents: Any, tally: Tally) -> Iterator[Document]:
    for document in documents:
        tally.rows_in += 1
        if document.text == "bad":
            raise RecursionError
        if document.text == "dropped":
            tally.drop("rule", document.place)
            continue
        tally.rows_out += 1
        yield document


def test_a_document_that_breaks_a_rule_is_dropped() -> None:
    tally = Tally("clean")
    documents = map(document, ["a", "bad", "b", "dropped", "bad", "c"])
    found = list(_survived(lambda d: step(d, tally), documents, tally))
    assert [d.text for d in found] == ["a", "b", "c"]
    tally.check()
    assert tally.drops == {"broke_RecursionError": 2, "rule": 1}


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("disk"), InputError.of("", "", "")])
def test_an_error_of_an_earlier_step_is_not_taken_for_a_document(error: Exception) -> None:
    def upstream() -> Iterator[Document]:
        yield document("a")
        raise error

    tally = Tally("clean")
    with pytest.raises(type(error)):
        list(_survived(lambda d: step(d, tally), upstream(), tally))


def rows(good: int, bad: int) -> bytes:
    return b'{"text": "good"}\n' * good + b"bad\n" * bad


@pytest.mark.parametrize("order", ["bad first", "bad last"])
@pytest.mark.parametrize(
    ("good", "bad", "verdict"), [(24, 6, None), (23, 6, "6 corrupt_zip"), (3, 4, None)]
)
def test_the_verdict_on_files_is_a_share_of_the_whole(
    tmp_path: Path, order: str, good: int, bad: int, verdict: str | None
) -> None:
    first = order == "bad first"
    for i in range(bad):
        (tmp_path / f"{'a' if first else 'z'}{i}.zip").write_bytes(b"no zip")
    for i in range(good):
        (tmp_path / f"m{i}.txt").write_text(f"good {i}")
    if verdict is None:
        assert len(read(tmp_path)[0]) == good
        return
    with pytest.raises(InputError, match=rf"of the 29 files .* damaged: {verdict}") as error:
        read(tmp_path)
    assert f"{tmp_path}/{'a' if first else 'z'}0.zip" in str(error.value)


@pytest.mark.parametrize("order", ["bad first", "bad last", "one file"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_verdict_on_rows_is_a_share_of_the_whole(
    tmp_path: Path, order: str, packed: bool
) -> None:
    def write(name: str, content: bytes) -> None:
        if packed:
            (tmp_path / f"{name}.tar").write_bytes(tarred(("x.jsonl", content)))
        else:
            (tmp_path / f"{name}.jsonl").write_bytes(content)

    good, bad = ("m", {"bad first": "a", "bad last": "z"}.get(order, "m"))
    write(good, rows(6000, 0))
    write(bad, rows(6000 if bad == good else 0, 1500))
    assert len(read(tmp_path)[0]) == 6000
    write(bad, rows(6000 if bad == good else 0, 1501))
    with pytest.raises(InputError, match=r"1,501 of the 7,501 rows .* broken_json") as error:
        read(tmp_path)
    assert f"{tmp_path}/{bad}" in str(error.value)


def test_damaged_members_of_an_archive_are_judged_with_the_others(tmp_path: Path) -> None:
    bad = [(f"{i}.jsonl.gz", b"no gzip") for i in range(6)]
    good = [(f"{i}.txt", str(i).encode()) for i in range(30)]
    (tmp_path / "a.tar").write_bytes(tarred(*bad, *good))
    assert len(read(tmp_path)[0]) == 30
    (tmp_path / "a.tar").write_bytes(tarred(*bad, *good[:20]))
    with pytest.raises(InputError, match="6 of the 27 files"):
        read(tmp_path)


def test_reading_ends_where_the_verdict_cannot_change(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i:02}.zip").write_bytes(b"no zip")
    tally = Tally("read")
    source = open_source(SourceConfig(kind="files", path=str(tmp_path / "*")), 0)
    with pytest.raises(InputError, match="damaged"):
        list(source.documents(tally))
    for i in range(100):
        (tmp_path / f"{i:02}.zip").rename(tmp_path / f"{i:02}.jsonl.gz")
    tally = Tally("read")
    source = open_source(SourceConfig(kind="files", path=str(tmp_path)), 0)
    with pytest.raises(InputError, match="64 of the 100 files"):
        list(source.documents(tally))
    assert tally.files == 64


def test_worst_files_come_first_and_are_ten(rng: random.Random) -> None:
    counts = {f"{i}.jsonl": rng.randrange(1, 100) for i in range(3000)}
    tally, other = Tally("read"), Tally("read")
    for path, count in counts.items():
        rng.choice((tally, other)).fault("broken_json", path, count)
    tally.add(other)
    worst = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert list(tally.worst()["broken_json"].items()) == worst


@pytest.mark.parametrize("packer", ["gz", "zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.tar"])
def test_what_follows_a_packed_file(tmp_path: Path, packer: str, name: str) -> None:
    row = json.dumps({"text": "row"}).encode() + b"\n"
    content = row if name == "a.jsonl" else tarred(("x.jsonl", row))

    def pack(data: bytes) -> bytes:
        if packer == "gz":
            return gzip.compress(data)
        return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))

    whole, empty = pack(content), pack(b"")
    path = tmp_path / f"{name}.{packer}"
    for tail in (b"", b"\0", bytes(300_000), empty, bytes(7) + empty, empty + bytes(70_000)):
        path.write_bytes(whole + tail)
        found, tally = read(path)
        assert found == ["row"] and not tally.notes and not tally.file_drops
    for tail in (b"garbage", bytes(600_000) + b"x", b"\n", empty + b"junk" * 100_000):
        path.write_bytes(whole + tail)
        found, tally = read(path)
        assert found == ["row"] and tally.file_drops == {"trailing_garbage": 1}
        assert tally.worst() == {"trailing_garbage": {str(path): 1}}
    # the beginning of another member is no garbage
    path.write_bytes(whole + whole[:3])
    assert read(path)[1].file_drops == {"truncated_file": 1}
    path.write_bytes(whole + whole[:8] + b"\xff" * 50 + whole[8:])
    (tmp_path / "z.txt").write_text("good")
    assert read(tmp_path)[0][-1] == "good"
