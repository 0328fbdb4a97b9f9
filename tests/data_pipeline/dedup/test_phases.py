"""Deduplication against theory, against itself for other ranks and crashes, and against damage."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_pipeline.dedup import pairs
from data_pipeline.dedup import phases as near_dedup
from data_pipeline.dedup.minhash import MinHashConfig, choose, detection, shingles
from data_pipeline.dedup.phases import cluster, drop, match, num_matches, share, sign
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks import done_folder
from loopcoder.errors import InputError
from loopcoder.storage import files as durable

CONFIG = MinHashConfig()
Parts = Sequence[Sequence[Document]]


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of what was synced to disk, instead of doing so: it takes most of the time."""
    names: set[str] = set()
    monkeypatch.setattr(
        os, "fsync", lambda fd: names.add(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    return names


def document(text: str, name: str, domain: str = "text") -> Document:
    return Document(name, text, domain, "plain", "source", name)


def words(rng: random.Random, count: int) -> list[str]:
    """Words that hardly ever occur twice."""
    return [f"{rng.getrandbits(48):x}" for _ in range(count)]


def pair_of(rng: random.Random, common: int, own: int) -> tuple[str, str]:
    """Two texts with `common` shingles of 5 words in common and `own` of each: J is exact."""
    shared = words(rng, common + 4)
    a, b = (" ".join(shared + words(rng, own)) for _ in range(2))
    return a, b


def run(
    folder: Path, parts: Parts, config: MinHashConfig = CONFIG, world_size: int = 1
) -> list[list[str]]:
    """Do all phases, rank after rank; return the names of the documents that stay, by part."""
    for rank in range(world_size):
        for part in share(len(parts), rank, world_size):
            sign(parts[part], folder, part, config)
    for rank in reversed(range(world_size)):
        for index in share(num_matches(config), rank, world_size):
            match(folder, index, len(parts), config)
    drops = cluster(folder, len(parts), config)
    tally = Tally("dedup")
    kept = [[d.id for d in drop(part, folder, i, tally)] for i, part in enumerate(parts)]
    tally.check()
    assert tally.drops == drops
    assert tally.rows_in == sum(map(len, parts))
    return kept


def some_parts(rng: random.Random, num_parts: int = 5) -> list[list[Document]]:
    """Parts with copies, near copies, prose, code and empty documents."""
    texts = [" ".join(words(rng, rng.randrange(5, 200))) for _ in range(40)]
    texts += [text.replace(" ", "  \n", 1) + "\r\n" for text in texts[:10]]
    texts += [text + " tail" for text in texts[5:20]] + ["", "", "\n", "?!", "one", "One.", "two"]
    rng.shuffle(texts)
    documents = [
        document(text, str(i), rng.choice(("text", "code"))) for i, text in enumerate(texts)
    ]
    return [documents[i::num_parts] for i in range(num_parts)]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Against theory


def test_choice_of_bands() -> None:
    assert choose(0.8) == (CONFIG.bands, CONFIG.rows) == (14, 8)
    found = [detection(j, 14, 8) for j in (0.0, 0.7, 0.8, 0.9, 1.0)]
    assert found == pytest.approx([0, 0.5645, 0.9235, 0.9996, 1], abs=1e-4)
    bands, rows = choose(0.5, detect=0.9, num_hashes=64)
    assert bands * rows <= 64 and detection(0.5, bands, rows) >= 0.9
    with pytest.raises(ValueError, match="raise `num_hashes`"):
        choose(0.1, num_hashes=4)


@pytest.mark.parametrize(("similarity", "common", "own"), [(0.7, 14, 3), (0.8, 8, 1), (0.9, 18, 1)])
@pytest.mark.parametrize("verify", [None, 0.75])
def test_planted_pairs_are_found_as_often_as_theory_says(
    tmp_path: Path, seed: int, similarity: float, common: int, own: int, verify: float | None
) -> None:
    rng, num_pairs = random.Random(seed), 600
    scale = 600 // (common + own)
    planted = [pair_of(rng, common * scale, own * scale) for _ in range(num_pairs)]
    sets = [set(shingles([t.encode()], code=False, length=5)[0].tolist()) for t in planted[0]]
    assert len(sets[0] & sets[1]) / len(sets[0] | sets[1]) == pytest.approx(similarity, abs=1e-12)
    parts = [[document(p[k], f"{i}.{k}") for i, p in enumerate(planted)] for k in (0, 1)]
    config = dataclasses.replace(CONFIG, verify=verify)
    kept = run(tmp_path, parts, config)
    # nothing but planted pairs is found, and of those the copy in the first part stays
    assert len(kept[0]) == num_pairs
    found = num_pairs - len(kept[1])
    slots = np.random.default_rng(seed).random((20_000, config.num_hashes)) < similarity
    hit = slots.reshape(-1, config.bands, config.rows).all(axis=2).any(axis=1)
    wanted = (hit & (slots.mean(axis=1) >= (verify or 0))).mean()
    if verify is None:
        wanted = detection(similarity, config.bands, config.rows)
    # 4.5 standard deviations, and 0.02 because the hashes of a set are not quite independent
    margin = 4.5 * math.sqrt(wanted * (1 - wanted) / num_pairs) + 0.02
    assert found / num_pairs == pytest.approx(wanted, abs=margin)


def test_verification_spares_what_a_band_finds_by_chance(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    planted = [pair_of(rng, 100, 50) for _ in range(400)]  # J = 0.5
    parts = [[document(p[k], f"{i}.{k}") for i, p in enumerate(planted)] for k in (0, 1)]
    blind = run(tmp_path / "a", parts, dataclasses.replace(CONFIG, verify=None))
    assert 398 > len(blind[1]) > 350  # 21 of 400 expected, standard deviation 4.5
    assert len(run(tmp_path / "b", parts)[1]) == 400


# What counts as a token


def test_tokens() -> None:
    def count(text: str, code: bool) -> int:
        return len(set(shingles([text.encode()], code=code, length=1)[0].tolist()))

    assert count("Do it, DO it!", code=False) == 2
    assert count("f(x) = f(X)", code=True) == 6
    assert count("“straße” → straße…", code=False) == 1
    assert count("漢字漢かな", code=False) == 4
    assert count("naïve naive", code=False) == 2
    assert count("", code=False) == count(" \n\t“”", code=True) == 0
    assert count("x" * 63 + " " + "x" * 64 + " " + "x" * 65 + " " + "x" * 5000, code=False) == 4
    assert count("abcdefgh abcdefghi abcdefg", code=True) == 3


def test_shingles_do_not_depend_on_the_neighbours(rng: random.Random) -> None:
    alphabet = ["a", "B", "_9", "  ", "\n", "(", "é", "漢", "“", "🙂", "loooooooooong", "y" * 70]
    texts = [
        "".join(rng.choice(alphabet) for _ in range(rng.choice((0, 1, 4, 5, 40)))).encode()
        for _ in range(200)
    ]
    for code, length in itertools.product((False, True), (1, 2, 5)):
        hashes, offsets = shingles(texts, code=code, length=length)
        for i, text in enumerate(texts):
            alone, bounds = shingles([text], code=code, length=length)
            assert bounds.tolist() == [0, len(alone)]
            assert alone.tolist() == hashes[offsets[i] : offsets[i + 1]].tolist()


def test_short_documents(tmp_path: Path) -> None:
    texts = ["", "one", "", "One!", "two", "?", "!", "one two", "two one", "one two.", "\n\n"]
    kept = run(tmp_path, [[document(text, str(i)) for i, text in enumerate(texts)]])
    # '!' and '?' have no words, so only an exact copy could drop them
    assert [texts[int(i)] for i in kept[0]] == ["", "one", "two", "?", "!", "one two", "two one"]


# The same result however it came about


def test_exact_copies_are_always_found(tmp_path: Path, rng: random.Random) -> None:
    parts = some_parts(rng)
    for part in parts:
        part += [document(d.text + "  \n", d.id + "+", "code") for d in rng.choice(parts)]
    for config in (CONFIG, dataclasses.replace(CONFIG, bands=0)):
        folder = tmp_path / str(config.bands)
        kept = {name for part in run(folder, parts, config) for name in part}
        first: dict[str, str] = {}
        for d in itertools.chain(*parts):
            first.setdefault(d.text.rstrip().replace("  \n", "\n"), d.id)
        assert kept <= set(first.values())
        if not config.bands:
            assert kept == set(first.values())


def test_number_of_ranks_does_not_matter(tmp_path: Path, rng: random.Random) -> None:
    parts = some_parts(rng)
    kept = run(tmp_path / "1", parts)
    for world_size in (2, 5):
        assert run(tmp_path / str(world_size), parts, world_size=world_size) == kept
        assert tree(tmp_path / str(world_size)) == tree(tmp_path / "1")


def test_order_of_the_parts_decides_only_which_copy_stays(
    tmp_path: Path, rng: random.Random
) -> None:
    parts = some_parts(rng)
    kept = run(tmp_path / "a", parts, dataclasses.replace(CONFIG, verify=None))
    order = rng.sample(range(len(parts)), len(parts))
    turned = run(
        tmp_path / "b", [parts[i] for i in order], dataclasses.replace(CONFIG, verify=None)
    )
    texts = {d.id: " ".join(d.text.split()) for d in itertools.chain(*parts)}

    def stems(names: Sequence[Sequence[str]]) -> list[str]:
        of = (
            texts[n].removesuffix(" tail").removesuffix(".").lower() for part in names for n in part
        )
        return sorted(of)

    assert stems(kept) == stems(turned)


def test_small_pieces_give_the_same(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = some_parts(rng)
    parts[2] += [document("the very same words " + "!" * i, f"hot{i}") for i in range(300)]
    parts[4] += [document("", f"empty{i}") for i in range(100)]
    kept = run(tmp_path / "whole", parts)
    assert kept[2][-1] == "hot0"
    monkeypatch.setattr(pairs, "CHUNK", 32)
    monkeypatch.setattr(near_dedup, "CHUNK", 32)
    monkeypatch.setattr(near_dedup, "_BATCH_BYTES", 500)
    monkeypatch.setattr(near_dedup, "_MEMMAP_DOCUMENTS", 0)
    assert run(tmp_path / "pieces", parts) == kept
    assert not list(tmp_path.rglob("*.tmp"))


def test_memory_is_bounded(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(words(rng, 12)) for _ in range(5000)]
    parts = [[document(text + "!" * k, f"{i}.{k}") for i, text in enumerate(texts)] for k in (0, 1)]
    monkeypatch.setattr(pairs, "CHUNK", 1000)
    monkeypatch.setattr(near_dedup, "CHUNK", 1000)
    for module in (durable, done_folder):
        # reads 16 MiB at a time
        monkeypatch.setattr(
            module, "file_digest", lambda path: xxhash.xxh3_128_hexdigest(path.read_bytes())
        )
    peaks = []
    steps: list[Callable[[], object]] = [
        lambda: sign(parts[0], tmp_path, 0, CONFIG),
        lambda: sign(parts[1], tmp_path, 1, CONFIG),
        *(lambda i=i: match(tmp_path, i, 2, CONFIG) for i in range(num_matches(CONFIG))),
        lambda: cluster(tmp_path, 2, CONFIG),
    ]
    for step in steps:
        tracemalloc.start()
        step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(peaks)
    assert max(peaks[:2]) < 16e6
    assert max(peaks[2:]) < 1e6
    assert len(list(drop(parts[1], tmp_path, 1, Tally("dedup")))) == 0


def test_union_find_against_a_plain_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n, m in ((1, 0), (50, 30), (400, 300), (400, 2000)):
        edges = rng.integers(0, n, size=(m, 2))
        if m == 300:
            edges = np.stack([np.arange(300), np.arange(300) + 1], axis=1)  # one long chain
        parents = np.arange(n)
        for piece in np.array_split(edges, 3):
            pairs.join(parents, piece[:, 0], piece[:, 1])
        label = list(range(n))
        for a, b in edges.tolist():
            low, high = sorted((label[a], label[b]))
            label = [low if x == high else x for x in label]
        assert pairs.roots_of(parents, np.arange(n)).tolist() == label


# Crashes and damage

_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from data_pipeline.dedup import phases as near_dedup
from data_pipeline.dedup.minhash import MinHashConfig
from data_pipeline.schema import Document
folder, rank, world_size, phase, die = Path(sys.argv[1]), *map(int, sys.argv[2:4]), *sys.argv[4:]
config = MinHashConfig()
lines = (folder / "parts.json").read_text()
parts = [[Document(*fields) for fields in part] for part in json.loads(lines)]
seal, left = near_dedup.seal, [int(die)]
def dying(*args, **facts):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(*args, **facts)
near_dedup.seal = dying
if "sign" in phase:
    for part in near_dedup.share(len(parts), rank, world_size):
        near_dedup.sign(parts[part], folder / "out", part, config)
if "match" in phase:
    for index in near_dedup.share(near_dedup.num_matches(config), rank, world_size):
        near_dedup.match(folder / "out", index, len(parts), config)
if "cluster" in phase:
    near_dedup.cluster(folder / "out", len(parts), config)
"""


def start(
    folder: Path, rank: int, world_size: int, phase: str, die: int
) -> subprocess.Popen[bytes]:
    arguments = [str(folder), str(rank), str(world_size), phase, str(die)]
    return subprocess.Popen([sys.executable, "-c", _SCRIPT, *arguments])


def write_parts(folder: Path, parts: Parts) -> None:
    rows = [[[d.id, d.text, d.domain, d.language, d.source, d.path] for d in p] for p in parts]
    (folder / "parts.json").write_text(json.dumps(rows))


def test_processes_at_the_same_time(tmp_path: Path, rng: random.Random) -> None:
    parts = some_parts(rng)
    write_parts(tmp_path, parts)
    for phase in ("sign", "match"):
        processes = [start(tmp_path, rank, 2, phase, 0) for rank in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
    kept = run(tmp_path / "here", parts)
    assert run(tmp_path / "out", parts) == kept
    assert tree(tmp_path / "out") == tree(tmp_path / "here")


def test_kill_9(tmp_path: Path, rng: random.Random) -> None:
    parts = some_parts(rng)
    write_parts(tmp_path, parts)
    total = len(parts) + num_matches(CONFIG) + 1
    at = rng.randrange(1, total + 1)
    print(f"killed in step {at} of {total}")
    assert start(tmp_path, 0, 1, "sign match cluster", at).wait() == -signal.SIGKILL
    assert len(list((tmp_path / "out").rglob("*.tmp"))) == 1
    assert start(tmp_path, 0, 1, "sign match cluster", 0).wait() == 0
    run(tmp_path / "here", parts)
    assert tree(tmp_path / "out") == tree(tmp_path / "here")


def test_a_stop_between_any_two_steps(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = some_parts(rng, 2)
    kept = run(tmp_path / "whole", parts)
    seal = near_dedup.seal
    for at in range(len(parts) + num_matches(CONFIG) + 1):
        steps = iter(range(at))

        def stopping(*args: object, steps: Iterator[int] = steps, **facts: object) -> None:
            if next(steps, None) is None:
                raise KeyboardInterrupt
            seal(*args, **facts)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(near_dedup, "seal", stopping)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / str(at), parts)
        assert run(tmp_path / str(at), parts) == kept
        assert tree(tmp_path / str(at)) == tree(tmp_path / "whole")


def test_what_is_there_is_not_done_again(
    tmp_path: Path, rng: random.Random, synced: set[str]
) -> None:
    parts = some_parts(rng)
    kept = run(tmp_path, parts)
    for name in tree(tmp_path):
        path = tmp_path / name
        beside = path.parent.with_name(path.parent.name + ".tmp")
        # the marker gets its name when it is synced
        assert {str(beside / n) for n in (path.name, f"{path.name}.tmp")} & synced
        assert str(path.parent.parent) in synced
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def unread() -> Iterator[Document]:
        raise AssertionError("read again")
        yield

    assert sign(unread(), tmp_path, 0, CONFIG) == len(parts[0])
    assert run(tmp_path, parts) == kept
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


DAMAGE = list(
    itertools.product(("band-03.bin", "exact.bin", "sketch.bin"), ("truncated", "gone", "changed"))
)[:-1]  # the sketches are read in places only, so no more than their size is compared


@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, rng: random.Random, name: str, how: str) -> None:
    parts = some_parts(rng, 2)
    for part in (0, 1):
        sign(parts[part], tmp_path, part, CONFIG)
    path = tmp_path / "sign" / "00001" / name
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif how == "gone":
        path.unlink()
    else:
        data[rng.randrange(len(data))] ^= 1
        path.write_bytes(data)
    index = CONFIG.bands if name == "exact.bin" else 3
    with pytest.raises(InputError) as error:
        match(tmp_path, index, 2, CONFIG)
    assert str(path) in str(error.value) and f"remove {path.parent} and" in str(error.value)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    sign(parts[1], tmp_path, 1, CONFIG)
    match(tmp_path, index, 2, CONFIG)


def test_truncated_edges_and_drops_are_named(tmp_path: Path, rng: random.Random) -> None:
    parts = some_parts(rng, 2)
    run(tmp_path, parts)
    drops = tmp_path / "cluster" / "drop-00001.bin"
    drops.write_bytes(drops.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"(?s)drop-00001.bin has .* remove .*cluster and run"):
        list(drop(parts[1], tmp_path, 1, Tally("dedup")))
    (tmp_path / "cluster").rename(tmp_path / "away")
    edges = tmp_path / "match" / "exact" / "edges.bin"
    edges.write_bytes(edges.read_bytes()[:-16])
    with pytest.raises(InputError, match=r"(?s)edges.bin has .* remove .*exact and run"):
        cluster(tmp_path, 2, CONFIG)


def test_phases_of_different_configs_and_inputs_do_not_mix(
    tmp_path: Path, rng: random.Random
) -> None:
    parts = some_parts(rng, 3)
    with pytest.raises(InputError, match="sign part 0 first"):
        match(tmp_path, 0, 3, CONFIG)
    sign(parts[0], tmp_path, 0, CONFIG, inputs="a")
    with pytest.raises(InputError, match="the two must not mix"):
        sign(parts[0], tmp_path, 0, CONFIG, inputs="b")
    other = dataclasses.replace(CONFIG, seed=2)
    with pytest.raises(InputError, match="another config"):
        sign(parts[0], tmp_path, 0, other, inputs="a")
    with pytest.raises(InputError, match="signed with another config"):
        match(tmp_path, 0, 1, other)
    with pytest.raises(InputError, match="match band-00 first"):
        cluster(tmp_path, 1, CONFIG)
    for index in range(num_matches(CONFIG)):
        match(tmp_path, index, 1, CONFIG)
    cluster(tmp_path, 1, CONFIG)
    with pytest.raises(InputError, match=r"has no drop-00001\.bin"):
        list(drop(parts[1], tmp_path, 1, Tally("dedup")))
    # another threshold needs other matches, but no other signatures
    with pytest.raises(InputError, match=r"(?s)must not mix.*band-00"):
        match(tmp_path, 0, 1, dataclasses.replace(CONFIG, verify=0.8))


def test_other_documents_than_those_signed(tmp_path: Path, rng: random.Random) -> None:
    parts = some_parts(rng, 1)
    run(tmp_path, parts)
    documents = parts[0]
    for wrong in (documents[:-1], [*documents, documents[0]], documents[::-1], []):
        with pytest.raises(InputError, match="are not the"):
            list(drop(wrong, tmp_path, 0, Tally("dedup")))


def test_empty_parts(tmp_path: Path, rng: random.Random) -> None:
    parts = [[], some_parts(rng, 1)[0], []]
    kept = run(tmp_path / "a", parts)
    assert kept[1] == run(tmp_path / "b", [parts[1]])[0]
    assert run(tmp_path / "c", [[], []]) == [[], []]


@pytest.mark.parametrize("fields", [{"bands": -1}, {"rows": 0}, {"code_shingle": 0}, {"verify": 2}])
def test_impossible_configs(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="it "):
        MinHashConfig(**fields)  # type: ignore[arg-type]
