"""Greedy continuations by `generate()` of an exported folder.

    python in_transformers.py FOLDER ASKED OUTPUT

ASKED is JSON: `prompts`, lists of ids; `options` of generate(). OUTPUT: the continuations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main(folder: str, asked: str, output: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    given = json.loads(Path(asked).read_text())
    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0) | given["options"]
    out = []
    for ids in given["prompts"]:
        found = model.generate(torch.tensor([ids]), **options)
        out.append(found[0, len(ids) :].tolist())
    Path(output).write_text(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
