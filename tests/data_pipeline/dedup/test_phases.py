"""Deduplication against theory, and against itself in pieces and in another order."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.dedup import pairs, phases
from data_pipeline.dedup.minhash import num_hashes, shingles
from data_pipeline.dedup.pairs import Sketches
from data_pipeline.dedup.phases import (
    REASONS,
    SKETCH,
    OtherDocumentsError,
    cluster,
    drop,
    has_sketches,
    match,
    record_files,
    sign,
)
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import NearDedupConfig

CONFIG = NearDedupConfig()
EXACT_ONLY = NearDedupConfig(enabled=False)
Chunks = Sequence[Sequence[Document]]


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
    folder: Path,
    chunks: Chunks,
    config: NearDedupConfig = CONFIG,
    order: random.Random | None = None,
) -> list[list[str]]:
    """Do all stages, the tasks of each in any order; return the names of the documents that stay,
    by chunk."""
    order = order or random.Random(0)
    names = record_files(config)
    signed: dict[int, tuple[int, str]] = {}
    for chunk in order.sample(range(len(chunks)), len(chunks)):
        (folder / "sign" / str(chunk)).mkdir(parents=True)
        signed[chunk] = sign(chunks[chunk], chunk, folder / "sign" / str(chunk), config)
    folders = [folder / "sign" / str(chunk) for chunk in range(len(chunks))]
    (folder / "match").mkdir()
    for name in order.sample(names, len(names)):
        exact = name == names[-1]
        sketches = None
        if has_sketches(config) and not exact:
            assert config.verify is not None
            sketches = Sketches([f / SKETCH for f in folders], num_hashes(config), config.verify)
        records = [f / name for f in folders]
        match(records, folder / "match" / name, exact=exact, sketches=sketches)
    *near, exact_pairs = [folder / "match" / name for name in names]
    counts = [signed[chunk][0] for chunk in range(len(chunks))]
    reasons = [f.reasons.tobytes() for f in cluster(near, exact_pairs, counts, folder)]
    tally = Tally("dedup")
    kept = [
        [d.id for d in drop(chunk, reasons[i], signed[i][1], tally)]
        for i, chunk in enumerate(chunks)
    ]
    tally.check()
    drops = Counter(REASONS[code] for chunk in reasons for code in chunk if code)
    assert tally.drops == drops
    assert tally.rows_in == sum(map(len, chunks))
    return kept


# What is chosen by default: the S-curve of Leskovec, Rajaraman and Ullman


def detection(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that two documents of this Jaccard similarity share a band."""
    return -math.expm1(bands * math.log1p(-(similarity**rows))) if similarity < 1 else 1.0


def choose(threshold: float, detect: float, hashes: int) -> tuple[int, int]:
    """Return the (bands, rows) of up to `hashes` that find pairs at the threshold with probability
    `detect`, and the fewest below it."""
    below = np.linspace(0, threshold, 201)
    return min(
        (
            (bands, rows)
            for rows in range(1, hashes + 1)
            for bands in range(1, hashes // rows + 1)
            if detection(threshold, bands, rows) >= detect
        ),
        key=lambda split: sum(detection(float(x), *split) for x in below),
    )


def some_chunks(rng: random.Random, num_chunks: int = 5) -> list[list[Document]]:
    """Chunks with copies, near copies, prose, code and empty documents."""
    texts = [" ".join(words(rng, rng.randrange(5, 200))) for _ in range(40)]
    texts += [text.replace(" ", "  \n", 1) + "\r\n" for text in texts[:10]]
    texts += [text + " tail" for text in texts[5:20]] + ["", "", "\n", "?!", "one", "One.", "two"]
    rng.shuffle(texts)
    documents = [
        document(text, str(i), rng.choice(("text", "code"))) for i, text in enumerate(texts)
    ]
    return [documents[i::num_chunks] for i in range(num_chunks)]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Against theory


def test_choice_of_bands() -> None:
    assert choose(0.8, 0.92, 112) == (CONFIG.bands, CONFIG.rows) == (14, 8)
    found = [detection(j, 14, 8) for j in (0.0, 0.7, 0.8, 0.9, 1.0)]
    assert found == pytest.approx([0, 0.5645, 0.9235, 0.9996, 1], abs=1e-4)


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
    chunks = [[document(p[k], f"{i}.{k}") for i, p in enumerate(planted)] for k in (0, 1)]
    config = dataclasses.replace(CONFIG, verify=verify)
    kept = run(tmp_path, chunks, config)
    # nothing but planted pairs is found, and of those the copy in the first chunk stays
    assert len(kept[0]) == num_pairs
    found = num_pairs - len(kept[1])
    slots = np.random.default_rng(seed).random((20_000, num_hashes(config))) < similarity
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
    chunks = [[document(p[k], f"{i}.{k}") for i, p in enumerate(planted)] for k in (0, 1)]
    blind = run(tmp_path / "a", chunks, dataclasses.replace(CONFIG, verify=None))
    assert 398 > len(blind[1]) > 350  # 21 of 400 expected, standard deviation 4.5
    assert len(run(tmp_path / "b", chunks)[1]) == 400


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
    chunks = some_chunks(rng)
    for chunk in chunks:
        chunk += [document(d.text + "  \n", d.id + "+", "code") for d in rng.choice(chunks)]
    for config in (CONFIG, EXACT_ONLY):
        folder = tmp_path / str(config.enabled)
        kept = {name for chunk in run(folder, chunks, config) for name in chunk}
        first: dict[str, str] = {}
        for d in itertools.chain(*chunks):
            first.setdefault(d.text.rstrip().replace("  \n", "\n"), d.id)
        assert kept <= set(first.values())
        if not config.enabled:
            assert kept == set(first.values())


def test_order_of_the_tasks_does_not_matter(tmp_path: Path, rng: random.Random) -> None:
    chunks = some_chunks(rng)
    kept = run(tmp_path / "0", chunks)
    for name in ("1", "2"):
        assert run(tmp_path / name, chunks, order=rng) == kept
        assert tree(tmp_path / name) == tree(tmp_path / "0")


def test_order_of_the_chunks_decides_only_which_copy_stays(
    tmp_path: Path, rng: random.Random
) -> None:
    chunks = some_chunks(rng)
    kept = run(tmp_path / "a", chunks, dataclasses.replace(CONFIG, verify=None))
    order = rng.sample(range(len(chunks)), len(chunks))
    turned = run(
        tmp_path / "b", [chunks[i] for i in order], dataclasses.replace(CONFIG, verify=None)
    )
    texts = {d.id: " ".join(d.text.split()) for d in itertools.chain(*chunks)}

    def stems(names: Sequence[Sequence[str]]) -> list[str]:
        of = (
            texts[n].removesuffix(" tail").removesuffix(".").lower()
            for chunk in names
            for n in chunk
        )
        return sorted(of)

    assert stems(kept) == stems(turned)


def test_small_pieces_give_the_same(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = some_chunks(rng)
    chunks[2] += [document("the very same words " + "!" * i, f"hot{i}") for i in range(300)]
    chunks[4] += [document("", f"empty{i}") for i in range(100)]
    kept = run(tmp_path / "whole", chunks)
    assert kept[2][-1] == "hot0"
    monkeypatch.setattr(pairs, "BLOCK", 32)
    monkeypatch.setattr(phases, "BLOCK", 32)
    monkeypatch.setattr(phases, "_BATCH_BYTES", 500)
    monkeypatch.setattr(phases, "_MEMMAP_DOCUMENTS", 0)
    assert run(tmp_path / "pieces", chunks) == kept
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.data_full
def test_memory_is_bounded(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(words(rng, 12)) for _ in range(5000)]
    chunks = [
        [document(text + "!" * k, f"{i}.{k}") for i, text in enumerate(texts)] for k in (0, 1)
    ]
    monkeypatch.setattr(pairs, "BLOCK", 1000)
    monkeypatch.setattr(phases, "BLOCK", 1000)
    (tmp_path / "match").mkdir()
    names = record_files(CONFIG)
    folders = [tmp_path / str(k) for k in (0, 1)]
    for folder in folders:
        folder.mkdir()

    def matched(name: str) -> None:
        exact = name == names[-1]
        sketches = Sketches([f / SKETCH for f in folders], num_hashes(CONFIG), 0.75)
        match(
            [f / name for f in folders],
            tmp_path / "match" / name,
            exact=exact,
            sketches=None if exact else sketches,
        )

    *near, exact = [tmp_path / "match" / name for name in names]
    reasons: list[bytes] = []
    steps: list[Callable[[], object]] = [
        *(lambda k=k: sign(chunks[k], k, folders[k], CONFIG) for k in (0, 1)),
        *(lambda name=name: matched(name) for name in names),
        lambda: reasons.extend(
            f.reasons.tobytes() for f in cluster(near, exact, [5000, 5000], tmp_path)
        ),
    ]
    np.unique([0])  # the first call imports a module of a megabyte
    peaks = []
    for step in steps:
        tracemalloc.start()
        step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(peaks)
    assert max(peaks[:2]) < 16e6
    assert max(peaks[2:]) < 1e6
    assert set(reasons[1]) == {REASONS.index("near_duplicate")}


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


def test_other_documents_than_those_signed(tmp_path: Path, rng: random.Random) -> None:
    (documents,) = some_chunks(rng, 1)
    count, ids = sign(documents, 0, tmp_path, CONFIG)
    assert len(list(drop(documents, bytes(count), ids, Tally("dedup")))) == count
    for wrong in (documents[:-1], [*documents, documents[0]], documents[::-1], []):
        with pytest.raises(OtherDocumentsError, match="are not the"):
            list(drop(wrong, bytes(count), ids, Tally("dedup")))


def test_empty_chunks(tmp_path: Path, rng: random.Random) -> None:
    chunks = [[], some_chunks(rng, 1)[0], []]
    kept = run(tmp_path / "a", chunks)
    assert kept[1] == run(tmp_path / "b", [chunks[1]])[0]
    assert run(tmp_path / "c", [[], []]) == [[], []]


@pytest.mark.parametrize("fields", [{"bands": 0}, {"rows": 0}, {"code_shingle": 0}, {"verify": 2}])
def test_impossible_configs(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="should be"):
        NearDedupConfig(**fields)  # type: ignore[arg-type]
