"""Imported weights are trained on in any layout, from one loss; importing takes little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loopcoder.checkpoint import format as layout
from loopcoder.config.schema import ModelConfig
from loopcoder.hf.config import to_released
from loopcoder.hf.export import export
from loopcoder.hf.folder import ReleasedFolder
from loopcoder.hf.importing import import_folder, plan
from tests.configs import small_model
from tests.conftest import fresh_seed
from tests.hf.released import VOCAB, llama_config, random_tensors, write_folder
from tests.parts import one_of
from tests.train.conftest import (  # noqa: F401
    REPOSITORY,
    Start,
    documents,
    environment,
    finish,
    start,
)

LAYOUTS = [(), ("parallel.tp=2", "parallel.sp=true"), ("parallel.pp=2",)]


def shaped_as_small(num_loops: int) -> ModelConfig:
    """Return a model of the shape that the overrides of these runs ask for."""
    return small_model(
        num_loops=num_loops, hidden_size=64, ffn_hidden_size=128, head_dim=16, rope_theta=5e5
    )


@pytest.mark.dist_full
@pytest.mark.parametrize("loops", one_of([1, 2]))
def test_it_is_trained_on_in_any_layout(
    tmp_path: Path,
    start: Start,  # noqa: F811
    loops: int,
) -> None:
    dense = shaped_as_small(1)
    tensors = random_tensors(dense, fresh_seed(), torch.float32)
    folder = write_folder(tmp_path / "in", llama_config(dense), tensors)
    out = tmp_path / "out"
    tokenizer = "" if loops == 1 else "none"
    import_folder(plan(ReleasedFolder(folder), [f"model.num_loops={loops}"], tokenizer), out)
    losses = []
    for i, parallel in enumerate(LAYOUTS):
        process = start(
            tmp_path / f"run{i}",
            "--config-dir", str(out / "conf"), "model=imported", f"checkpoint.init_from={out}",
            f"data.build.tokenizer={folder}", "precision=fp32", "train.max_steps=3",
            f"parallel.nproc_per_node={2 if parallel else 1}", *parallel,
        )  # fmt: skip
        finish(process)
        lines = (tmp_path / f"run{i}" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
    assert len(losses[0]) == 3
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=2e-5)


@pytest.mark.dist_full
def test_after_training_and_resuming_an_export_has_the_rows_and_the_specials_that_came(
    tmp_path: Path,
    start: Start,  # noqa: F811
) -> None:
    model, out = shaped_as_small(1), tmp_path / "out"
    tensors = random_tensors(model, fresh_seed(), torch.float32)
    folder = write_folder(tmp_path / "in", llama_config(model) | {"bos_token_id": 3}, tensors)
    import_folder(plan(ReleasedFolder(folder)), out)
    for steps in (1, 2):
        process = start(
            tmp_path / "run",
            "--config-dir", str(out / "conf"), "model=imported", f"checkpoint.init_from={out}",
            f"data.build.tokenizer={folder}", "precision=fp32", f"train.max_steps={steps}",
        )  # fmt: skip
        finish(process)
        trained = layout.find(tmp_path / "run")
        assert trained.step == steps and trained.state().vocab_size == 384
        back = export(trained, tmp_path / f"back{steps}").folder
        weights = load_file(back / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert len(weights[name]) == VOCAB
        assert json.loads((back / "config.json").read_text())["bos_token_id"] == 3


MEASURE = """
import sys, threading
from pathlib import Path

from loopcoder.hf.folder import ReleasedFolder
from loopcoder.hf.importing import import_folder, plan

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

planned = plan(ReleasedFolder(Path(sys.argv[1])), tokenizer="none")
before = peak = anonymous()
done = threading.Event()

def look():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

thread = threading.Thread(target=look)
thread.start()
import_folder(planned, Path(sys.argv[2]))
done.set()
thread.join()
print(peak - before)
"""


@pytest.mark.data_full
def test_only_a_few_tensors_are_in_memory(tmp_path: Path) -> None:
    model = small_model(
        num_layers=9, hidden_size=1024, ffn_hidden_size=4096, num_attention_heads=8,
        num_kv_heads=2, head_dim=128,
    )  # fmt: skip
    tensors = random_tensors(model, 1, torch.bfloat16)
    size = sum(x.nbytes for x in tensors.values())
    largest = max(x.nbytes for x in tensors.values())
    assert size > 250e6
    folder = write_folder(tmp_path / "in", to_released(model, VOCAB), tensors, shards=20)
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out")]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    print(f"{size / 1e6:.0f} MB of weights, peak of {int(found.stdout) / 1e6:.0f} MB")
    assert int(found.stdout) < 4 * largest + 30e6
