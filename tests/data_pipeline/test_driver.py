"""prepare(): one complete corpus or none, whatever happens."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline import finish
from data_pipeline.driver import prepare
from data_pipeline.shuffle import stages as shuffle
from data_pipeline.tasks.work import write_sealed
from data_pipeline.tokenizer import train as vocabulary
from data_pipeline.tokenizer.spec import EOD
from loopcoder.cli import main as cli
from loopcoder.config.build import ExecutorConfig, FimConfig, SourceConfig
from loopcoder.config.data import DataConfig, StageConfig
from loopcoder.config.filters import FilterConfig
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError, LoopcoderError

Config = Callable[..., DataConfig]
REPOSITORY = Path(__file__).parents[2]

CHILD = """
import json, sys
from data_pipeline.driver import prepare
from loopcoder.config.data import DataConfig
corpus = prepare(DataConfig(**json.loads(sys.argv[1])))
foreign = {"torch", "megatron"} & {name.partition(".")[0] for name in sys.modules}
assert not foreign, foreign
print("tokens", corpus.tokens("text", "train"))
"""


def child(config: DataConfig, before: str = "") -> subprocess.Popen[str]:
    """Start another process that runs `before` and prepares the same corpus."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", before + CHILD, json.dumps(dataclasses.asdict(config))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def token_ids(corpus: Corpus, domain: str, split: str) -> np.ndarray:
    files = [prefix + ".bin" for prefix in corpus.prefixes(domain, split)]
    return np.concatenate([np.fromfile(file, dtype=np.uint16) for file in files])


def documents(corpus: Corpus, domain: str, split: str) -> list[str]:
    """Decode every document of a split."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    ids = token_ids(corpus, domain, split)
    ends = np.flatnonzero(ids == corpus.eod_id) + 1
    assert ends[-1] == len(ids)
    return [tokenizer.decode(d[:-1].tolist()) for d in np.split(ids, ends[:-1])]


def whole(domain: str) -> dict[str, Any]:
    """Fields of a config that takes all documents of a domain: nothing is cut for the other's sake,
    nor for the last sequence's."""
    return {"mixture": {domain: 1}, "seq_length": 1}


@pytest.mark.parametrize("domain", ["text", "code"])
def test_folder_becomes_a_corpus(config: Config, source_folder: Path, domain: str) -> None:
    lines: list[str] = []
    corpus = prepare(config(**whole(domain)), report=lines.append)
    assert corpus.domains == (domain,)
    pattern = "*.txt" if domain == "text" else "sub/*.py"
    splits = [documents(corpus, domain, split) for split in ("train", "val")]
    assert sorted(splits[0] + splits[1]) == sorted(
        p.read_text() for p in source_folder.glob(pattern)
    )
    for split, texts in zip(("train", "val"), splits, strict=True):
        assert corpus.documents(domain, split) == len(texts) > 0
        ids = token_ids(corpus, domain, split)
        assert corpus.tokens(domain, split) == len(ids) == sum(corpus.shard_tokens(domain, split))
        assert corpus.token_bytes()[ids].sum() == sum(len(t.encode()) for t in texts)
        by_language = corpus.languages(domain, split).values()
        assert sum(n["tokens"] for n in by_language) == len(ids)
    assert any("tokenise into buckets" in line for line in lines)
    again: list[str] = []
    assert prepare(config(**whole(domain)), report=again.append) == corpus
    assert not again


def test_stages_conserve_rows(config: Config, source_folder: Path) -> None:
    shutil.copy(source_folder / "note0.txt", source_folder / "copy.txt")
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    assert "data:   left out: 1 exact_duplicate" in lines
    stages = {s["stage"]: s for s in corpus.manifest["stages"]}
    assert stages["dedup"]["drops"] == {"exact_duplicate": 1}
    for stage in stages.values():
        assert stage["rows_in"] == stage["rows_out"] + sum(stage["drops"].values())
    assert stages["ingest 0-files"]["rows_in"] == 61
    assert stages["hold out"]["rows_in"] == 60
    trained = sum(stages[f"shuffle {domain}"]["rows_out"] for domain in corpus.domains)
    cut = sum(stages[f"shuffle {domain}"]["notes"]["cut_in_two"] for domain in corpus.domains)
    assert sum(corpus.documents(domain, "train") for domain in corpus.domains) == trained + cut


def test_domains_have_the_same_number_of_sequences(config: Config, rng: random.Random) -> None:
    weights = {"text": rng.randint(1, 3), "code": rng.randint(1, 3)}
    length = rng.randint(5, 50)
    corpus = prepare(config(mixture=weights, seq_length=length, shards=rng.randint(1, 3)))
    lowest = math.gcd(*weights.values())
    units = {
        (tokens - 1) / length / (weights[domain] // lowest)
        for domain in corpus.domains
        for tokens in corpus.shard_tokens(domain, "train")
    }
    assert len(units) == 1 and units.pop() % 1 == 0


def test_fingerprint(config: Config, source_folder: Path) -> None:
    base = prepare(config()).dir
    changes: list[dict[str, Any]] = [
        {"val_fraction": 0.3},
        {"tokenizer_vocab_size": 601},
        {"mixture": {"text": 1}},
        {"mixture": {"code": 2, "text": 1}},
        {"seq_length": 9},
        {"fim": FimConfig(rate=0.5)},
        {"filters": FilterConfig(enabled=False, min_words=10)},
        {"shares": {"Python": 1.0}},
        {"sources": [SourceConfig(kind="files", path=str(source_folder), max_bytes=2000)]},
    ]
    found = {prepare(config(**c)).dir for c in changes}
    assert len(found | {base}) == len(changes) + 1
    same = {
        "mixture": {"code": 2, "text": 2},
        "stages": [StageConfig(seq_length=9, mixture={"code": 1})],
        "executor": ExecutorConfig(workers=3),
        "isolate_documents": False,
    }
    assert prepare(config(**same)).dir == base
    (source_folder / "note0.txt").write_text("other")
    assert prepare(config()).dir not in found | {base}


def test_split_depends_on_content_only(
    config: Config, source_folder: Path, tmp_path: Path, rng: random.Random
) -> None:
    first = [prepare(config(**whole(domain))) for domain in ("text", "code")]
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
    for corpus in first:
        (domain,) = corpus.domains
        second = prepare(config(sources=sources, **whole(domain)))
        for split in ("train", "val"):
            assert sorted(documents(corpus, domain, split)) == sorted(
                documents(second, domain, split)
            )


def test_smallest_hash_is_held_out_when_nothing_else_is(config: Config) -> None:
    for domain in ("text", "code"):
        corpus = prepare(config(val_fraction=0.0, **whole(domain)))
        assert (corpus.documents(domain, "val"), corpus.documents(domain, "train")) == (1, 29)


def test_limits(config: Config, source_folder: Path) -> None:
    for domain in ("text", "code"):
        source = SourceConfig(kind="files", path=str(source_folder), max_bytes=2000)
        corpus = prepare(config(sources=[source], **whole(domain)))
        sizes = [len(t.encode()) for s in ("train", "val") for t in documents(corpus, domain, s)]
        assert 1500 < sum(sizes) <= 2000
    source = SourceConfig(kind="files", path=str(source_folder), max_documents=40)
    corpus = prepare(config(sources=[source]))
    stages = {s["stage"]: s for s in corpus.manifest["stages"]}
    assert stages["select 0-files"]["rows_out"] == stages["hold out"]["rows_in"] == 40


def test_markers_in_documents_stay_text(config: Config, source_folder: Path) -> None:
    (source_folder / "marker.txt").write_text(f"before {EOD} after <|im_end|>")
    corpus = prepare(config(**whole("text")))
    ids = np.concatenate([token_ids(corpus, "text", s) for s in ("train", "val")])
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
    with pytest.raises(InputError, match="no source has documents of the domain 'code'"):
        prepare(config(sources=[rows]))
    with pytest.raises(InputError, match=r"names \['math', 'text'\]"):
        prepare(config(mixture={"text": 1}, stages=[StageConfig(mixture={"math": 1})]))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match="'text' of the corpus has 1 documents"):
        prepare(config(sources=[rows], mixture={"text": 1}))
    with pytest.raises(InputError, match="has 30 documents, of which 30 are held out"):
        prepare(config(val_fraction=1.0))


def left(config: DataConfig, end: str) -> list[Path]:
    return [p for p in Path(config.build.cache_dir).iterdir() if p.name.endswith(end)]


def hashes(corpus: Corpus) -> dict[str, Any]:
    return dict(corpus.manifest["files"])


FAILURES = [
    (vocabulary, "train_tokenizer"),
    (shuffle, "to_buckets"),
    (shuffle, "assemble"),
    (finish, "write_report"),
]


@pytest.mark.parametrize(("module", "name"), FAILURES, ids=[name for _, name in FAILURES])
@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")]
)
def test_a_failed_build_continues(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: Any,
    name: str,
    error: BaseException,
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        wanted = {OSError: InputError, RuntimeError: (LoopcoderError, RuntimeError)}
        kind = wanted.get(type(error), type(error))
        with pytest.raises(kind, match="no space left" if kind is InputError else None):
            prepare(config())
    assert [p.name[-5:] for p in left(config(), ".work")] == [".work"]
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    assert lines[0].startswith("data: continuing")
    assert not any("ingest" in line for line in lines), "what was done was done again"
    assert not left(config(), ".work")
    other = prepare(config(cache_dir=str(tmp_path / "other")))
    assert hashes(corpus) == hashes(other)


def test_a_build_continues_with_other_memory(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With `shards`, memory is no part of a corpus; what is in buckets already stays there."""

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    small = config(shards=2, seq_length=8, worker_bytes=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shuffle, "write_index", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(small, report=lambda _: None)
    (work,) = left(small, ".work")
    assert len([p for p in (work / "held_out").iterdir() if p.is_dir()]) > 1
    fields = {"shards": 2, "seq_length": 8}
    continued = prepare(config(**fields), report=lambda _: None)
    assert not left(small, ".work")
    whole = prepare(config(**fields, cache_dir=str(tmp_path / "other")), report=lambda _: None)
    for domain in whole.domains:
        assert Counter(documents(continued, domain, "val")) == Counter(
            documents(whole, domain, "val")
        )


def test_a_build_that_an_older_version_began_is_refused(config: Config) -> None:
    corpus = prepare(config(keep_work=True), report=lambda _: None)
    (work,) = left(config(), ".work")
    name, made_of = corpus.dir.name, corpus.fingerprint
    shutil.rmtree(corpus.dir)
    shutil.rmtree(work / "done" / "parts")
    (work / "parts.json").write_text(json.dumps({"fingerprint": made_of, "parts": 1, "bytes": 9}))
    with pytest.raises(InputError) as error:
        prepare(config())
    problem = error.value.problems[0]
    assert "another version" in problem.why
    assert problem.fix == f"delete {work} and start the same command again"
    shutil.rmtree(work)
    assert prepare(config(), report=lambda _: None).dir.name == name


def test_a_corpus_that_is_gone_while_its_work_is_there(config: Config) -> None:
    corpus = prepare(config(keep_work=True), report=lambda _: None)
    shutil.rmtree(corpus.dir)
    (work,) = left(config(), ".work")
    with pytest.raises(InputError, match=rf"(?s)manifest.json is missing.*delete {work} and start"):
        prepare(config(), report=lambda _: None)


def test_a_part_of_the_input_that_cannot_be_read_is_no_traceback(config: Config) -> None:
    corpus = prepare(config(keep_work=True), report=lambda _: None)
    shutil.rmtree(corpus.dir)
    (work,) = left(config(), ".work")
    shutil.rmtree(work / "done" / "read")
    part = work / "parts" / "00000"
    good = part.read_bytes()
    part.write_bytes(good[:-3])
    with pytest.raises(InputError, match=rf"(?s)parts/00000 .* other content.*delete {work} and"):
        prepare(config(), report=lambda _: None)
    # whole, but its class is no longer there
    write_sealed(part, good[16:].replace(b"readers.files", b"readers.fyles"))
    with pytest.raises(InputError, match=r"(?s)parts/00000 cannot be read: .*readers.fyles"):
        prepare(config(), report=lambda _: None)


def test_killed_builder(config: Config, tmp_path: Path) -> None:
    # a builder that opens a pipe without writer in the middle of its work waits there to be killed
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stop = f"""
from data_pipeline.tokenizer import train as vocabulary
vocabulary.train_tokenizer = lambda *args: open({str(pipe)!r})
"""
    process = child(config(), before=stop)
    assert process.stdout is not None
    with process:
        while "draw text" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert left(config(), ".work")
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    assert lines[0].startswith("data: continuing")
    assert [p.name for p in Path(config().build.cache_dir).iterdir() if "lock" not in p.name] == [
        corpus.dir.name
    ]


def test_several_processes_build_once(config: Config) -> None:
    processes = [child(config()) for _ in range(3)]
    results = [p.communicate(timeout=300) for p in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors
    outputs = [output for output, _ in results]
    assert sum("data: building" in o for o in outputs) == 1
    assert len({o.splitlines()[-1] for o in outputs}) == 1


def test_unwritable_cache(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data\.build\.cache_dir=FOLDER"):
        prepare(config(cache_dir=str(tmp_path / "file")))


def test_verbs_on_a_finished_corpus(
    config: Config, capsys: pytest.CaptureFixture[str], rng: random.Random
) -> None:
    corpus = prepare(config(), report=lambda _: None)
    page = corpus.dir / "report.html"
    assert cli.main(["data", "validate", str(corpus.dir)]) == 0
    assert "is sound" in capsys.readouterr().out
    page.unlink()
    assert cli.main(["data", "report", str(corpus.dir)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert corpus.manifest["fingerprint"] in page.read_text()
    # the report may be written anew, nothing else may be
    assert cli.main(["data", "validate", str(corpus.dir)]) == 0
    damaged = Path(rng.choice(corpus.prefixes("code", "train")) + ".bin")
    damaged.write_bytes(damaged.read_bytes()[:-2])
    capsys.readouterr()
    assert cli.main(["data", "validate", str(corpus.dir)]) == 3
    assert damaged.name in capsys.readouterr().err
    for wrong in (["data", "validate"], ["data", "report", "a", "b"]):
        assert cli.main(wrong) == 3


def test_a_tokenizer_of_another_kind_is_refused_with_reasons(
    config: Config, tmp_path: Path
) -> None:
    spm = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("some words to train on\n" * 200)
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "m"),
        vocab_size=16,
        minloglevel=2,
    )
    with pytest.raises(InputError, match="SentencePiece"):
        prepare(config(tokenizer=str(tmp_path / "m.model")))


def test_filling_in_the_middle_needs_its_tokens(config: Config, tmp_path: Path) -> None:
    first = prepare(config(), report=lambda _: None)
    spec = json.loads(first.tokenizer_path.read_text())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if "fim" not in t["content"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec))
    assert prepare(config(tokenizer=str(path)), report=lambda _: None).eod_id == first.eod_id
    with pytest.raises(InputError, match=r"has no <\|fim_prefix\|>"):
        prepare(config(tokenizer=str(path), fim=FimConfig(rate=0.5)))
