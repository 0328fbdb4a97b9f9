"""What a step minimises when that is not the last loop's loss alone: the losses of several loops.

    weights:  sum_r w_r L_r / sum_r w_r
    exit:     sum_r p_r L_r - beta H(p),  p_r = lambda_r prod_{j<r} (1 - lambda_j)

both per token, over the loops that the step runs; p of the last one takes the rest
(arXiv 2510.25741). Either is a sum over loops, of which each needs from those before it the sum so
far and log prod (1 - lambda). These are kept for it as loop 0's K/V are (`model/shared_kv.py`), so
that loops of one graph and loops that are chunks of a pipeline have the same gradients. They stay
on the stage that has the head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loopcoder.model.shared_kv import SharedKV
from loopcoder.model.step_objective import StepObjective

_SO_FAR = "objective so far"
"""Key in a store."""


def add_loop(
    objective: StepObjective,
    loop_idx: int,
    loss: Tensor,
    exit_logit: Tensor | None,
    hidden: Tensor,
    kept: SharedKV,
) -> tuple[Tensor, Tensor | None]:
    """Add a loop that is read to the objective.

    Args:
        loss: of every token with the head on this loop's output. [B, S], fp32
        exit_logit: the gate's, of every token; None after the last loop, and without an exit
            distribution. [B, S], fp32
        hidden: what the next loop reads; what is returned of it carries gradients back.
        kept: what the loops of the microbatch keep for each other on this stage.

    Returns:
        hidden, and after the last loop what `parts` takes apart; None after others.
    """
    if loop_idx == objective.read_loops[0]:
        total = log_left = torch.zeros_like(loss)
        seen = loss.new_empty(0, 2, *loss.shape)
    else:
        total, log_left, seen = kept.of(_SO_FAR)
    is_last = loop_idx == objective.num_loops - 1
    if objective.exit_entropy is None:
        assert objective.weights is not None
        share = torch.full_like(loss, objective.weights[loop_idx])
        term = share * loss
    else:
        log_share = log_left
        if exit_logit is not None and not is_last:
            log_share = log_left + F.logsigmoid(exit_logit)
            log_left = log_left + F.logsigmoid(-exit_logit)
        share = log_share.exp()
        term = share * (loss + objective.exit_entropy * log_share)
    total = total + term
    seen = torch.cat([seen, torch.stack([loss, share])[None]]).detach()
    if is_last:
        return hidden, torch.cat([total[None], *seen.unbind(1)])
    return kept.keep(_SO_FAR, hidden, (total, log_left, seen)), None


def parts(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the output of a model apart that was given an objective of several loops.

    Args:
        output: [1 + 2 n, B, S] for n loops that were read.

    Returns:
        the objective of every token [B, S], which has a gradient; the losses of the loops and their
        shares in it, both [n, B, S] and without one.
    """
    losses, shares = output[1:].detach().chunk(2)
    return output[0], losses, shares
