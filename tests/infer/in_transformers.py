"""Greedy continuations by `generate()` of an exported folder.

    python in_transformers.py FOLDER PROMPTS OUTPUT STEPS

PROMPTS and OUTPUT are JSON: lists of ids; the continuations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main(folder: str, prompts: str, output: str, steps: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=int(steps))
    out = []
    for ids in json.loads(Path(prompts).read_text()):
        found = model.generate(torch.tensor([ids]), **options)
        out.append(found[0, len(ids) :].tolist())
    Path(output).write_text(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
