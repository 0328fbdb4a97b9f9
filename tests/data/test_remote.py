"""A corpus in a store reads as the same corpus in a folder, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.driver import prepare
from loopcoder.cli import main as cli
from loopcoder.config.data import CacheConfig, DataConfig, ResolvedStage
from loopcoder.data import block_cache, blocks, mirror, order, packed
from loopcoder.data.blend import Blend, reader_of
from loopcoder.data.block_cache import BlockCache
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.megatron import MegatronReader
from loopcoder.data.packed import PackedReader
from loopcoder.data.places import ORIGIN
from loopcoder.errors import DiskFull, InputError, LoopcoderError, Unreachable
from loopcoder.storage import remote
from loopcoder.storage.files import size_of
from loopcoder.storage.remote import Store
from tests.configs import data_config, small_config
from tests.data.stores import in_memory, written

BLOCK = 512
SEEDS = (1, 0, 0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 256 tokens and requests of 100 bytes, so that shards of a test have many; a server
    that is gone is given up soon."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(packed, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(order, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(order, "_LEAST_TOKENS", BLOCK // 2)
    monkeypatch.setattr(remote, "PIECE", 100)
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)


@pytest.fixture
def local(tmp_path: Path, seed: int) -> Corpus:
    return written(tmp_path / "local", np.random.default_rng(seed))


@pytest.fixture
def url(local: Corpus, tmp_path: Path) -> Iterator[str]:
    import fsspec

    yield in_memory(local.dir, tmp_path.name)
    store = fsspec.filesystem("memory").store
    for name in [name for name in store if name.startswith(f"/{tmp_path.name}/")]:
        del store[name]
    mirror.mirror.cache_clear()


@pytest.fixture
def config(url: str, tmp_path: Path) -> Callable[..., DataConfig]:
    def make(**cache: Any) -> DataConfig:
        kept = CacheConfig(dir=str(tmp_path / "kept"), **cache)
        return data_config(
            name="corpus", path=url, seq_length=20, mixture={"text": 1, "code": 2},
            reader="packed", cache=kept,
        )  # fmt: skip

    return make


def opened(config: DataConfig) -> Corpus:
    mirror.mirror.cache_clear()  # as another process would
    return prepare(config, report=lambda _: None, verify="small")


def rows(corpus: Corpus, config: DataConfig, count: int = 300) -> torch.Tensor:
    stage = ResolvedStage(config.mixture, config.seq_length, 1e4)
    return Blend(corpus, stage, 0, 7, reader_of(config)).rows(np.arange(count))[0]


def kept(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "kept" / "blocks").iterdir() if "." not in p.name]


def size(folder: Path) -> int:
    """Bytes of all files but locks."""
    return sum(path.stat().st_size for path in folder.iterdir() if not path.name.endswith(".lock"))


def change(url: str, name: str, by: Callable[[bytes], bytes | None]) -> None:
    import fsspec

    fs, path = fsspec.core.url_to_fs(f"{url}/{name}")
    content = by(fs.cat_file(path))
    if content is None:
        fs.rm_file(path)
    else:
        fs.pipe_file(path, content)


def a_shard(corpus: Corpus) -> str:
    return str(corpus.manifest["domains"]["code"]["train"]["shards"][1]["prefix"]) + ".bin"


def test_it_is_the_same_corpus(local: Corpus, url: str, config: Callable[..., DataConfig]) -> None:
    there = opened(config())
    assert (there.url, there.place, local.place) == (url, url, str(local.dir.resolve()))
    assert there == Corpus(**{**vars(local), "dir": there.dir, "url": url,
                              "tokenizer_path": there.dir / "tokenizer.json"})  # fmt: skip
    stage = ResolvedStage(config().mixture, 20, 1e4)
    for ours, theirs in zip(
        *(
            Blend(c, stage, 0, 7, reader_of(config())).rows(np.arange(300))[:3]
            for c in (there, local)
        ),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert len(there.labels) == 8
    assert not list(there.dir.glob("train/*.bin")), "no shard is copied whole"
    for domain in local.domains:
        name = f"{local.prefixes(domain, 'val')[0]}.bin".removeprefix(str(local.dir))
        assert (local.dir / name[1:]).read_bytes() == (there.dir / name[1:]).read_bytes()


@pytest.mark.parametrize("limit", [0.5, 1.5, 4, 1000])
@pytest.mark.data_full
def test_the_cache_never_has_more_than_its_limit(
    local: Corpus, config: Callable[..., DataConfig], tmp_path: Path, limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    limit = int(limit * BLOCK)
    folder, most = tmp_path / "kept" / "blocks", 0
    take = BlockCache._make_room

    def watched(*given: Any) -> bool:
        nonlocal most
        took = take(*given)
        most = max(most, size(folder))
        return took

    monkeypatch.setattr(BlockCache, "_make_room", watched)
    settings = config(bytes=limit, ahead=0)
    assert torch.equal(rows(opened(settings), settings), rows(local, settings))
    assert most <= limit
    assert most > 0 or limit < BLOCK


def test_what_was_used_last_stays(
    config: Callable[..., DataConfig], tmp_path: Path, url: str, local: Corpus
) -> None:
    cache = BlockCache(tmp_path / "c", 3 * BLOCK, Store(url))
    name = a_shard(local)
    for index in (0, 1, 2):
        cache.block(name, index * BLOCK, BLOCK, None)
        time.sleep(0)
        stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}
    before = set(stamp)
    cache.block(name, 0, BLOCK, None)  # used again
    cache.block(name, 3 * BLOCK, BLOCK, None)
    gone = before - set((tmp_path / "c").iterdir())
    assert gone == {sorted(stamp, key=lambda p: stamp[p] if p.suffix == "" else 1 << 62)[1]}


def test_a_second_run_reads_no_shard_from_the_store(
    config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("it is here")

    first = rows(opened(config(ahead=0)), config(ahead=0))
    monkeypatch.setattr(Store, "pieces", never)
    assert torch.equal(rows(opened(config(ahead=0)), config(ahead=0)), first)


def test_the_blocks_that_come_next(local: Corpus, seed: int) -> None:
    """Those that a walk through the order reads, and none besides."""
    reader = PackedReader(local, "code", 20, SEEDS)
    size, total = 2, int(reader.sequences.sum())
    start = random.Random(seed).randrange(total)
    walked: list[tuple[int, int]] = []
    for i in range(start, start + 2 * total):
        shard, token = reader.place(*divmod(i, total))
        first, last = token * size // BLOCK, ((token + 20) * size + 1) // BLOCK
        walked += [(shard, block) for block in range(first, last + 1)]
    coming = list(islice(reader.upcoming(0, start), len(walked)))
    for place in dict.fromkeys(walked):
        assert place in coming
    entered = [a for a, b in zip(coming, [None, *coming], strict=False) if a != b]
    wanted = list(dict.fromkeys(walked))[:5]
    assert [p for p in dict.fromkeys(entered) if p in wanted][:2] == sorted(
        wanted[:2], key=entered.index
    )
    assert coming[0][0] == walked[0][0]


def test_blocks_are_fetched_before_they_are_needed(
    config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_thread: list[str] = []
    fetch = Store.pieces

    def watched(store: Store, name: str, *rest: Any) -> list[bytes]:
        in_thread.append(threading.current_thread().name)
        return fetch(store, name, *rest)

    monkeypatch.setattr(Store, "pieces", watched)
    there = opened(config(ahead=3))
    reader = PackedReader(there, "code", 20, SEEDS, cache=config(ahead=3).cache)
    reader.row(0, 0)
    deadline = time.monotonic() + 20
    while in_thread.count("loopcoder-blocks") < 2:
        assert time.monotonic() < deadline, in_thread
        threading.Event().wait(0.01)


@pytest.mark.parametrize("what", ["flipped", "cut", "emptied", "gone"])
def test_a_damaged_block_of_the_cache_is_fetched_again(
    local: Corpus, config: Callable[..., DataConfig], tmp_path: Path, what: str, seed: int
) -> None:
    settings = config(ahead=0)
    rows(opened(settings), settings)
    for path in kept(tmp_path):
        content = path.read_bytes()
        at = random.Random(seed).randrange(len(content))
        if what == "flipped":
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        elif what == "gone":
            path.unlink()
        else:
            path.write_bytes(content[:at] if what == "cut" else b"")
    assert torch.equal(rows(opened(settings), settings), rows(local, settings))


@pytest.mark.parametrize("where", ["shard", "held out", "digests", "tokenizer"])
def test_a_damaged_object_is_named(
    local: Corpus, url: str, config: Callable[..., DataConfig], where: str, seed: int
) -> None:
    shard = a_shard(local)
    name = {
        "shard": shard,
        "held out": local.manifest["domains"]["text"]["val"]["shards"][0]["prefix"] + ".bin",
        "digests": shard.removesuffix(".bin") + ".blocks",
        "tokenizer": "tokenizer.json",
    }[where]

    def flip(content: bytes) -> bytes:
        at = random.Random(seed).randrange(len(content) - 1)
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    change(url, name, flip)
    wrong = f"{url}/{name} .*(is damaged in its bytes|has other content)"
    with pytest.raises(InputError, match=wrong) as caught:
        rows(opened(config()), config(), 700)
    assert f"upload it {'again' if where == 'shard' else f'to {url} again'}" in str(caught.value)


@pytest.mark.parametrize("what", ["cut", "longer", "gone"])
@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_a_shard_of_another_size_is_named(
    local: Corpus, url: str, config: Callable[..., DataConfig], what: str, when: str
) -> None:
    name = a_shard(local)
    by: dict[str, Callable[[bytes], bytes | None]] = {
        "cut": lambda content: content[:-7],
        "longer": lambda content: content + b"1234",
        "gone": lambda _: None,
    }
    facts = {
        "cut": "has .* bytes|ends after",
        "longer": "has .* bytes",
        "gone": "is missing|is not there",
    }
    there = opened(config()) if when != "before" else None
    change(url, name, by[what])
    if what == "longer" and there is not None:
        rows(there, config())  # what is read of it is as it was
        return
    with pytest.raises(InputError, match=f"{name} ({facts[what]})"):
        rows(there or opened(config()), config(), 600)


class Failing:
    """A store that fails so often, or for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int):
        from fsspec.implementations.memory import MemoryFileSystem

        self.left = times
        for name in ("cat_file", "cat_ranges", "find"):
            inner = getattr(MemoryFileSystem, name)

            def failing(fs: Any, *given: Any, inner: Any = inner, **more: Any) -> Any:
                if self.left > 0:
                    self.left -= 1
                    raise error
                return inner(fs, *given, **more)

            monkeypatch.setattr(MemoryFileSystem, name, failing)


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("reset by peer"), TimeoutError(), OSError(errno.EREMOTEIO, "SlowDown"),
     RuntimeError("an error of a library of the store")],
)  # fmt: skip
def test_a_passing_error_is_tried_again(
    local: Corpus, config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch,
    error: Exception, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Failing(monkeypatch, error, 2)
    there = opened(config())
    Failing(monkeypatch, error, 4)
    assert torch.equal(rows(there, config()), rows(local, config()))
    assert "once more in 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ConnectionRefusedError("refused"), Unreachable, "its server does not answer"),
        (PermissionError("Access Denied"), InputError, "may not be read: .*Access Denied"),
        (FileNotFoundError("NoSuchBucket"), InputError, "is not there"),
    ],
)
@pytest.mark.parametrize("when", ["at the start", "in training"])
def test_a_lasting_error_is_named(
    config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch,
    error: Exception, kind: type[LoopcoderError], said: str, when: str,
) -> None:  # fmt: skip
    there = opened(config()) if when == "in training" else None
    Failing(monkeypatch, error, 1 << 30)
    with pytest.raises(kind, match=said) as caught:
        rows(there or opened(config()), config())
    assert type(caught.value) is kind
    for part in ("memory://", "why:", "fix:"):
        assert part in str(caught.value)


def test_a_full_disk_makes_the_cache_smaller(
    local: Corpus, config: Callable[..., DataConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Room for six blocks; the limit says more."""
    folder = tmp_path / "kept" / "blocks"
    whole = Path.replace

    def replace(path: Path, target: Any) -> Path:
        if Path(target).parent == folder and size(folder) > 6 * BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    settings = config(ahead=0)
    assert torch.equal(rows(opened(settings), settings), rows(local, settings))
    said = capsys.readouterr().err
    assert "no room in data.cache.dir" in said
    assert len(said.splitlines()) <= 4, "it is said when it shrinks, not for every block"
    assert 0 < len(kept(tmp_path)) <= 6


@pytest.mark.data_full
def test_a_full_disk_that_takes_nothing(
    local: Corpus, config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings = config(ahead=0)
    there = opened(settings)
    monkeypatch.setattr(BlockCache, "_make_room", full)
    assert torch.equal(rows(there, settings), rows(local, settings))


def test_processes_share_a_download(
    local: Corpus, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads here, with locks of their own as processes have."""
    fetched: list[int] = []
    fetch = Store.pieces

    def slow(store: Store, name: str, start: int, *rest: Any) -> list[bytes]:
        fetched.append(start)
        threading.Event().wait(0.05)
        return fetch(store, name, start, *rest)

    monkeypatch.setattr(Store, "pieces", slow)
    caches = [BlockCache(tmp_path / "c", 100 * BLOCK, Store(url)) for _ in range(6)]
    threads = [
        threading.Thread(target=cache.block, args=(a_shard(local), BLOCK, BLOCK, None))
        for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [BLOCK]
    assert {p.name for p in (tmp_path / "c").iterdir() if "." in p.name} <= {".lock"}


def test_another_corpus_under_the_same_url_is_another_one(
    local: Corpus, url: str, config: Callable[..., DataConfig]
) -> None:
    first = opened(config())
    change(
        url,
        "manifest.json",
        lambda content: content.replace(b'"fingerprint": "', b'"fingerprint": "f'),
    )
    second = opened(config())
    assert first.dir != second.dir
    assert second.fingerprint == f"f{first.fingerprint}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 99}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named(
    url: str, config: Callable[..., DataConfig], content: bytes
) -> None:
    change(url, "manifest.json", lambda _: content)
    with pytest.raises(InputError, match=f"{url}/manifest.json"):
        opened(config())


def test_a_fetch_that_was_stopped_goes_on(
    url: str, config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After any number of small files: what has a manifest is complete."""
    read = Store.read
    asked: list[str] = []

    def stops(store: Store, name: str) -> bytes:
        asked.append(name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return read(store, name)

    monkeypatch.setattr(Store, "read", stops)
    with pytest.raises(KeyboardInterrupt):
        opened(config())
    assert not list((tmp_path / "kept").rglob("manifest.json"))
    opened(config())
    assert len(set(asked)) == len(asked) - 2, "only the manifest and what was stopped come again"


def test_without_digests_it_is_refused_or_not_compared(
    local: Corpus, url: str, config: Callable[..., DataConfig]
) -> None:
    manifest = json.loads((local.dir / "manifest.json").read_text())
    manifest["files"] = {n: e for n, e in manifest["files"].items() if not n.endswith(".blocks")}
    change(url, "manifest.json", lambda _: json.dumps(manifest).encode())
    there = opened(config())
    with pytest.raises(InputError, match="has no digests of its blocks") as caught:
        rows(there, config())
    assert "data.verify=size" in str(caught.value)
    reader = PackedReader(there, "code", 20, SEEDS, verify=False, cache=config().cache)
    plain = PackedReader(local, "code", 20, SEEDS)
    assert torch.equal(reader.row(0, 0).ids, plain.row(0, 0).ids)


def test_megatron_reads_no_store(config: Callable[..., DataConfig]) -> None:
    """As a run that began with it elsewhere would."""
    with pytest.raises(InputError, match=r"in a store, .*data.reader=megatron"):
        MegatronReader(opened(config()), "code", 20, SEEDS)


def test_an_altered_record_of_the_url_is_named(config: Callable[..., DataConfig]) -> None:
    there = opened(config())
    (there.dir / ORIGIN).write_text("{")
    with pytest.raises(InputError, match=r"origin.json cannot be read") as caught:
        load_corpus(there.dir, "size")
    assert f"rm -r {there.dir}" in str(caught.value)


def test_a_full_disk_at_the_start_is_named(
    config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mirror, "write_bytes", full)
    with pytest.raises(DiskFull, match="no space left") as caught:
        opened(config())
    assert "data.cache.dir=ANOTHER" in str(caught.value)


@pytest.mark.parametrize("verb", ["show", "validate", "report"])
def test_what_reads_shards_here_is_refused(
    url: str, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", verb, url, "--cache", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert f"loopcoder data {verb} FOLDER" in said and url in said


def test_what_reads_the_manifest_alone_works(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "stats", url, "--cache", str(tmp_path)]) == 0
    assert "9,000" in capsys.readouterr().out


def test_a_protocol_that_nobody_knows(config: Callable[..., DataConfig]) -> None:
    with pytest.raises(InputError, match="nosuch://x/y cannot be read"):
        mirror.mirror("nosuch://x/y", Path("/tmp"))


def test_blocks_are_closed(local: Corpus, url: str, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    cache = BlockCache(tmp_path / "c", 100 * BLOCK, Store(url))
    for _ in range(3):
        for index in range(4):
            cache.block(a_shard(local), index * BLOCK, BLOCK, None)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert block_cache._OPEN == 4


def test_a_cache_without_room_for_a_shard_of_each_domain_is_said(
    config: Callable[..., DataConfig], local: Corpus
) -> None:
    """Most blocks are fetched twice then, without a word."""
    settings = config()
    corpus = opened(settings)
    run = replace(small_config(), data=settings)
    shards = [max((local.dir / "train").glob(f"{d}*.bin"), key=size_of) for d in local.domains]
    needed = sum(map(size_of, shards))
    assert list(mirror.small_cache(run, corpus)) == []
    for limit, said in ((needed, 0), (needed - 1, 1), (1, 1)):
        run = replace(run, data=config(bytes=limit))
        notes = list(mirror.small_cache(run, corpus))
        assert len(notes) == said
        assert all(f"data.cache.bytes={needed} has room" in note for note in notes)
        assert list(mirror.small_cache(run, local)) == []  # reads no store
    text = replace(run, data=replace(config(bytes=needed - 1), mixture={"text": 1.0}))
    assert list(mirror.small_cache(text, corpus)) == []
