"""`loopcoder data inspect`: what it says of a batch is what training would read."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline.driver import prepare
from data_pipeline.tokenizer.fim import MIDDLE, PREFIX, SUFFIX
from loopcoder.cli import main as cli
from loopcoder.config.build import FimConfig, SourceConfig
from loopcoder.config.compose import compose, save_config
from loopcoder.data.blend import blend_at
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.sampler import Position, advance, samples_of_rank, samples_of_step
from tests.cli.run_dirs import run_dir
from tests.configs import data_config
from tests.data.stores import in_memory
from tests.data_pipeline.conftest import PLAIN

SUFFIXES = {"Text": ".txt", "Python": ".py", "Java": ".java"}
LENGTH = 24
"""Tokens of a sequence."""
STAGES = f"data.stages=[{{until:{8 * LENGTH + 1}}},{{mixture:{{code:3,text:1}}}}]"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of random text and code of two sources; all code is to be filled in. Every word
    tells the language of its document."""
    folder = tmp_path_factory.mktemp("inspected")
    rng = random.Random()
    for name, suffix in SUFFIXES.items():
        (folder / name).mkdir()
        for i in range(30):
            length = rng.choice((3, 20, 60))
            parts = [f"{name.lower()}{''.join(rng.choices('uvwxyz', k=4))}" for _ in range(length)]
            text = f"{name.lower()} = {i};\n" + "".join(f"{part};\n" for part in parts)
            (folder / name / f"file{i}{suffix}").write_text(text)
    fields: dict[str, Any] = {
        "name": "files",
        "seq_length": LENGTH,
        "mixture": {"text": 1, "code": 1},
        "sources": [
            SourceConfig(kind="files", path=str(folder / "Text")),
            SourceConfig(kind="files", path=[str(folder / "Python"), str(folder / "Java")]),
        ],
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "tokenizer_vocab_size": 600,
        **PLAIN,
        "fim": FimConfig(rate=1, min_chars=5),
    }
    return prepare(data_config(**fields), report=lambda _: None)


def words(corpus: Corpus, *more: str) -> list[str]:
    """The overrides of a small run on a corpus."""
    given = ["data=corpus", f"path={corpus.dir}", f"data.seq_length={LENGTH}"]
    return [*given, "train.global_batch_size=8", "train.micro_batch_size=2", *more]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert cli.main(["data", "inspect", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("reader", ["shuffled", "packed", "megatron"])
def test_it_is_the_batch_that_training_reads(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], reader: str
) -> None:
    given = words(corpus, f"data.reader={reader}", STAGES, f"seed={random.randrange(1000)}")
    config = compose(given)
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    position, stages = Position(), set()
    for step in range(1, 5):
        after, size = advance(config, position)
        stages.add(position.stage)
        found = told(capsys, f"step={step}", "--full", "--ranks", "2", *given)
        assert found["tokens_before"] == position.tokens and found["stage"] == position.stage
        stage = position.stage
        samples = samples_of_step(position, size, config.seed, stage)
        blend = blend_at(config, corpus, position)
        read = blend.rows(samples)
        assert [row["sample"] for row in found["rows"]] == samples.tolist()
        for rank in range(2):
            mine = [row["sample"] for row in found["rows"] if row["rank"] == rank]
            assert mine == samples_of_rank(samples, rank, 2, 2).ravel().tolist()
        for row, ids, domain in zip(found["rows"], read.ids, read.domain_ids, strict=True):
            assert row["domain"] == corpus.domains[domain]
            assert row["epoch"] == blend.locate(row["sample"])[1]
            assert documents_of(row) == pieces(ids[:-1].tolist(), corpus.eod_id, tokenizer)
        counts = dict.fromkeys(corpus.domains, 0)
        for label in found["labels"]:
            counts[label["domain"]] += label["tokens"]
        lengths = np.bincount(read.domain_ids) * found["seq_length"]
        assert counts == dict(zip(corpus.domains, lengths.tolist(), strict=True))
        position = after
    assert stages == {0, 1}


def documents_of(row: dict[str, Any]) -> list[tuple[int, int, bool, str]]:
    return [(d["start"], d["tokens"], d["ends"], d["text"]) for d in row["documents"]]


def pieces(ids: list[int], eod: int, tokenizer: Tokenizer) -> list[tuple[int, int, bool, str]]:
    """Cut a sequence behind every end of a document, token by token."""
    found: list[tuple[int, int, bool, str]] = []
    start, own = 0, list[int]()
    for place, token in enumerate(ids):
        if token != eod:
            own.append(token)
        if token == eod or place == len(ids) - 1:
            text = tokenizer.decode(own, skip_special_tokens=False)
            found.append((start, place + 1 - start, token == eod, text))
            start, own = place + 1, []
    return found


def test_what_is_skipped_is_said(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(corpus, "data.reader=packed", "train.max_steps=9")
    skip = "data.skip=[{step:3,steps:2}]"
    found, later = told(capsys, "step=3", *given, skip), told(capsys, "step=5", *given)
    samples = [{row["sample"] for row in batch["rows"]} for batch in (found, later)]
    assert samples[0] == samples[1] and found["tokens_before"] == 2 * 8 * LENGTH
    (skipped,) = found["skipped"]
    assert (skipped["sample"], skipped["samples"]) == (16, 16)
    assert told(capsys, "step=4", *given, skip)["skipped"] == []
    assert cli.main(["data", "inspect", "step=3", *given, skip]) == 0
    assert "left out before step 3: 16 sequences, samples 16 to 31" in capsys.readouterr().out


def test_documents_have_the_language_and_source_that_their_words_tell(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(corpus, "data.reader=packed", "train.global_batch_size=32")
    found = told(capsys, "step=2", "--full", *given)
    seen = set()
    for row in found["rows"]:
        for document in row["documents"]:
            names = [name for name in SUFFIXES if name.lower() in document["text"]]
            for name in names:
                source = "0-files" if name == "Text" else "1-files"
                assert (document["language"], document["source"]) == (name, source)
            seen.update(names)
    assert seen == set(SUFFIXES)
    sums = {label["language"]: label["tokens"] for label in found["labels"]}
    assert sum(sums.values()) == 32 * LENGTH and sums["Text"] == 16 * LENGTH
    assert cli.main(["data", "inspect", "step=2", *given]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert all([name, str(count)] in [line[:2] for line in lines] for name, count in sums.items())


def test_a_corpus_in_a_store_is_shown_as_the_same_one_here(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also what it holds, for which no shard is read."""
    given, url = words(corpus, "data.reader=packed"), in_memory(corpus.dir, tmp_path.name)
    here = told(capsys, "step=2", *given)
    there = told(capsys, "step=2", *given, f"path={url}", f"data.cache.dir={tmp_path / 'kept'}")
    assert (there["rows"], there["labels"]) == (here["rows"], here["labels"])
    holds = []
    for place in (url, str(corpus.dir)):
        assert cli.main(["data", "stats", "--json", place, "--cache", str(tmp_path)]) == 0
        holds.append(json.loads(capsys.readouterr().out))
    assert holds[0]["domains"] == holds[1]["domains"]
    assert holds[0]["corpus"] == url


def test_a_corpus_without_labels_is_told_by_domain(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    older = Path(shutil.copytree(corpus.dir, tmp_path / "older"))
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["labels"]
    manifest["files"] = {k: v for k, v in manifest["files"].items() if not k.endswith(".labels")}
    (older / "manifest.json").write_text(json.dumps(manifest))
    for path in older.rglob("*.labels"):
        path.unlink()
    given = words(load_corpus(older, "size"), "data.reader=packed")
    found = told(capsys, "step=1", *given)
    assert [(label["language"], label["tokens"]) for label in found["labels"]] == [
        (None, 4 * LENGTH),
        (None, 4 * LENGTH),
    ]
    assert cli.main(["data", "inspect", "step=1", *given]) == 0
    assert "does not record the language" in capsys.readouterr().out
    assert cli.main(["data", "stats", str(older)]) == 0
    assert "by domain only" in capsys.readouterr().out


def test_a_run_is_shown_by_its_folder(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = words(corpus, "data.reader=packed", "train.max_steps=10")
    folder = run_dir(tmp_path / "runs" / "mine")
    save_config(compose(given), folder / "config.yaml")
    record = {"dir": str(corpus.dir), "fingerprint": corpus.fingerprint}
    (folder / "corpus.json").write_text(json.dumps(record))
    wanted = told(capsys, "step=3", *given)
    assert told(capsys, "step=3", str(folder)) == wanted
    assert told(capsys, f"run_dir={folder}", "step=3") == wanted
    assert cli.main(["data", "inspect", "step=11", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "train.max_steps=10 ends the run before step 11" in printed.err
    assert "text : code" in printed.out and "0-files" in printed.out
    assert "and 4 sequences more" in printed.out


def test_a_document_to_fill_in_can_be_read(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(corpus, "data.reader=packed", "data.mixture={code:1}")
    given.append("train.global_batch_size=64")
    rows = told(capsys, "step=1", "--full", *given)["rows"]
    assert any(document["is_fim"] for row in rows for document in row["documents"])
    assert cli.main(["data", "inspect", "step=1", "--full", *given]) == 0
    printed = capsys.readouterr().out
    assert "fill in the middle" in printed
    for marker in (PREFIX, MIDDLE, SUFFIX):
        lines = [line for line in printed.splitlines() if marker in line]
        assert lines and all(line.startswith(f"    | {marker}") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says", "fix"),
    [
        ([], "takes one step", "step=1"),
        (["step=0"], "takes one step", "step=1"),
        (["step=x"], "takes one step", "step=1"),
        (["step=-1"], "takes one step", "step=1"),
        (["step=1", "step=2"], "takes one step", "step=1"),
        (["step=1", "runs"], "runs is no folder of a run", "data inspect runs/a step=1"),
        (["step=1", "nowhere"], "nowhere is no folder of a run", "data inspect RUN step=1"),
        (["step=1", "runs/a/checkpoints/step_00000004"], "is a checkpoint", "runs/a step=1"),
        (["step=1", "runs/a", "seed=3"], "as it was trained", "without the folder"),
        (["step=1", "runs/a", "runs/b"], "as it was trained", "without the folder"),
        (["step=1", "runs/a"], "which this run was trained on, is gone", "--cache DIR"),
        (["step=1", "runs/b"], "does not say which corpus", "data inspect step=1"),
        (["step=1", "data=files", "path=runs"], "not built yet", "loopcoder data data=files"),
        (["step=1", "--text", "x"], "takes a whole number", "--text 3"),
        (["step=1", "--txt", "3"], "its options are", "--text LINES"),
        (["step=1", "train.global_batch_size=7"], "exactly these proportions", "batch_size=8"),
        (["step=1", "trian.max_steps=7"], "trian", "train.max_steps"),
    ],
)
def test_what_cannot_be_shown(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
    fix: str,
) -> None:
    run_dir(tmp_path / "runs" / "a", saved=4, corpus="0123456789abcdef")
    run_dir(tmp_path / "runs" / "b")
    assert cli.main(["data", "inspect", *arguments]) == 3
    said = capsys.readouterr().err
    assert says in said and fix in said.partition("fix: ")[2], said


def test_ranks_that_do_not_divide_the_batch(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    for asked, fits in (("3", "--ranks 2"), ("0", "--ranks 1"), ("99", "--ranks 4")):
        assert cli.main(["data", "inspect", "step=1", "--ranks", asked, *words(corpus)]) == 3
        assert capsys.readouterr().err.strip().endswith(f"fix: {fits}")


def test_a_damaged_block_is_named(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copied = load_corpus(shutil.copytree(corpus.dir, tmp_path / "copied"), "size")
    path = Path(copied.prefixes("code", "train")[0] + ".bin")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    given = words(copied, "data.reader=packed", "data.mixture={code:1}")
    assert cli.main(["data", "inspect", "step=1", *given]) == 3
    assert path.name in capsys.readouterr().err
