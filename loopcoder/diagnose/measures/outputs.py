"""What each loop would predict: its states read by the final norm and the head (logit lens)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loopcoder.diagnose.measures.precision import precise


@dataclass(frozen=True)
class OutputValues:
    """One value per token, [T] each; fp32, or float64 where the logits are."""

    loss: Tensor
    """-log p of the true next token, nats."""
    entropy: Tensor
    """Of the prediction, nats."""
    rank: Tensor
    """1 + how many tokens have a larger logit than the true one, so that equal ones do not count
    against it; int64."""
    top1: Tensor
    """Whether none has a larger one (rank 1); bool."""
    shift: Tensor | None
    """KL(p(r) || p(r-1)), nats; None without a loop before."""
    confidence: Tensor
    """Probability of the most likely token."""
    prediction: Tensor
    """The most likely token; of several the one with the lowest id. int64"""


@torch.no_grad()
def read_outputs(
    logits: Tensor, before_logits: Tensor | None, labels: Tensor, *, vocab_size: int
) -> OutputValues:
    """Measure the predictions of one loop, and how they differ from those of the loop before.

    It takes some three copies of `logits` in fp32: give it a part of the tokens at a time.

    Args:
        logits, before_logits: of loops r and r-1. [T, vocabulary with its padding]
        labels: ids of the true next tokens; any valid id at tokens that are not counted. [T]
        vocab_size: ids from here on are padding, and not part of the distribution.
    """
    logits = logits[:, :vocab_size]
    true_logit = logits.gather(1, labels[:, None])
    log_p = torch.log_softmax(precise(logits), -1)
    p = log_p.exp()
    loss = -log_p.gather(1, labels[:, None])[:, 0]
    entropy = -(p * log_p).sum(-1)
    shift = None
    if before_logits is not None:
        log_q = torch.log_softmax(precise(before_logits[:, :vocab_size]), -1)
        shift = torch.sub(log_p, log_q, out=log_q).mul_(p).sum(-1)
    rank = 1 + (logits > true_logit).sum(-1)
    prediction = logits.argmax(-1)
    confidence = p.gather(1, prediction[:, None])[:, 0]
    return OutputValues(loss, entropy, rank, rank == 1, shift, confidence, prediction)


def is_largest(values: Tensor) -> Tensor:
    """Say at which loop each token has its largest value: the first of equal ones.

    Its mean over tokens is the concentration `largest_shift`.

    Args:
        values: output shifts, one row per loop. [loops, T]

    Returns:
        [loops, T] bool, True once for each token
    """
    loops = torch.arange(len(values), device=values.device)
    return loops[:, None] == values.argmax(0)
