"""Runs on conversations that are packed with a mask: what they go through, resume and leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.state import Specials, with_template
from loopcoder.cli import main as cli
from loopcoder.config.compose import compose
from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import token_dtype
from loopcoder.infer.loading import load_decoder
from loopcoder.infer.prompts import Prompts
from loopcoder.metrics.writer import read_metrics
from tests.data.chat import EOD, TEMPLATE, VOCAB, chat_corpus
from tests.train.conftest import SMALL, Start, finish

LENGTH = 64
"""`data.seq_length` of SMALL."""


def test_a_run_keeps_what_it_began_with_beside_the_template() -> None:
    imported = Specials({"eos_token_id": [1, 2]}, {"pad_token": "<pad>"}, "{}", "old")
    found = with_template(imported, "new")
    assert found == Specials({"eos_token_id": [1, 2]}, {"pad_token": "<pad>"}, "{}", "new")
    assert with_template(imported, None) == imported
    assert with_template(None, None) is None
    assert with_template(None, "new") == Specials({}, {}, None, "new")


@pytest.mark.parametrize("model", ["plt_tiny", "plt_1b"])
def test_tuning_has_one_low_rate_whatever_the_recipe(model: str) -> None:
    config = compose(["experiment=sft", f"model={model}", "path=chats.jsonl"])
    optim = config.optim
    assert (optim.lr, optim.min_lr, optim.schedule.kind) == (2e-5, 2e-6, "cosine")
    assert (optim.embedding_lr_scale, optim.head_lr_scale) == (1, 1)
    assert (optim.base_hidden_size, optim.base_num_layers) == (None, None)
    assert optim.vocabulary_warmup_steps == 0
    assert config.train.max_steps == 400
    assert (config.data.name, config.data.mixture) == ("chat", {"chat": 1})
    finished = ["data=corpus", "data.mixture={chat:1}", "data.seq_length=1024"]
    planned = compose(["experiment=sft", f"model={model}", *finished, "train.tokens=163840"])
    assert (planned.train.max_steps, planned.data.mixture) == (10, {"chat": 1})


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        ("data.seq_length=32", "data.seq_length=64"),
        ("data.reader=megatron", "data.reader=shuffled"),
        ("data.isolate_documents=false", "data.isolate_documents=true"),
        ("data.mask_document_start=false", "data.mask_document_start=true"),
        ("eval.lengths=[32]", "eval.lengths=null"),
    ],
)
def test_what_a_packed_corpus_cannot_give_is_refused_at_once(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str], asked: str, fix: str
) -> None:
    corpus = chat_corpus(tmp_path / "chats", np.random.default_rng(seed), seq_length=LENGTH)
    given = [*SMALL, "data=corpus", f"path={corpus.dir}", "data.mixture={chat:1}", asked]
    command = ["train", *given, f"run_dir={tmp_path / 'run'}", "--print-config"]
    assert cli.main(command) == 3
    assert f"fix: {fix}" in capsys.readouterr().err
    assert cli.main([word for word in command if word != asked]) == 0


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return what a run has logged, without times."""
    kept = {"step", "stage", "loss", "grad_norm", "lr", "tokens", "samples"}
    return [
        {k: v for k, v in line.items() if k in kept or k.startswith(("val/", "loss/"))}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def documents_of(corpus: Corpus) -> set[tuple[tuple[int, int, int], ...]]:
    """Return where each conversation of every sequence begins there, and how many tokens it has and
    trains, from the files alone."""
    found = set()
    for prefix in corpus.prefixes("chat", "train"):
        ids = np.frombuffer(Path(prefix + ".bin").read_bytes(), token_dtype(VOCAB))
        mask = np.frombuffer(Path(prefix + ".mask").read_bytes(), np.uint8)
        for start in range(0, len(ids) - 1, LENGTH):
            ends = np.flatnonzero(ids[start : start + LENGTH] == EOD) + 1
            parts = zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
            found.add(tuple((a, b - a, int(mask[start + a : start + b].sum())) for a, b in parts))
    return found


@pytest.mark.data_full
def test_a_curriculum_resumes_bit_for_bit_and_leaves_its_template(
    start: Start, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two corpora, one after the other, and a stop in the middle of the first; then what becomes of
    the checkpoint."""
    rng = np.random.default_rng(seed)
    easy, hard = (
        chat_corpus(tmp_path / name, rng, seq_length=LENGTH, sequences=40)
        for name in ("easy", "hard")
    )
    stages = (
        f"data.stages=[{{until:1024,corpora:[{{path:{easy.dir}}}]}},"
        f"{{corpora:[{{path:{hard.dir}}}]}}]"
    )
    own = chat_corpus(tmp_path / "own", rng, seq_length=96, sequences=3)
    asked = ["data=corpus", "path=null", "data.mixture={chat:1}", stages]
    asked += [f"eval.corpora={{own:{own.dir}}}"]
    asked += ["train.max_steps=8", "checkpoint.interval=3", "eval.interval=4"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    output = finish(start(whole, *asked))
    assert "an epoch of easy/chat has 20 steps of 4 sequences" in output
    assert "begins with random weights" in output
    shutil.copytree(whole, again)
    for step in (6, 8):
        (checkpoints.step_folder(again, step) / checkpoints.MANIFEST).unlink()
    assert "step_00000003" in finish(start(again, *asked))
    lines = lines_of(whole)
    assert lines_of(again) == lines
    assert [line["stage"] for line in lines] == [0] * 4 + [1] * 4
    assert "loss/corpus/easy/chat" in lines[0] and "loss/corpus/hard/chat" in lines[-1]
    assert {"val/loss", "val/loss/corpus/hard/chat", "val/unigram_entropy"} < lines[-1].keys()
    assert "in 3 sequences" in output and "val/own/loss" in lines[-1]
    one, other = (checkpoints.step_folder(run, 8) / "digest.json" for run in (whole, again))
    assert one.read_bytes() == other.read_bytes()

    assert cli.main(["data", "inspect", f"run_dir={whole}", "step=2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    shown = [
        tuple((d["start"], d["tokens"], d["trained"]) for d in row["documents"]) for row in rows
    ]
    assert len(shown) == 4 and set(shown) <= documents_of(easy)
    assert cli.main(["data", "inspect", f"run_dir={whole}", "step=2"]) == 0
    assert " trained, " in capsys.readouterr().out

    assert cli.main(["evaluate", f"checkpoint={again}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val/loss"] == pytest.approx(lines[-1]["val/loss"], rel=1e-5)

    state = checkpoints.find(again).state()
    assert state.specials == Specials({}, {}, None, TEMPLATE)
    assert cli.main(["export", f"checkpoint={again}", f"output={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    capsys.readouterr()
    assert cli.main(["generate", f"checkpoint={again}", "prompt=Why?", "--chat"]) == 0
    assert "pretrained" not in capsys.readouterr().err
    source = load_decoder(checkpoints.find(again), num_places=1, max_length=9).source
    assert Prompts.of_source(source).template == TEMPLATE
