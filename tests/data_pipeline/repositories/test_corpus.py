"""Corpora of repositories from files to shards."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import xxhash

from data_pipeline.driver import prepare
from data_pipeline.readers import packages as package_source
from data_pipeline.readers.fetch import Package
from data_pipeline.repositories import buckets, stages
from data_pipeline.shuffle.validate import validate_corpus
from data_pipeline.tasks.dropped import lists_of, read_list
from loopcoder.config.build import ExecutorConfig, FimConfig, RepositoryConfig, SourceConfig
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError
from tests.data_pipeline.builds import Config, child, documents, hashes, left
from tests.data_pipeline.repositories.trees import (
    MAX_BYTES,
    Files,
    Reader,
    Wanted,
    fields,
    program,
    random_tree,
    wanted,
    write,
)

JOINED = RepositoryConfig(enabled=True, max_bytes=MAX_BYTES)


def quiet(_: str) -> None:
    pass


def build(config: Config, folder: Path, **changes: Any) -> Corpus:
    return prepare(config(**fields(folder, **({"repository": JOINED} | changes))), report=quiet)


@pytest.fixture
def tree(rng: random.Random) -> Files:
    return random_tree(rng)


@pytest.fixture
def folder(tmp_path: Path, tree: Files) -> Path:
    return write(tmp_path / "tree", tree)


def counts(found: list[Wanted]) -> dict[str, int]:
    """Return what the manifest should say of documents."""
    joined = [d for d in found if len(d.files) > 1]
    return {
        "repositories": len({d.repository for d in found if d.repository}),
        "documents": len(joined),
        "files_joined": sum(len(d.files) for d in joined),
        "files_left_single": sum(len(d.files) == 1 and bool(d.repository) for d in found),
        "files_without_repository": sum(not d.repository for d in found),
    }


@pytest.mark.data_full
@pytest.mark.parametrize("part_bytes", [5000, 30_000, 10**9])
def test_ids_are_those_that_are_wanted(
    config: Config, folder: Path, tree: Files, part_bytes: int
) -> None:
    corpus = build(config, folder, part_bytes=part_bytes)
    reader = Reader(corpus)
    found = wanted(tree)
    by_ids = {tuple(reader.expected(document)): document for document in found}
    assert len(by_ids) == len(found)
    sides = {split: [tuple(d) for d in reader.documents(split)] for split in ("train", "val")}
    assert Counter([*sides["train"], *sides["val"]]) == Counter(list(by_ids))
    # a repository is on one side, in all its languages
    train, val = ({by_ids[ids].repository for ids in side} - {None} for side in sides.values())
    assert all(sides.values()) and not train & val
    assert {k: v for k, v in corpus.manifest["repositories"].items() if v} == {
        k: v for k, v in counts(found).items() if v
    }
    assert not validate_corpus(corpus.dir)
    report = (corpus.dir / "report.html").read_text()
    assert "documents of two files or more" in report


def test_one_file_is_rearranged(config: Config, folder: Path, tree: Files) -> None:
    corpus = build(config, folder, fim=FimConfig(rate=1.0), epochs=2.0, val_fraction=0.1)
    reader = Reader(corpus)
    found = wanted(tree)
    val = [reader.parsed(ids) for ids in reader.documents("val")]
    assert not any(cut for _, _, cut in val), "held-out documents are plain"
    train = [reader.parsed(ids) for ids in reader.documents("train")]
    assert all(cut == 1 for _, _, cut in train)
    told = [(name, tuple(sorted(files))) for name, files, _ in (*train, *val, *val)]
    assert Counter(told) == Counter(
        (document.repository, tuple(sorted(document.files)))
        if len(document.files) > 1
        else (None, (("", document.files[0][1]),))
        for document in (*found, *found)
    )
    # the second copy of a document is cut elsewhere, in most cases in another file
    ids = [tuple(d) for d in reader.documents("train")]
    assert len(set(ids)) > 0.95 * len(ids)
    last = {(name, files[-1][0]) for name, files, _ in train if name}
    assert len(last) > len({name for name, _, _ in train if name})


@pytest.mark.data_full
def test_a_copy_elsewhere_gives_the_same_corpus(
    config: Config, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "some" / "where" / "else"
    shutil.copytree(folder, other, copy_function=shutil.copy)
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    same = {"fim": FimConfig(rate=0.5), "part_bytes": 10_000}
    first, second = build(config, folder, **same), build(config, other, **same)
    assert first.dir != second.dir
    assert hashes(first) == hashes(second)


@pytest.mark.data_full
def test_more_workers_give_the_same_corpus(config: Config, folder: Path, tmp_path: Path) -> None:
    same = {"fim": FimConfig(rate=0.5), "part_bytes": 20_000}
    fields = {"cache_dir": str(tmp_path / "other"), "executor": ExecutorConfig(workers=3)}
    assert hashes(build(config, folder, **same)) == hashes(build(config, folder, **same, **fields))


@pytest.mark.data_full
def test_off_it_changes_nothing(config: Config, folder: Path) -> None:
    off = RepositoryConfig(max_bytes=77, depth=3)
    with_default = config(**fields(folder, repository=RepositoryConfig()))
    plain = config(**fields(folder))
    corpus = prepare(plain, report=quiet)
    assert prepare(with_default, report=quiet).dir == corpus.dir
    assert "repositories" not in corpus.manifest
    assert hashes(build(config, folder, repository=off)) == hashes(corpus)
    assert "Repositories" not in (corpus.dir / "report.html").read_text()
    assert {c["stage"] for c in corpus.manifest["costs"]}.isdisjoint({"scatter", "join"})


FAILURES = [
    (buckets, "packed", 30),
    (stages, "write_sealed", 2),
    (stages, "join", 3),
    (stages.places, "written", 2),
    (stages, "write_chunk_list", 1),
]


@pytest.mark.data_full
def test_a_build_that_is_stopped_continues(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    same = {"fim": FimConfig(rate=0.5), "part_bytes": 10_000}
    monkeypatch.setattr(buckets, "_BUFFER_BYTES", 500)
    for module, name, calls in FAILURES:
        was, left_calls = getattr(module, name), [calls]

        def fail(*args: Any, was: Any = was, left_calls: Any = left_calls, **named: Any) -> Any:
            left_calls[0] -= 1
            if not left_calls[0]:
                raise KeyboardInterrupt
            return was(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(KeyboardInterrupt):
                build(config, folder, **same)
    assert left(config(), ".work")
    corpus = build(config, folder, **same)
    assert not left(config(), ".work")
    assert hashes(corpus) == hashes(build(config, folder, **same, cache_dir=str(tmp_path / "new")))


@pytest.mark.data_full
def test_killed(config: Config, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stop = f"""
from data_pipeline.repositories import stages
stages.single = lambda *args: open({str(pipe)!r})
"""
    data = config(**fields(folder, repository=JOINED, part_bytes=10_000))
    process = child(data, before=stop)
    assert process.stdout is not None
    with process:
        while "sort files by repository" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    lines: list[str] = []
    corpus = prepare(data, report=lines.append)
    assert lines[0].startswith("data: continuing")
    assert hashes(corpus) == hashes(
        build(config, folder, part_bytes=10_000, cache_dir=str(tmp_path / "new"))
    )


def test_every_file_is_in_the_corpus_or_in_the_list(
    config: Config, folder: Path, tree: Files, rng: random.Random
) -> None:
    for i in range(40):
        (folder / f"n{i}.txt").write_text(" ".join(rng.choices(("loop", "gate"), k=30)) + f"{i}\n")
    copied = next(name for name in tree if name.startswith("repo1/"))
    (folder / "repo0" / "zz_copy.py").write_text(tree[copied])
    corpus = build(config, folder, mixture={"text": 1, "code": 1}, seq_length=32, shards=2)
    reader = Reader(corpus)
    dropped: dict[str, str] = {}
    for entry in [e for path in lists_of(corpus.dir) for e in read_list(path)]:
        for file in entry.get("files", [entry]):
            assert file["path"] not in dropped
            dropped[file["path"]] = entry["reason"]
    assert set(dropped.values()) >= {"held_out", "beyond_quota", "exact_duplicate"}
    assert len([n for n in dropped if n.startswith("repo")]) > len(tree) / 3
    kept = Counter(text for ids in reader.documents("train") for _, text in reader.parsed(ids)[1])
    gone = 0
    for name, text in tree.items():
        if not kept[text] and name not in dropped:
            gone += 1  # a document across the end of a shard is cut there
    assert gone <= 2 * 10
    assert not [name for name in dropped if name in tree and kept[tree[name]] and name != copied]


@pytest.mark.data_full
def test_rows_name_their_repositories(config: Config, tmp_path: Path, rng: random.Random) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    tree = {name: text for name, text in random_tree(rng, 30).items() if "/" in name}
    rows = []
    for name, text in tree.items():
        repository, _, path = name.partition("/")
        rows.append({"text": text, "repo": {"name": f"me/{repository}"}, "file": path})
    lonely = [{"text": program(rng, 9), "file": "a.py"}, {"text": program(rng, 9), "repo": None}]
    lonely[1]["lang"] = "Python"
    for row in (*rows, *lonely):
        row.setdefault("lang", None if "file" not in row else _language(str(row["file"])))
    rng.shuffle(rows)
    (tmp_path / "in").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in [*rows[: len(rows) // 2], *lonely])
    (tmp_path / "in" / "a.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist(rows[len(rows) // 2 :]), tmp_path / "in" / "b.parquet")
    source = SourceConfig(
        kind="files",
        path=str(tmp_path / "in"),
        language_field="lang",
        path_field="file",
        repository_field="repo.name",
    )
    corpus = build(config, tmp_path, sources=[source], part_bytes=5000)
    reader = Reader(corpus)
    named = {f"me/{name}".replace("/", "\0", 1): text for name, text in tree.items()}
    found = wanted(named)
    expected = [d._replace(repository=str(d.repository).replace("\0", "/")) for d in found]
    expected += [Wanted(None, "Python", (("", str(row["text"])),)) for row in lonely]
    told = [tuple(d) for split in ("train", "val") for d in reader.documents(split)]
    assert Counter(told) == Counter(tuple(reader.expected(d)) for d in expected)


def _language(path: str) -> str:
    return {".py": "Python", ".c": "C", ".java": "Java"}[Path(path).suffix]


def test_archives_and_packages(
    config: Config, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "packages"
    for name in ("one-1", "two-2", "three-3"):
        write(kept / "npm" / name, {f"lib/f{i}.js": program(rng, 9) for i in range(3)})
    packages = [
        Package("npm", n.split("-")[0], "1", "0" * 64, [], f"npm/{n}")
        for n in ("one-1", "two-2", "three-3")
    ]
    monkeypatch.setattr(package_source, "fetch_npm", lambda *_: packages)
    archives = tmp_path / "archives"
    archives.mkdir()
    for name in ("x-1.tar", "y-2.tar.gz"):
        with tarfile.open(archives / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for i in range(3):
                content = program(rng, 9).encode()
                info = tarfile.TarInfo(f"src/m{i}.py")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    sources = [
        SourceConfig(kind="npm", path=str(kept), packages=["a"]),
        SourceConfig(kind="files", path=str(archives)),
    ]
    corpus = build(config, tmp_path, sources=sources)
    reader = Reader(corpus)
    parsed = [reader.parsed(d) for split in ("train", "val") for d in reader.documents(split)]
    assert sorted((name, [path for path, _ in files]) for name, files, _ in parsed if name) == [
        *((n, [f"lib/f{i}.js" for i in range(3)]) for n in ("one-1", "three-3", "two-2")),
        *((n, [f"src/m{i}.py" for i in range(3)]) for n in ("x-1", "y-2")),
    ]
    rows = {r["package"]: r["documents"] for r in corpus.manifest["origins"] if r["package"]}
    assert rows == dict.fromkeys(("npm/one-1", "npm/two-2", "npm/three-3"), 1)


def test_shares_of_languages_hold(config: Config, tmp_path: Path, rng: random.Random) -> None:
    folder = write(tmp_path / "tree", random_tree(rng, 120))
    changes = {"seq_length": 16, "val_fraction": 0.05, "target_tokens": 80_000}
    shares = {"Python": 2, "C": 1, "Java": 1}
    corpus = build(config, folder, **changes, shares=shares, fim=FimConfig(rate=0.5))
    assert not validate_corpus(corpus.dir)
    languages = corpus.manifest["domains"]["code"]["train"]["languages"]
    total = sum(row["tokens"] for row in languages.values())
    for name, share in (("Python", 0.5), ("C", 0.25), ("Java", 0.25)):
        assert abs(languages[name]["tokens"] / total - share) < 0.02


def held_out(corpus: Corpus) -> tuple[float, set[str | None]]:
    """Return the share of the code's tokens that is held out, and the repositories."""
    reader = Reader(corpus)
    tokens = [corpus.tokens("code", split) for split in ("val", "train")]
    names = {reader.parsed(ids)[0] for ids in reader.documents("val")}
    return tokens[0] / sum(tokens), names - {None}


@pytest.mark.data_full
@pytest.mark.parametrize("is_below", [False, True])
def test_the_largest_repository_is_not_what_is_held_out(
    config: Config, tmp_path: Path, rng: random.Random, is_below: bool
) -> None:
    """Neither by chance nor because none is below the threshold."""
    tree = {f"r{n}/f{i}.py": program(rng, 20) for n in range(6) for i in range(4)}
    large = min(rng.sample(range(10**6), 99 if is_below else 1), key=share_of)
    tree |= {f"r{large}/g{i}.py": program(rng, 20) for i in range(60)}
    folder = write(tmp_path / "tree", tree)
    val_fraction = max(1.01 * share_of(large), 1e-4) if is_below else 1e-9
    share, names = held_out(build(config, folder, val_fraction=val_fraction))
    assert share < 0.1 and len(names) == 1 and f"r{large}" not in names


def share_of(number: int) -> float:
    """Return the share from which on the repository rNUMBER is held out by its hash."""
    return xxhash.xxh3_64_intdigest(f"0-files\0r{number}/".encode()) / 2**64


def test_what_is_below_the_threshold_is_held_out(config: Config, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    numbers = rng.sample(range(10**6), 60)
    tree = {f"r{n}/f{i}.py": program(rng, 20) for n in numbers for i in range(3)}
    corpus = build(config, write(tmp_path / "tree", tree), val_fraction=0.2)
    below = {f"r{n}" for n in numbers if share_of(n) < 0.2}
    assert held_out(corpus)[1] == below


def test_what_cannot_be_honoured_is_refused(
    config: Config, folder: Path, tmp_path: Path, rng: random.Random
) -> None:
    flat = write(tmp_path / "flat", {f"f{i}.py": program(rng, 5) for i in range(9)})
    with pytest.raises(InputError, match=r"(?s)no code file .* belongs.*repository_field=COLUMN"):
        build(config, flat)
    one = write(tmp_path / "one", {f"r/f{i}.py": program(rng, 5) for i in range(9)})
    with pytest.raises(InputError, match=r"(?s)all|held out.*data.build.repository.enabled=false"):
        build(config, one)
    with pytest.raises(InputError, match=r"(?s)data.mixture has no code"):
        build(config, folder, mixture={"text": 1})
    corpus = prepare(config(**fields(folder)), report=quiet)
    spec = json.loads(corpus.tokenizer_path.read_text())
    spec["added_tokens"] = spec["added_tokens"][:6]
    (tmp_path / "t.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"(?s)has no <\|repo_name\|>, <\|file_sep\|>"):
        build(config, folder, tokenizer=str(tmp_path / "t.json"))


def test_a_bucket_that_was_changed_is_refused(config: Config, folder: Path) -> None:
    same = {"part_bytes": 10**9, "keep_work": True}
    corpus = build(config, folder, **same)
    (work,) = left(config(), ".work")
    shutil.rmtree(corpus.dir)
    for stage in ("join", "number_joined", "finish"):
        shutil.rmtree(work / "done" / stage)
    (file,) = (work / "repositories" / "buckets").rglob("*.docs")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"(?s)00000.docs .*delete {work} and start"):
        build(config, folder, **same)


@pytest.mark.data_full
def test_drops_without_a_list(config: Config, folder: Path) -> None:
    corpus = build(config, folder, list_drops=False, part_bytes=10_000)
    assert not lists_of(corpus.dir)
    other = build(config, folder, part_bytes=10_000, cache_dir=str(folder.parent / "other"))
    kept = [Counter(documents(c, "code", "train")) for c in (corpus, other)]
    assert kept[0] == kept[1]


def test_depth(config: Config, tmp_path: Path, tree: Files) -> None:
    deep = {f"me/{name}" if "/" in name else name: text for name, text in tree.items()}
    folder = write(tmp_path / "deep", deep)
    corpus = build(config, folder, repository=dataclasses.replace(JOINED, depth=2))
    reader = Reader(corpus)
    found = [reader.parsed(d) for split in ("train", "val") for d in reader.documents(split)]
    named = {f"me/{name}".replace("/", "\0", 1): text for name, text in tree.items()}
    expected = [d for d in wanted(named) if len(d.files) > 1]
    assert sorted((name, files) for name, files, _ in found if name) == sorted(
        (str(d.repository).replace("\0", "/"), [*d.files]) for d in expected
    )
