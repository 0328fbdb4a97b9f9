"""What a decoder generates of an exported folder is what `generate()` of transformers does."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.hf.export import export
from loopcoder.infer.loading import load_decoder
from tests.hf.folders import VOCAB, made
from tests.infer import in_transformers
from tests.parts import one_of

pytest.importorskip("transformers")

LENGTHS, STEPS = (1, 6, 65, 66, 130, 300), 200
MODELS: dict[str, dict[str, Any]] = {
    "r1": dict(num_loops=1),
    "r2": dict(num_loops=2, window=64),
    "r3 query gate": dict(num_loops=3, gate="query"),
    "r4": dict(num_loops=4, window=64),
    "r2 without a shift": dict(shift=False),
    "r2 own K/V": dict(kv_sharing="own"),
}


@pytest.mark.hf
@pytest.mark.parametrize("name", one_of(list(MODELS)))
def test_200_greedy_tokens_of_an_unequal_batch(
    ranks: Any, seed: int, rng: random.Random, tmp_path: Path, name: str
) -> None:
    case = made(tmp_path, seed, **MODELS[name])
    # generate would take 0 for padding; and it knows modules by the name of their folder
    folder = export(case.checkpoint, tmp_path / f"export_{seed}").folder
    decoder = load_decoder(folder, num_places=len(LENGTHS), max_length=max(LENGTHS) + STEPS).decoder
    # rows that pad the vocabulary are no tokens for the decoder
    tokens = decoder.vocabulary
    prompts = [[rng.randrange(1, tokens) for _ in range(length)] for length in LENGTHS]
    theirs = generated(folder, prompts, tmp_path, suppress_tokens=list(range(tokens, VOCAB)))
    logits = decoder.prefill(dict(enumerate(prompts)))
    running = dict(enumerate(range(len(prompts))))
    for step in range(STEPS):
        for place, row in list(running.items()):
            token = theirs[place][step]
            best, second = logits[row].topk(2).values.tolist()
            if int(logits[row].argmax()) != token:
                assert best - second < 1e-4 * float(logits[row].abs().max()), (place, step)
                assert logits[row][token] == second, (place, step)
        if step == STEPS - 1:
            break
        places = rng.sample(sorted(running), len(running))
        running = {place: row for row, place in enumerate(places)}
        logits = decoder.step(places, torch.tensor([theirs[p][step] for p in places]))


def generated(
    folder: Path, prompts: list[list[int]], scratch: Path, **options: Any
) -> list[list[int]]:
    given, output = scratch / "asked.json", scratch / "generated.json"
    options["max_new_tokens"] = STEPS
    given.write_text(json.dumps({"prompts": prompts, "options": options}))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "home")}
    command = [sys.executable, in_transformers.__file__, folder, given, output]
    done = subprocess.run(
        [str(x) for x in command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[list[int]] = json.loads(output.read_text())
    assert all(len(ids) == STEPS for ids in found)
    return found
