"""The fault table: what each kind of damage must lead to, one test a row of the table."""

from __future__ import annotations

import gzip
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import open_source
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError

Read = Callable[..., tuple[list[str], Tally]]
MB = 1 << 20
PACKERS = ("gz", "zst")


def documents(path: Path, **fields: Any) -> tuple[list[Document], Tally]:
    source = open_source(SourceConfig(kind="files", path=str(path), **fields), 0)
    tally = Tally("read")
    found = list(source.documents(tally))
    tally.check()
    return found, tally


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write files, read the folder, and return the texts and the tally."""

    def run(files: dict[str, bytes], **fields: Any) -> tuple[list[str], Tally]:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        found, tally = documents(tmp_path, **fields)
        return [d.text for d in found], tally

    return run


def row(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def pack(packer: str, data: bytes, **options: Any) -> bytes:
    if packer == "gz":
        return gzip.compress(data)
    zstandard = pytest.importorskip("zstandard")
    options = {"write_checksum": True, **options}
    return bytes(zstandard.ZstdCompressor(**options).compress(data))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"text": "cut', "broken_json"),
        (b'{"text": "a"} {"text": "b"}', "broken_json"),
        (b'{"text": "a\tb"}', "broken_json"),
        (b"{" * 100_000, "broken_json"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "broken_json"),
        (b'["text"]', "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"5", "not_an_object"),
        (b'{"text": 5}', "text_not_a_string"),
        (b'{"text": {"text": "a"}}', "text_not_a_string"),
        (b'{"text": null}', "missing_text"),
        (b"{}", "missing_text"),
        (rb'{"text": "a\ud800b"}', "surrogate"),
        (rb'{"text": "\udc00\ud800"}', "surrogate"),
        (b'{"text": ""}', "empty"),
    ],
)
def test_bad_row(read: Read, bad: bytes, reason: str) -> None:
    texts, tally = read({"a.jsonl": row("one") + bad + b"\n" + row("two") + bad})
    assert texts == ["one", "two"]
    assert tally.drops == {reason: 2}


def test_surrogate_pairs_and_other_columns(read: Read) -> None:
    """A pair is a character; what other columns hold is nobody's business."""
    rows = rb'{"text": "\ud83d\ude42", "lang": "\ud800"}' + b"\n"
    rows += b'{"text": "b", "lang": "a\\u0000b", "x": NaN}\n{"text": "c", "lang": 5}\n'
    texts, tally = read({"a.jsonl": rows}, language_field="lang")
    assert texts == ["🙂", "b", "c"]
    assert not tally.drops


@pytest.mark.parametrize("bad", [b"\xff", b"\xe9t", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf0\x9f"])
def test_invalid_utf8(read: Read, bad: bytes) -> None:
    files = {"a.jsonl": row("ok") + b'{"text": "x' + bad + b'y"}\n', "b.txt": b"z" + bad}
    texts, tally = read(files, invalid_utf8="replace")
    assert texts[0] == "ok"
    assert all("\ufffd" in t for t in texts[1:]) and len(texts) == 3
    assert tally.notes == {"invalid_utf8_replaced": 2}
    texts, tally = read(files, invalid_utf8="drop")
    assert texts == ["ok"]
    assert tally.drops == {"invalid_utf8": 2}


def test_all_that_is_not_utf8_is_refused_at_once(read: Read) -> None:
    files = {f"{n}.txt": b"caf\xe9" for n in range(4)} | {"good.txt": b"good"}
    files |= {
        "a.jsonl": row("ok") + b'{"text": "\xe9"}\n{"text": "\xff"}\n',
        "b.csv": b"text\n\xff",
    }
    with pytest.raises(InputError) as caught:
        read(files)
    (problem,) = caught.value.problems
    assert problem.fact.startswith("7 documents are not UTF-8: ")
    assert problem.fact.count("byte ") == 3 and problem.fact.endswith(" and 4 more")
    assert problem.fix.startswith("data.build.invalid_utf8=replace or =drop")
    many = b'{"text": "\xe9"}\n' * 5000
    with pytest.raises(InputError, match="1,000 documents are not UTF-8 so far"):
        read({"a.jsonl": many})


@pytest.mark.parametrize("packer", PACKERS)
def test_truncated_file_keeps_its_good_prefix(read: Read, rng: random.Random, packer: str) -> None:
    texts = [f"{i} {rng.randbytes(rng.randrange(99)).hex()}" for i in range(5000)]
    whole = pack(packer, b"".join(map(row, texts)))
    last = 0
    for cut in (1, 5, 12, *sorted(rng.randrange(20, len(whole) - 1) for _ in range(10))):
        found, tally = read({f"a.jsonl.{packer}": whole[:cut]})
        assert found == texts[: len(found)]
        assert len(found) >= last
        assert tally.file_drops == {"truncated_file": 1} and set(tally.drops) <= {"truncated_row"}
        assert [len(files) for files in tally.worst().values()] == [1]
        # a block of zstd is 128 kB: what is lost is less than two of them
        lost = len(b"".join(map(row, texts))) * cut // len(whole) - len(b"".join(map(row, found)))
        assert lost < 300_000
        last = len(found)
    assert last


@pytest.mark.parametrize("packer", PACKERS)
def test_corrupt_file_is_quarantined(read: Read, rng: random.Random, packer: str) -> None:
    whole = bytearray(pack(packer, b"".join(row(rng.randbytes(50).hex()) for _ in range(20_000))))
    bad = bytearray(whole)
    bad[-7 if packer == "gz" else -3] ^= 1 << rng.randrange(8)  # the checksum
    files = {f"a.jsonl.{packer}": bytes(bad), "b.jsonl": row("good")}
    texts, tally = read(files)
    assert texts == ["good"]
    assert tally.file_drops == {f"corrupt_{packer}": 1}
    for bit in rng.sample(range(80, 8 * len(whole) - 80), 5):
        bad = bytearray(whole)
        bad[bit // 8] ^= 1 << bit % 8
        texts, tally = read({**files, f"a.jsonl.{packer}": bytes(bad)})
        # damage may also make the stream look unfinished; wrong text gets through in no case
        if not tally.file_drops["truncated_file"]:
            assert texts == ["good"]
            assert tally.file_drops == {f"corrupt_{packer}": 1}


def test_corrupt_parquet(read: Read) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a", "b"]}), buffer)
    whole = buffer.getvalue().to_pybytes()
    files = {"a.parquet": whole[:-9], "b.parquet": b"", "c.parquet": b"PAR1", "d.parquet": whole}
    texts, tally = read(files)
    assert texts == ["a", "b"]
    assert tally.file_drops == {"corrupt_parquet": 3}


def test_empty_files(read: Read) -> None:
    names = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.txt", "e.py")
    texts, tally = read({**dict.fromkeys(names, b""), "f.jsonl.gz": pack("gz", b""), "g.md": b"g"})
    assert texts == ["g"]
    assert tally.file_drops == {"empty_file": 4}
    assert tally.drops == {"empty": 2}


def test_byte_order_mark(read: Read) -> None:
    bom = b"\xef\xbb\xbf"
    files = {"a.jsonl": bom + row("a") + row("b"), "b.jsonl.gz": pack("gz", bom + row("c"))}
    files |= {"c.py": bom + b"d", "d.txt": bom + b"e"}
    texts, tally = read(files)
    assert texts == ["a", "b", "c", "d", "e"]
    assert tally.notes == {"byte_order_mark": 2}


def test_line_ends(read: Read) -> None:
    """CRLF ends rows and stays in texts; U+2028 and its kin end nothing."""
    inside = "x\u2028\u2029\x85\x0b\x0c\x1cy"
    raw = json.dumps({"text": "x\u2028\u2029\x85y"}, ensure_ascii=False).encode()
    content = row("a").replace(b"\n", b"\r\n") + b"\r\n" + row("b\r\nc") + row(inside) + raw
    texts, tally = read({"a.jsonl": content, "b.txt": b"one\r\ntwo\r\n"})
    assert texts == ["a", "b\r\nc", inside, "x\u2028\u2029\x85y", "one\r\ntwo\r\n"]
    assert tally.notes == {"blank_line": 1}
    assert not tally.drops


@pytest.mark.data_full
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
def test_document_of_100_mb(tmp_path: Path, name: str) -> None:
    """It is left out, and never held: a row may take 64 MB, for 8 MB of text may be so escaped."""
    huge = b'{"text": "' + b"word " * (20 * MB) + b'"}\n'
    content = huge if name == "a.txt" else row("a") + huge + row("b")
    packer = name.rpartition(".")[2]
    path = tmp_path / name
    path.write_bytes(pack(packer, content) if packer in PACKERS else content)
    (tmp_path / "z.jsonl").write_bytes(row("z"))
    size = len(content)
    del huge, content
    tracemalloc.start()
    try:
        found, tally = documents(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [d.text for d in found] == (["z"] if name == "a.txt" else ["a", "b", "z"])
    assert tally.drops == {"too_large": 1}
    assert size > 100 * MB and peak < 100 * MB, f"{peak / MB:.0f} MB"


def test_packed_bomb(read: Read) -> None:
    """A 300 MB line that takes 10 kB as zstd."""
    huge = pack("zst", b'{"text": "' + b"a" * (300 * MB))
    tracemalloc.start()
    try:
        texts, tally = read({"a.jsonl.zst": pack("zst", row("a")) + huge})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert texts == ["a"]
    assert tally.drops == {"too_large": 1}
    assert peak < 100 * MB, f"{peak / MB:.0f} MB"


def test_long_window(read: Read) -> None:
    """Some public corpora are packed by `zstd --long=31`."""
    zstandard = pytest.importorskip("zstandard")
    # the frame: magic, no size, no checksum, a window of 2^31 bytes; one raw block, the last
    block = row("a")
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, 21 << 3]) + (len(block) << 3 | 1).to_bytes(3, "little")
    with pytest.raises(zstandard.ZstdError):
        zstandard.ZstdDecompressor().decompressobj().decompress(frame + block)
    texts, _ = read({"a.jsonl.zst": frame + block})
    assert texts == ["a"]


def test_ids_are_unique_and_stable(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(row("same") * 50)
    (tmp_path / "b.jsonl").write_bytes(b"broken\n" + row("same") * 50)
    (tmp_path / "c.txt").write_bytes(b"same")
    first, _ = documents(tmp_path)
    ids = [d.id for d in first]
    assert len(set(ids)) == 101
    assert [d.id for d in documents(tmp_path)[0]] == ids
    # a row keeps its id when one before it is mended
    (tmp_path / "b.jsonl").write_bytes(row("good") + row("same") * 50)
    assert set(ids) < {d.id for d in documents(tmp_path)[0]}


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    names = [b"caf\xe9.py", b"caf\xe8.py", b"r\xff.jsonl"]
    try:
        for name in names:
            content = row("r") if name.endswith(b"l") else name[3:4]
            Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(content)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    found, _ = documents(tmp_path, invalid_utf8="replace")
    assert len({d.id for d in found}) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(b"x", "broken_json"), (b"[]", "not_an_object"), (b'{"t": 1}', "missing_text")],
)
def test_too_many_bad_rows_fail_loudly(read: Read, bad: bytes, reason: str) -> None:
    mixed = (row("good") * 3 + bad + b"\n") * 1000  # a quarter of them
    with pytest.raises(InputError, match=f"unusable: .* {reason}") as error:
        read({"a.jsonl": mixed})
    assert "text_field" in error.value.problems[0].fix
    mixed = (row("good") * 6 + bad + b"\n") * 1000  # a seventh
    assert len(read({"a.jsonl": mixed})[0]) == 6000


@pytest.mark.parametrize("packer", PACKERS)
def test_too_many_bad_files_fail_loudly(read: Read, packer: str) -> None:
    good = {f"{i:02}.jsonl": row("good") for i in range(24)}
    assert len(read({**good, **{f"b{i}.jsonl.{packer}": b"no" * 9 for i in range(6)}})[0]) == 24
    with pytest.raises(InputError, match=f"7 corrupt_{packer}"):
        read({f"b6.jsonl.{packer}": b"no" * 9})


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": b"broken\n" * 3},
        {"a.jsonl.gz": b"this is no gzip"},
        {"a.jsonl": b'{"content": "another column"}\n'},
        {"a.parquet": b"no parquet"},
    ],
)
def test_a_source_of_faults_only_fails_loudly(read: Read, files: dict[str, bytes]) -> None:
    """However small: 1,000 rows or 5 files are needed to judge a source that gives something."""
    with pytest.raises(InputError, match="has no usable document"):
        read(files)
    assert read({"good.jsonl": row("good")})[0] == ["good"]
