"""What tests of continuations compare them with: one sequence after the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loopcoder.loaded import LoadedRun

TIE = 1e-4
"""Logits that are closer may change places with the order of sums in fp32."""


def check_greedy(
    state: Any, prompt: Sequence[int], found: Sequence[int], most: int, eod: int, vocab_size: int
) -> None:
    """Assert that each token of a continuation is the most probable one after what is before it,
    in one process, and that it ends where the document does."""
    run = LoadedRun(None, None, None, state)  # type: ignore[arg-type]  # of no checkpoint
    run.__dict__["vocabulary"] = vocab_size
    state.network.eval()
    logits = run.logits([*prompt, *found][:-1])[len(prompt) - 1 :]
    state.network.train()
    chosen = logits.gather(1, torch.tensor(found)[:, None])[:, 0]
    assert (logits.amax(1) - chosen).max() <= TIE, (prompt, found)
    assert eod not in found[:-1]
    assert len(found) == most or found[-1] == eod
