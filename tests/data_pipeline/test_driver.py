"""prepare(): what is built from what."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.driver import check_input, prepare
from data_pipeline.tokenizer.spec import EOD
from loopcoder.cli import main as cli
from loopcoder.config.build import ExecutorConfig, FimConfig, SourceConfig
from loopcoder.config.data import StageConfig
from loopcoder.config.filters import FilterConfig
from loopcoder.errors import InputError
from tests.data_pipeline.builds import Config, documents, token_ids, whole


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
    # text is used up first, and two thirds of the code are left, whatever was drawn
    corpus = prepare(config(mixture={"text": 3, "code": 1}), report=lines.append)
    assert "data:   left out: 1 exact_duplicate" in lines
    stages = {s["stage"]: s for s in corpus.manifest["stages"]}
    assert stages["dedup"]["drops"] == {"exact_duplicate": 1}
    for stage in stages.values():
        assert stage["rows_in"] == stage["rows_out"] + sum(stage["drops"].values())
    beyond = stages["quota"]["drops"]["beyond_quota"]
    assert beyond > 0 and f"data:   left out: {beyond} beyond_quota" in lines
    left_over = sum(stages[f"shuffle {domain}"]["drops"]["left_over"] for domain in corpus.domains)
    assert (f"data:   left out: {left_over} left_over" in lines) == (left_over > 0)
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


@pytest.mark.data_full
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


@pytest.mark.data_full
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


@pytest.mark.data_full
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


@pytest.mark.data_full
def test_imported_tokenizer_and_finished_corpus(config: Config, tmp_path: Path) -> None:
    first = prepare(config())
    second = prepare(config(tokenizer=str(first.tokenizer_path), val_fraction=0.1))
    assert second.tokenizer_hash == first.tokenizer_hash
    loaded = prepare(config(sources=[], path=str(second.dir)))
    assert loaded == second
    only_text = prepare(config(mixture={"text": 1}))
    with pytest.raises(InputError, match="has text, not code"):
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
    with pytest.raises(InputError, match="no source has documents of the domain 'code'") as caught:
        prepare(config(sources=[rows]))
    assert "'data.mixture={text:1}'" in caught.value.problems[0].fix
    with pytest.raises(InputError, match="there is no domain 'math'"):
        prepare(config(mixture={"text": 1}, stages=[StageConfig(mixture={"math": 1})]))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match="'text' of the corpus has 1 document,") as caught:
        prepare(config(sources=[rows], mixture={"text": 1}))
    assert caught.value.problems[0].fix == "a source with more text"


@pytest.mark.parametrize("share", [1.0, 0.99999, 0.95])
def test_what_leaves_nothing_to_train_on_is_refused_before_reading(
    config: Config, tmp_path: Path, share: float
) -> None:
    with pytest.raises(InputError) as caught:
        prepare(config(val_fraction=share, target_tokens=100, worker_bytes=1))
    assert [p.fix for p in caught.value.problems] == [
        "data.build.val_fraction=0.02",
        "data.build.worker_bytes=1000000000",
        "data.build.target_tokens=null for all that there is, or 8320 or more",
    ]
    assert not (tmp_path / "cache").exists()


@pytest.mark.data_full
@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"target_tokens": 130}, "data.build.target_tokens=520, or a shorter data.seq_length"),
        ({"shards": 90_000}, "data.build.shards=1"),
        ({"epochs": 0.01}, "a larger data.build.epochs, or a shorter"),
        ({"epochs": {"text": 1, "code": 1e-9}}, "a larger data.build.epochs, or more input"),
        ({"seq_length": 10**6}, "a shorter data.seq_length, or more documents"),
        ({"shares": {"COBOL": 1}}, "data.build.shares=supply, or the share of one of these"),
        ({"mixture": {"text": 1, "code": 0.00001}}, "a plainer data.mixture, a larger"),
    ],
)
def test_too_few_tokens_name_the_field_that_decides(
    config: Config, fields: dict[str, Any], fix: str
) -> None:
    with pytest.raises(InputError) as caught:
        prepare(config(**fields))
    assert fix in caught.value.problems[0].fix
    assert "target_tokens=0" not in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("files", "lacks", "says"),
    [
        (("a.py", "b.md"), "text", r"\.txt, .*\.rst, .* are text; Markdown and HTML count as code"),
        (("a.html",), "text", r"\.tex, .* are text"),
        (("a.txt", "README"), "code", r"in a programming language are code"),
    ],
)
def test_what_makes_a_file_of_a_domain_is_said(
    config: Config, tmp_path: Path, files: tuple[str, ...], lacks: str, says: str
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("x = 1\n" * 30)
    fact = f"no source has documents of the domain '{lacks}'"
    with pytest.raises(InputError, match=fact) as caught:
        prepare(config(sources=[SourceConfig(kind="files", path=str(folder))]))
    assert re.search(says, caught.value.problems[0].why)


def test_what_runs_the_tasks_is_looked_for_before_anything_is_made(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus that is there needs none of it."""
    with_ray = config(executor=ExecutorConfig(kind="ray"))
    monkeypatch.setattr("data_pipeline.tasks.execute.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with_slurm = config(executor=ExecutorConfig(kind="slurm"))
    with monkeypatch.context() as patched:  # nor is anything listed or fetched
        patched.setattr("data_pipeline.driver.open_all", lambda *_: pytest.fail("listed"))
        for refused in (prepare, check_input):
            with pytest.raises(InputError, match="ray is not installed"):
                refused(with_ray)
            with pytest.raises(InputError, match="there is no sbatch here"):
                refused(with_slurm)
    assert not (tmp_path / "cache").exists()
    prepare(config())
    check_input(with_ray)
    prepare(with_ray)


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


@pytest.mark.data_full
def test_filling_in_the_middle_needs_its_tokens(config: Config, tmp_path: Path) -> None:
    first = prepare(config(), report=lambda _: None)
    spec = json.loads(first.tokenizer_path.read_text())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if "fim" not in t["content"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec))
    assert prepare(config(tokenizer=str(path)), report=lambda _: None).eod_id == first.eod_id
    with pytest.raises(InputError, match=r"has no <\|fim_prefix\|>"):
        prepare(config(tokenizer=str(path), fim=FimConfig(rate=0.5)))


@pytest.mark.data_full
def test_documents_of_all_parts_that_are_not_utf8_are_told_together(
    config: Config, source_folder: Path
) -> None:
    for n in range(5):
        (source_folder / f"note{7 * n}.txt").write_bytes(b"caf\xe9 " * 40)
    with pytest.raises(InputError, match=r"5 documents are not UTF-8.*note0\.txt.* and 2 more"):
        prepare(config(part_bytes=500))
    assert prepare(config(part_bytes=500, invalid_utf8="drop"))


@pytest.mark.parametrize("limit", ["max_documents", "max_bytes"])
def test_a_limit_that_leaves_a_domain_without_documents_is_named(
    config: Config, source_folder: Path, limit: str
) -> None:
    source = SourceConfig(kind="files", path=str(source_folder), **{limit: 1})  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        prepare(config(sources=[source]))
    fix = caught.value.problems[0].fix
    assert fix.startswith(f"a larger data.build.sources.0.{limit}, or add a source with ")


def test_epochs_without_a_domain_are_refused_with_all_that_is_missing(config: Config) -> None:
    with pytest.raises(InputError) as caught:
        prepare(config(epochs={}))
    assert [p.fix for p in caught.value.problems] == ["'data.build.epochs={text:1,code:1}'"]


def test_a_build_may_be_refused_by_its_inputs_before_it_begins(
    config: Config, tmp_path: Path
) -> None:
    seen: list[list[str]] = []

    def refuse(inputs: list[str]) -> None:
        seen.append(inputs)
        raise InputError.of("other inputs", "why", "fix")

    with pytest.raises(InputError, match="other inputs"):
        prepare(config(), before_build=refuse)
    assert not (tmp_path / "cache").exists()
    corpus = prepare(config())
    assert seen == [[source["input_xxh3_128"] for source in corpus.manifest["sources"]]]
    assert prepare(config(), before_build=refuse).dir == corpus.dir  # nothing is built
