"""A run on several corpora: its losses, where it goes on, and what is refused then."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from loopcoder.checkpoint.continuing import other_position
from loopcoder.checkpoint.format import CONFIG, find
from loopcoder.cli import main as cli
from loopcoder.config.check_corpora import check_joined
from loopcoder.config.compose import changed, load_config
from loopcoder.config.corpora import settled
from loopcoder.metrics.writer import read_metrics
from tests.train.conftest import SMALL, Start, finish

BUILD = [override for override in SMALL if override.startswith("data")]


def build(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """Build a corpus and return its folder."""
    assert cli.main(["data", *BUILD, *overrides]) == 0
    return capsys.readouterr().out.strip()


@pytest.mark.data_full
def test_a_run_on_several_corpora(
    start: Start,
    documents: Path,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPCODER_CACHE", environment["LOOPCODER_CACHE"])
    mixed = build(capsys, f"path={documents}")
    (tmp_path / "java").mkdir()
    for i in range(60):
        lines = [f"class A{i} {{", *(f"  int f{j} = {i * j};" for j in range(60)), "}"]
        (tmp_path / "java" / f"A{i}.java").write_text("\n".join(lines) + "\n")
    java = build(
        capsys,
        f"path={tmp_path / 'java'}",
        "data.mixture={code:1}",
        f"data.build.tokenizer={mixed}/tokenizer.json",
    )
    corpora = f"[{{path:{mixed},weight:1,name:mixed}},{{path:{java},weight:3,name:java}}]"
    run = tmp_path / "run"
    asked = ["data=corpus", "path=null", f"data.corpora={corpora}", "train.global_batch_size=8"]

    output = finish(start(run, *asked, "train.max_steps=2", "train.global_batch_size=12"), 3)
    assert "{mixed/text:4,mixed/code:1,java/code:3}" in output and "only multiples of 8" in output

    finish(start(run, *asked, "train.max_steps=2"))
    finish(start(run, *asked, "train.max_steps=4"))
    lines = read_metrics(run / "metrics.jsonl")
    names = ["text", "code", "corpus/mixed/text", "corpus/mixed/code", "corpus/java/code"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {f"loss/{name}" for name in names} < line.keys()
        assert line["loss/text"] == line["loss/corpus/mixed/text"]
    last = lines[-1]
    assert {f"val/{kind}/{name}" for kind in ("loss", "bpb") for name in names} < last.keys()
    halves = (last["val/loss/text"] + last["val/loss/code"]) / 2
    assert last["val/loss"] == pytest.approx(halves, rel=1e-6)
    record = json.loads((run / "corpus.json").read_text())
    assert {n: c["dir"] for n, c in record["corpora"].items()} == {"mixed": mixed, "java": java}

    assert cli.main(["evaluate", f"checkpoint={run}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val/loss/code"] == pytest.approx(last["val/loss/code"], rel=1e-5)
    assert {f"loss/language/{name}" for name in ("Java", "Python")} < last.keys()
    assert cli.main(["data", "inspect", f"run_dir={run}", "step=2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Counter(sequence["domain"] for sequence in shown["rows"]) == {
        "mixed/text": 4,
        "mixed/code": 1,
        "java/code": 3,
    }
    assert cli.main(["data", "stats", str(run), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    domains = account["domains"]
    assert account["corpus"] == f"{mixed}, {java}"
    assert domains["java/code"]["tokens"] == 3 * domains["mixed/code"]["tokens"]
    assert domains["mixed/text"]["wanted"] == 0.5
    assert all(domain["epochs"] > 0 for domain in domains.values())
    assert cli.main(["data", "show", str(run)]) == 3
    error = capsys.readouterr().err
    assert f"java ({java})" in error and f"loopcoder data show {mixed}" in error

    assert_the_fix_is_ready_to_paste(run, f"data.corpora={corpora.replace('weight:3', 'weight:1')}")
    assert_the_fix_is_ready_to_paste(run, f"data.corpora=[{{path:{mixed},name:mixed}}]")
    anew = f"{{path:{mixed},weight:1,name:mixed}},{{path:{java},name:java}}"
    stages = f"data.stages=[{{corpora:[{anew}]}}]"
    assert_the_fix_is_ready_to_paste(run, "data.corpora=[]", stages)


def assert_the_fix_is_ready_to_paste(run: Path, *overrides: str) -> None:
    """Other corpora or weights for a stage that has begun: what is printed has the old until here,
    and the new from here on."""
    found = find(run)
    before = load_config(found.path / CONFIG)
    asked = changed(before, overrides)
    asked = replace(asked, data=settled(asked.data))
    assert not list(check_joined(asked))
    (problem,) = other_position(found, found.state(), before, asked)
    assert "some sequences would be trained twice" in problem.why
    pasted = changed(asked, shlex.split(problem.fix)[:2])
    assert not list(check_joined(pasted))
    assert not list(other_position(found, found.state(), before, pasted))
    assert [stage.mixture for stage in pasted.stages] == [
        before.stages[0].mixture,
        asked.stages[0].mixture,
    ]
    assert pasted.stages[0].until == found.state().position.tokens
