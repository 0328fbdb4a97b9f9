"""prepare(): one complete corpus or none, whatever happens."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline import build
from data_pipeline.driver import prepare
from data_pipeline.encoder import EOD
from data_pipeline.manifest import Corpus
from loopcoder.config.schema import DataConfig, SourceConfig, StageConfig
from loopcoder.errors import InputError

Config = Callable[..., DataConfig]
REPOSITORY = Path(__file__).parents[2]

CHILD = """
import json, sys
from data_pipeline.driver import prepare
from loopcoder.config.schema import DataConfig, SourceConfig
fields = json.loads(sys.argv[1])
sources = [SourceConfig(**s) for s in fields.pop("sources")]
corpus = prepare(DataConfig(sources=sources, **fields))
foreign = {"torch", "megatron"} & {name.partition(".")[0] for name in sys.modules}
assert not foreign, foreign
print("tokens", corpus.tokens("text", "train"))
"""


def child(config: DataConfig, before: str = "") -> subprocess.Popen[str]:
    """Start another process that runs `before` and prepares the same corpus."""
    fields = {
        "name": config.name,
        "seq_length": config.seq_length,
        "mixture": config.mixture,
        "cache_dir": config.cache_dir,
        "tokenizer_vocab_size": config.tokenizer_vocab_size,
        "val_fraction": config.val_fraction,
        "sources": [{"kind": s.kind, "path": s.path} for s in config.sources],
    }
    return subprocess.Popen(
        [sys.executable, "-u", "-c", before + CHILD, json.dumps(fields)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def documents(corpus: Corpus, domain: str, split: str) -> list[str]:
    """Decode every document of a split."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    ids = np.fromfile(corpus.prefix(domain, split) + ".bin", dtype=np.uint16)
    ends = np.flatnonzero(ids == corpus.eod_id) + 1
    assert ends[-1] == len(ids)
    return [tokenizer.decode(d[:-1].tolist()) for d in np.split(ids, ends[:-1])]


def test_folder_becomes_a_corpus(config: Config, source_folder: Path) -> None:
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    assert corpus.domains == ("text", "code")
    written = {
        "text": {p.read_text() for p in source_folder.glob("*.txt")},
        "code": {p.read_text() for p in source_folder.glob("sub/*.py")},
    }
    for domain in corpus.domains:
        splits = [documents(corpus, domain, split) for split in ("train", "val")]
        assert set(splits[0]) | set(splits[1]) == written[domain]
        assert sum(map(len, splits)) == 30
        for split, texts in zip(("train", "val"), splits, strict=True):
            assert corpus.documents(domain, split) == len(texts) > 0
            assert corpus.utf8_bytes(domain, split) == sum(len(t.encode()) for t in texts)
            ids = np.fromfile(corpus.prefix(domain, split) + ".bin", dtype=np.uint16)
            assert corpus.tokens(domain, split) == len(ids)
            assert corpus.token_bytes()[ids].sum() == corpus.utf8_bytes(domain, split)
            by_language = corpus.languages(domain, split).values()
            assert sum(n["tokens"] for n in by_language) == len(ids)
    assert any("encoded code_val" in line for line in lines)
    again: list[str] = []
    assert prepare(config(), report=again.append) == corpus
    assert not again


def test_stages_conserve_rows(config: Config, source_folder: Path) -> None:
    shutil.copy(source_folder / "note0.txt", source_folder / "copy.txt")
    corpus = prepare(config())
    stages = {s["stage"]: s for s in corpus.manifest["stages"]}
    assert stages["select 0-files"]["drops"] == {"duplicate": 1}
    for stage in stages.values():
        assert stage["rows_in"] == stage["rows_out"] + sum(stage["drops"].values())


def test_fingerprint(config: Config, source_folder: Path) -> None:
    base = prepare(config()).dir
    changes: list[dict[str, Any]] = [
        {"val_fraction": 0.3},
        {"tokenizer_vocab_size": 601},
        {"mixture": {"text": 1}},
        {"sources": [SourceConfig(kind="files", path=str(source_folder), max_bytes=2000)]},
    ]
    found = {prepare(config(**c)).dir for c in changes}
    assert len(found | {base}) == 5
    same = {"seq_length": 9, "mixture": {"code": 2, "text": 1}}
    assert prepare(config(**same)).dir == base
    (source_folder / "note0.txt").write_text("other")
    assert prepare(config()).dir not in found | {base}


def test_split_depends_on_content_only(
    config: Config, source_folder: Path, tmp_path: Path, rng: random.Random
) -> None:
    first = prepare(config())
    texts = [p.read_text() for p in source_folder.rglob("*.*")]
    rng.shuffle(texts)
    rows = [{"text": t, "lang": "py" if t.startswith("x") else None} for t in texts]
    half = len(rows) // 2
    for name, part in (("a", rows[:half]), ("b", rows[half:] + rows[:5])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    sources = [
        SourceConfig(kind="files", path=str(tmp_path / f"{name}.jsonl"), language_field="lang")
        for name in "ba"
    ]
    second = prepare(config(sources=sources))
    for domain, split in itertools.product(first.domains, ("train", "val")):
        assert sorted(documents(first, domain, split)) == sorted(documents(second, domain, split))


def test_smallest_hash_is_held_out_when_nothing_else_is(config: Config) -> None:
    corpus = prepare(config(val_fraction=0.0))
    assert [corpus.documents(d, "val") for d in corpus.domains] == [1, 1]
    assert [corpus.documents(d, "train") for d in corpus.domains] == [29, 29]


def test_limits(config: Config, source_folder: Path) -> None:
    source = SourceConfig(kind="files", path=str(source_folder), max_bytes=2000)
    corpus = prepare(config(sources=[source]))
    for domain in corpus.domains:
        assert 1500 < sum(corpus.utf8_bytes(domain, s) for s in ("train", "val")) <= 2000
    source = SourceConfig(kind="files", path=str(source_folder), max_documents=40)
    corpus = prepare(config(sources=[source]))
    assert sum(corpus.documents(d, s) for d in corpus.domains for s in ("train", "val")) == 40


def test_markers_in_documents_stay_text(config: Config, source_folder: Path) -> None:
    (source_folder / "marker.txt").write_text(f"before {EOD} after <|im_end|>")
    corpus = prepare(config())
    ids = np.concatenate(
        [np.fromfile(corpus.prefix("text", s) + ".bin", dtype=np.uint16) for s in ("train", "val")]
    )
    assert (ids == corpus.eod_id).sum() == 31
    assert not (ids > corpus.eod_id).any()


def test_imported_tokenizer_and_finished_corpus(config: Config, tmp_path: Path) -> None:
    first = prepare(config())
    second = prepare(config(tokenizer=str(first.tokenizer_path), val_fraction=0.1))
    assert second.tokenizer_hash == first.tokenizer_hash
    loaded = prepare(config(sources=[], path=str(second.dir)))
    assert loaded == second
    only_text = prepare(config(mixture={"text": 1}))
    with pytest.raises(InputError, match="not \\['code'\\]"):
        prepare(config(sources=[], path=str(only_text.dir)))
    for path in (None, str(tmp_path / "none")):
        with pytest.raises(InputError):
            prepare(config(sources=[], path=path))


def test_path_fills_sources(config: Config, source_folder: Path) -> None:
    corpus = prepare(config(sources=[SourceConfig(kind="files")], path=str(source_folder)))
    assert corpus.dir == prepare(config()).dir


def test_bad_input_is_found_before_anything_is_built(config: Config, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    rows = SourceConfig(kind="files", path=str(tmp_path / "rows.jsonl"))
    missing = SourceConfig(kind="files", path="/no/such/folder")
    with pytest.raises(InputError) as caught:
        prepare(config(sources=[missing, missing], tokenizer="/no/tokenizer.json"))
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="no source has documents of the side 'code'"):
        prepare(config(sources=[rows]))
    with pytest.raises(InputError, match=r"names \['math', 'text'\]"):
        prepare(config(mixture={"text": 1}, stages=[StageConfig(mixture={"math": 1})]))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match="'text' of the corpus has 1 documents"):
        prepare(config(sources=[rows], mixture={"text": 1}))
    with pytest.raises(InputError, match="train would be empty"):
        prepare(config(val_fraction=1.0))


def leftovers(config: DataConfig) -> list[str]:
    names = [p.name for p in Path(config.cache_dir).iterdir()]
    return [n for n in names if not n.endswith(".lock")]


@pytest.mark.parametrize("stage", ["train_tokenizer", "_encode", "synced_files"])
@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")]
)
def test_a_failed_build_leaves_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException
) -> None:
    def fail(*args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(build, stage, fail)
        wanted = InputError if isinstance(error, OSError) else type(error)
        with pytest.raises(wanted, match="no space left" if wanted is InputError else None):
            prepare(config())
    assert not leftovers(config())
    assert prepare(config()).documents("text", "train")


def test_folder_of_a_dead_builder_is_removed(config: Config) -> None:
    corpus = prepare(config())
    before = {p.name: p.read_bytes() for p in corpus.dir.iterdir() if p.name != "manifest.json"}
    corpus.dir.rename(f"{corpus.dir}.tmp")
    (Path(f"{corpus.dir}.tmp") / "junk").write_text("from another life")
    lines: list[str] = []
    again = prepare(config(), report=lines.append)
    assert any("left behind" in line for line in lines)
    assert leftovers(config()) == [corpus.dir.name]
    after = {p.name: p.read_bytes() for p in again.dir.iterdir() if p.name != "manifest.json"}
    assert after == before


def test_killed_builder(config: Config, tmp_path: Path) -> None:
    # a builder that opens a pipe without writer in the middle of its work waits there to be killed
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stop = f"""
from data_pipeline import build
build.train_tokenizer = lambda *args: open({str(pipe)!r})
"""
    process = child(config(), before=stop)
    assert process.stdout is not None
    with process:
        while "read 0-files" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert [n[-4:] for n in leftovers(config())] == [".tmp"]
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    assert any("left behind" in line for line in lines)
    assert leftovers(config()) == [corpus.dir.name]


def test_several_processes_build_once(config: Config) -> None:
    processes = [child(config()) for _ in range(3)]
    results = [p.communicate(timeout=60) for p in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors
    outputs = [output for output, _ in results]
    assert sum("data: building" in o for o in outputs) == 1
    assert len({o.splitlines()[-1] for o in outputs}) == 1


def test_unwritable_cache(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data\.cache_dir=FOLDER"):
        prepare(config(cache_dir=str(tmp_path / "file")))
