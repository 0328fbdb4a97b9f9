"""A trained model in one process: `loopcoder.load` and `loopcoder evaluate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import loopcoder
from loopcoder import loaded
from loopcoder.backends import Backends
from loopcoder.errors import InputError
from loopcoder.metrics.writer import read_metrics
from tests.cli.run_dirs import run_dir as saved_run
from tests.train.conftest import Start, finish

SCRIPT = """
import math, sys
from pathlib import Path
import torch
import loopcoder

run_dir, text = Path(sys.argv[1]), "def loop_3(model):\\n    return 7\\n" * 3
run = loopcoder.load(run_dir)
assert run.step == 6 and run.run_dir == run_dir.resolve()
assert len(run.metrics()) == 6 and run.events()[0]["kind"] == "run_started"
ids = run.tokenizer.encode(text).ids

logits = run.logits(text, every_loop=True)
assert logits.shape == (2, len(ids), run.tokenizer.get_vocab_size())
assert torch.equal(run.logits(ids), logits[-1])
loss = run.loss(text)
assert loss.shape == (2, len(ids) - 1)
# with the rows of the head that stand for no token
from loopcoder.model.documents import Documents
row = torch.tensor([ids])
with torch.no_grad():
    raw = run.model(row, Documents.whole_rows(1, len(ids), row.device), None, every_loop=True)
assert torch.equal(raw[:, :, 0, : logits.shape[-1]], logits)
exact = -raw[:, :-1, 0].double().log_softmax(-1).gather(
    -1, torch.tensor(ids[1:]).expand(2, -1)[..., None]
).squeeze(-1)
assert (loss - exact).abs().max() < 1e-4, (loss - exact).abs().max()
bits = float(loss[-1].sum()) / math.log(2) / len(text.encode())
assert abs(run.bits_per_byte(text) - bits) < 1e-6

# another checkpoint, another number of loops; the first model goes on working
third = loopcoder.load(run_dir / "checkpoints" / "step_00000003", num_loops=3)
assert third.step == 3 and third.loss(text).shape[0] == 3
more = loopcoder.load(run_dir, num_loops=3).loss(text)
assert torch.equal(more[:2], loss) and not torch.equal(more[1], more[2])
assert torch.equal(run.loss(text), loss)
one = loopcoder.load(run_dir, num_loops=1).loss(text)
assert torch.equal(one[0], loss[0])
for call in (lambda: run.loss("a"[:0]), lambda: loopcoder.load(run_dir / "plots"),
             lambda: loopcoder.load(run_dir, num_loops=0)):
    try:
        call()
    except __import__("loopcoder.errors").errors.InputError as error:
        assert error.problems[0].fix
    else:
        raise AssertionError("no error")
print("all is well")
"""


@pytest.mark.parametrize(
    ("arguments", "says", "fix"),
    [
        (dict(num_loops="x"), "num_loops='x'", "num_loops=2, as it was trained"),
        (dict(num_loops=2.0), "num_loops=2.0", "num_loops=2, as it was trained"),
        (dict(num_loops=True), "num_loops=True", "num_loops=2, as it was trained"),
        (dict(num_loops=0), "num_loops=0", "num_loops=1"),
        (dict(precision="fp8"), "precision=fp8", "precision=bf16"),
        (dict(device="nope"), "device=nope", "leave device out"),
        (dict(device="cuda:1"), "device=cuda:1", "leave device out"),
        (dict(device="cpu", num_loops=0), "num_loops=0", "num_loops=1"),  # and not the device
        (dict(device=torch.device("cpu"), num_loops=0), "num_loops=0", "num_loops=1"),
        (dict(path="unsaved"), "no complete checkpoint", "of a run"),
        (dict(path="nowhere"), "there is no folder nowhere", "loopcoder runs"),
        (dict(path="unsaved/config.yaml"), "no complete checkpoint", "of a run"),
        (dict(path=None), "load(None)", "loopcoder.load("),
    ],
)
def test_wrong_arguments_say_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], says: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loaded, "detect", Backends)
    saved_run(Path("run"), losses=5, saved=5)
    saved_run(Path("unsaved"), losses=1)
    with pytest.raises(InputError) as caught:
        loopcoder.load(**({"path": "run"} | arguments))
    (problem,) = caught.value.problems
    assert says in problem.fact and fix in problem.fix and problem.why


def test_one_device_of_a_gpu_machine_is_chosen_before_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "detect", lambda: Backends(2, "NVIDIA H100"))
    for device, fix in (("cpu", "CUDA_VISIBLE_DEVICES= "), ("cuda:1", "CUDA_VISIBLE_DEVICES=1 ")):
        with pytest.raises(InputError) as caught:
            loopcoder.load(tmp_path, device=device)
        assert fix in caught.value.problems[0].fix


@pytest.mark.parametrize("text", [5, None, ["a"], [3, -1], [10**9]])
def test_what_is_no_text_is_refused(text: Any) -> None:
    state = SimpleNamespace(tokens=None)
    checkpoint: Any = SimpleNamespace(state=lambda: state)
    run = loaded.LoadedRun(checkpoint, *3 * [None])  # type: ignore[arg-type]
    run.__dict__["tokenizer"] = SimpleNamespace(get_vocab=lambda: {"a": 299})
    with pytest.raises(InputError) as caught:
        run.loss(text)
    assert caught.value.problems[0].fix


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaded") / "run"


@pytest.mark.dist_full
def test_a_run_is_loaded_and_evaluated(
    start: Start, run_dir: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Saved by two processes, and read without a launcher: the validation loss of the run, whatever
    the layout; a newer source folder changes nothing."""
    finish(
        start(
            run_dir,
            "train.max_steps=6",
            "checkpoint.interval=3",
            "parallel=tp2",
            "parallel.nproc_per_node=2",
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run_dir)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "all is well" in done.stdout, done.stdout + done.stderr

    def evaluate(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "loopcoder", "evaluate", *arguments]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    expected = read_metrics(run_dir / "metrics.jsonl")[-1]
    lines = evaluate(f"checkpoint={run_dir}", "--all", "--json").splitlines()
    first, last = (json.loads(line) for line in lines)
    assert (first["step"], last["step"]) == (3, 6)
    keys = [k for k in expected if k.startswith("val/") and isinstance(expected[k], float)]
    assert "val/loss/code/loop0" in keys
    for key in (k for k in keys if k in last):
        assert last[key] == pytest.approx(expected[key], rel=1e-5), key
    assert last["val/loss"] < first["val/loss"]

    text = evaluate(f"checkpoint={run_dir}", "model.num_loops=3", "eval.sequences_per_domain=2")
    assert "R = 3" in text and text.count("->") == 6

    other = tmp_path / "other"
    other.mkdir()
    for i in range(40):
        (other / f"x{i}.py").write_text(f"def other_{i}():\n    return {i}\n" * 30)
    text = evaluate(f"checkpoint={run_dir}", "data=files", f"path={other}",
                    "data.mixture={code:1}", "data.build.filters.enabled=false",
                    "data.build.near_dedup.enabled=false")  # fmt: skip
    assert "code" in text and "text" not in text.split("nats per token")[1]
