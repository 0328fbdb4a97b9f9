"""All measures of one sequence, straight from their definitions: whole maps, loops, SVD."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from loopcoder.model.probe import Probe

Values = dict[tuple[str, str, int, int | None], list[float]]
"""By measure, variant, loop (from 1) and layer: one value per token, NaN where not defined."""


class Recorder(Probe):
    """Keeps everything of a batch."""

    def __init__(self) -> None:
        self.embedding: Tensor | None = None
        self.inputs: list[Tensor] = []
        self.attention: dict[tuple[int, int], tuple[Tensor | None, ...]] = {}
        self.raw: list[Tensor] = []
        self.normed: list[Tensor] = []
        self.logits: list[Tensor] = []

    def at_input(self, loop_idx: int, hidden: Tensor) -> None:
        self.inputs.append(hidden.clone())
        if loop_idx == 0:
            self.embedding = hidden.clone()

    def at_attention(self, loop_idx: int, layer: int, *tensors: Tensor | None) -> None:
        self.attention[loop_idx, layer] = tensors

    def at_output(
        self, loop_idx: int, raw: Tensor, normed: Tensor, labels: Any, read_out: Any, read: Any
    ) -> None:
        self.raw.append(raw.clone())
        self.normed.append(normed.clone())
        self.logits.append(read_out(normed, None))


def rank_of(matrix: Tensor) -> float:
    """exp(-sum s log s) of the singular values, scaled to sum 1."""
    s = torch.linalg.svdvals(matrix)
    s = s / s.sum()
    s = s[s > 1e-14]
    return math.exp(-(s * s.log()).sum())


def attention_map(tensors: tuple[Any, ...], start: Tensor, window: int) -> Tensor:
    """[H, S, S], of a batch of one."""
    q, k, shared, gate = (None if x is None else x[:, 0].double() for x in tensors)
    length, heads, width = q.shape
    t, s = torch.arange(length)[:, None], torch.arange(length)[None]
    causal = (s <= t) & (s >= start[:, None])

    def softmax(keys: Tensor, seen: Tensor) -> Tensor:
        keys = keys.repeat_interleave(heads // keys.shape[1], 1)
        score = torch.einsum("thd,shd->hts", q, keys) / math.sqrt(width)
        return score.masked_fill(~seen, -math.inf).softmax(-1)

    if shared is None:
        return softmax(k, causal)
    g = gate.T[..., None]
    return g * softmax(shared, causal) + (1 - g) * softmax(k, causal & (t - s <= window))


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.log() - q.log()), 0).sum(-1)


def entropy(p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * p.log(), 0).sum(-1)


def without(p: Tensor, start: Tensor) -> Tensor:
    """Leave out the first key of each query's document."""
    p = p.clone()
    p[:, torch.arange(p.shape[1]), start] = 0
    return p / p.sum(-1, keepdim=True)


def measure(
    seen: Recorder,
    labels: Tensor,
    mask: Tensor,
    start: Tensor,
    window: int,
    loops: int,
    subset: Any,
) -> Values:
    """Measure a sequence; values of whole sequences are lists of one.

    Args:
        labels, mask, start: [S]
        subset: `Subset`, or None.
    """
    out: Values = defaultdict(list)
    inside = mask > 0
    nan = torch.full(labels.shape, math.nan, dtype=torch.float64)

    def put(measure: str, variant: str, loop: int, layer: int | None, values: Tensor) -> None:
        out[measure, variant, loop, layer] = torch.where(inside, values, nan).tolist()

    assert seen.embedding is not None
    for variant, states in (("raw", seen.raw), ("normed", seen.normed)):
        h = [seen.embedding[:, 0].double(), *(x[:, 0].double() for x in states)]
        step = [None, *((h[r] - h[r - 1]).norm(dim=-1) for r in range(1, len(h)))]
        for r in range(1, loops + 1):
            put("step_size", variant, r, None, step[r])
            if r + 1 < len(h):
                put("fixed_point_gap", variant, r, None, step[r + 1])
            if r > 1:
                a, b = h[r] - h[r - 1], h[r - 1] - h[r - 2]
                cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
                put("alignment", variant, r, None, cosine)
                cost = nan.clone()
                for i in range(1, len(labels)):
                    if start[i] != i:
                        cost[i] = (h[r - 1][i] - h[r - 1][i - 1]).norm()
                put("offset_cost", variant, r, None, cost)
            if variant == "normed" and subset is not None:
                rows = h[r][subset.tokens]
                rows = rows / rows.square().mean(-1, keepdim=True).sqrt()
                out["effective_rank", "normed", r, None] = [rank_of(rows)]
    alone = start == torch.arange(len(start))
    layers = sorted({layer for _, layer in seen.attention})
    for layer in layers:
        maps = [attention_map(seen.attention[r, layer], start, window) for r in range(loops)]
        for r, now in enumerate(maps):
            others = without(now, start)
            where = {"all": (now, nan.isnan()), "no_first": (others, ~alone)}
            for variant, (p, defined) in where.items():
                values = torch.where(defined, entropy(p).mean(0), nan)
                put("attention_entropy", variant, r + 1, layer, values)
                if r > 0:
                    q = maps[r - 1] if variant == "all" else without(maps[r - 1], start)
                    values = torch.where(defined, kl(p, q).mean(0), nan)
                    put("attention_change", variant, r + 1, layer, values)
            gate = seen.attention[r, layer][3]
            if gate is not None:
                put("gate", "", r + 1, layer, gate[:, 0].double().mean(-1))
            if subset is not None:
                ranks, cosines = [], []
                for query in subset.queries.tolist():
                    vectors = now[:, query]
                    unit = vectors / vectors.norm(dim=-1, keepdim=True)
                    pairs = [
                        float(unit[i] @ unit[j])
                        for i in range(len(unit))
                        for j in range(len(unit))
                        if i != j
                    ]
                    ranks.append(rank_of(vectors))
                    cosines.append(sum(pairs) / len(pairs))
                out["head_rank", "", r + 1, layer] = [sum(ranks) / len(ranks)]
                out["head_cosine", "", r + 1, layer] = [sum(cosines) / len(cosines)]
    p = [x[:, 0].double().softmax(-1) for x in seen.logits]
    at = torch.arange(len(labels))
    for r in range(1, loops + 1):
        true = p[r - 1][at, labels]
        put("loss", "", r, None, -true.log())
        put("output_entropy", "", r, None, entropy(p[r - 1]))
        rank = 1 + (p[r - 1] > true[:, None]).sum(-1)
        put("rank", "", r, None, rank.double())
        put("top1", "", r, None, (rank == 1).double())
        confidence, prediction = p[r - 1].max(-1)
        put("_confidence", "", r, None, confidence)
        put("_prediction", "", r, None, prediction.double())
        if r > 1:
            gain = true.log() - p[r - 2][at, labels].log()
            put("loss_gain", "", r, None, gain)
            put("output_shift", "", r, None, kl(p[r - 1], p[r - 2]))
    return out
