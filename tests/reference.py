"""A Parallel Loop Transformer written down from the equations, sharing no code with the package.

One sequence at a time, dense masks, one dictionary of weights under the released model's names. It
runs in whatever precision its weights have: float64 says what is right, and fp32 how near it
can come on the same input (`Rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from loopcoder.config.objective import ObjectiveConfig
    from loopcoder.config.schema import ModelConfig, OptimConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x: [T, heads, d]; the first and second half of d are the pairs."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (positions.double()[:, None] * frequency).to(x.dtype)[:, None]
    x1, x2 = x[..., :half], x[..., half:]
    return torch.cat([x1 * angle.cos() - x2 * angle.sin(), x2 * angle.cos() + x1 * angle.sin()], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """q: [T, H, d]; k, v: [T, G, d]; allowed: [T, T]. Head h reads K/V head h // (H/G)."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    score = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    weight = score.masked_fill(~allowed, -math.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weight, v)


def forward(
    w: dict[str, Tensor],
    ids: Tensor,
    start: Tensor,
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    loops: int,
    window: int,
    theta: float,
    eps: float,
    a: float,
    b: float,
    shift: bool = True,
    own_kv: bool = False,
    norm_per_loop: bool = True,
    gate: str = "hidden",
    untied: list[dict[str, Tensor]] | None = None,
    inputs: list[Tensor] | None = None,
    attended: dict[tuple[int, int], tuple[Tensor | None, ...]] | None = None,
    outputs: list[tuple[Tensor, Tensor]] | None = None,
) -> list[Tensor]:
    """Return the logits after every loop, each [T, V].

    ids: [T]; start: index of the first token of each position's document [T]. `untied` gives each
    loop its own copy of the weights; `inputs` is filled with the input of every loop [T, D],
    `attended` with queries, keys, loop 0's keys and gates by loop and layer, `outputs` with every
    loop's output before and after the final norm.
    """
    length = len(ids)
    index = torch.arange(length)
    position = index - start
    allowed = (index[None] <= index[:, None]) & (index[None] >= start[:, None])
    near = allowed & (index[:, None] - index[None] <= window)
    copies = untied or [w] * loops
    e = w["model.embed_tokens.weight"][ids]
    h, kept, logits = e.clone(), {}, []
    for r in range(loops):
        w_r = copies[r]
        if r > 0:
            s = h
            if shift:
                s = h[(index - 1).clamp(min=0)].masked_fill(position[:, None] == 0, 0)
            h = a * e + b * s
        if inputs is not None:
            inputs.append(h)
        for layer in range(layers):
            p = f"model.layers.{layer}."
            x = rms_norm(h, w_r[p + "input_layernorm.weight"], eps)
            q, k, v = (
                (x @ w_r[p + f"self_attn.{n}_proj.weight"].T).view(length, count, -1)
                for n, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
            )
            q, k = rope(q, position, theta), rope(k, position, theta)
            if r == 0 or own_kv:
                kept[layer] = (k, v)
                o = attend(q, k, v, allowed)
                shown: tuple[Tensor | None, ...] = (q, k, None, None)
            else:
                g_in = p + "self_attn.plt_gate."
                if gate == "hidden":
                    normed = rms_norm(h, w_r[g_in + "gate_norm.weight"], eps)
                    logit = normed @ w_r[g_in + "weight"].T + w_r[g_in + "bias"]
                else:
                    logit = (q * w_r[g_in + "weight"]).sum(-1) + w_r[g_in + "bias"]
                g = torch.sigmoid(logit)[..., None]
                o = g * attend(q, *kept[layer], allowed) + (1 - g) * attend(q, k, v, near)
                shown = (q, k, kept[layer][0], g[..., 0])
            if attended is not None:
                attended[r, layer] = shown
            h = h + o.reshape(length, -1) @ w_r[p + "self_attn.o_proj.weight"].T
            x = rms_norm(h, w_r[p + "post_attention_layernorm.weight"], eps)
            gated = torch.nn.functional.silu(x @ w_r[p + "mlp.gate_proj.weight"].T)
            h = (
                h
                + (gated * (x @ w_r[p + "mlp.up_proj.weight"].T))
                @ w_r[p + "mlp.down_proj.weight"].T
            )
        normed = rms_norm(h, w_r["model.norm.weight"], eps)
        if outputs is not None:
            outputs.append((h, normed))
        if norm_per_loop:
            h = normed
        logits.append(normed @ w_r["lm_head.weight"].T)
    return logits


def arguments(model: ModelConfig) -> dict[str, Any]:
    """Return what `forward` takes of a config."""
    return dict(
        layers=model.num_layers,
        heads=model.num_attention_heads,
        kv_heads=model.num_kv_heads,
        loops=model.num_loops,
        window=model.window,
        theta=model.rope_theta,
        eps=model.norm_eps,
        a=model.a,
        b=model.b,
        shift=model.shift,
        own_kv=model.kv_sharing == "own",
        norm_per_loop=model.norm_per_loop,
        gate=model.gate,
    )


def evaluate(
    weights: dict[str, Tensor],
    model: ModelConfig,
    tokens: Tensor,
    labels: Tensor,
    mask: Tensor,
    start: Tensor,
    objective: ObjectiveConfig | None = None,
    loops: int | None = None,
) -> dict[str, Tensor]:
    """Return what every loop gives and the gradients of the last one's loss, or of the objective,
    in the weights' precision.

    That is, by loop: logits, the mean loss, and the squared norm of the gradient at its input; and
    the gradient of each weight, under its name; with an objective its value.

    tokens, labels, mask, start: [B, S]; start is the index of the first token of the document.
    `loops` run, or all of the model's.
    """
    weights = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    inputs: list[Tensor] = []  # of all loops of the first row, then of the next
    outputs: list[tuple[Tensor, Tensor]] = []
    options = arguments(model) | dict(loops=loops or model.num_loops)
    rows = [
        forward(weights, *row, **options, inputs=inputs, outputs=outputs)
        for row in zip(tokens, start, strict=True)
    ]
    logits = [torch.stack([row[r] for row in rows], dim=1) for r in range(options["loops"])]
    losses = [mean_loss(x, labels, mask) for x in logits]
    minimised, extra = losses[-1], {}
    if objective is not None and (objective.loop_weights or objective.exit):
        hidden = (
            torch.stack([normed for _, normed in outputs])
            .unflatten(0, (len(rows), -1))
            .transpose(0, 1)
        )
        tokens_losses = torch.stack([token_losses(x, labels) for x in logits])
        minimised = combined(objective, tokens_losses, hidden, weights, mask)
        extra["objective"] = minimised.detach()
    grads = torch.autograd.grad(minimised, [*weights.values(), *inputs], materialize_grads=True)
    at_inputs = torch.stack(grads[len(weights) :]).unflatten(0, (len(rows), -1))
    squares = at_inputs.square().sum((0, 2, 3))
    by_loop = {"logits": logits, "loss": losses, "gradient at input": squares}
    out = {f"{kind} {r}": x.detach() for kind, xs in by_loop.items() for r, x in enumerate(xs)}
    return out | extra | dict(zip(weights, grads, strict=False))


def combined(
    objective: ObjectiveConfig,
    losses: Tensor,
    hidden: Tensor,
    weights: dict[str, Tensor],
    mask: Tensor,
) -> Tensor:
    """losses: of every loop and token [R, B, S]; hidden: [R, B, S, D]; mask: [B, S]."""
    if objective.loop_weights:
        own = losses.new_tensor(objective.loop_weights[: len(losses)])
        by_loop = (losses * mask).sum((1, 2)) / mask.sum()
        return (own * by_loop).sum() / own.sum()
    left, value = torch.ones_like(losses[0]), torch.zeros_like(losses[0])
    for r, loss in enumerate(losses):
        leaves = torch.sigmoid(
            hidden[r] @ weights["exit_gate.weight"][0] + weights["exit_gate.bias"]
        )
        p = left * leaves if r < len(losses) - 1 else left
        left = left * (1 - leaves)
        value = value + p * loss + objective.exit_entropy * p * torch.log(p)
    return (value * mask).sum() / mask.sum()


def mean_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """logits: [S, B, V]; labels, mask: [B, S]."""
    return (token_losses(logits, labels) * mask).sum() / mask.sum()


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """logits: [S, B, V]; labels: [B, S]."""
    return torch.nn.functional.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")


def train(
    weights: dict[str, Tensor],
    model: ModelConfig,
    optim: OptimConfig,
    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    objective: ObjectiveConfig | None = None,
    loops: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Return what `evaluate` gives for the first step but its logits; the loss and gradient norm of
    every step, which runs as many loops; and the weights after all of them. Each batch is what
    `evaluate` takes."""
    weights = {name: w.clone() for name, w in weights.items()}
    groups = [dict(params=[w]) for w in weights.values()]
    adam = torch.optim.AdamW(groups, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    out: dict[str, Tensor] = {}
    by_step = loops or (model.num_loops,) * len(batches)
    for step, batch in enumerate(batches):
        found = evaluate(weights, model, *batch, objective, by_step[step])
        if step == 0:
            out |= {name: x for name, x in found.items() if not name.startswith("logits")}
        for name, w in weights.items():
            w.grad = found[name].clone()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), optim.clip_grad)
        for group, (name, w) in zip(adam.param_groups, weights.items(), strict=True):
            rate = _rate(name, model, optim, step + 1) if w.dim() > 1 else 1.0
            group["lr"] = optim.lr * rate
            group["weight_decay"] = optim.weight_decay / rate if w.dim() > 1 else 0.0
        adam.step()
        out[f"step {step} loss"] = found[f"loss {by_step[step] - 1}"]
        out[f"step {step} norm"] = norm
    return out | {f"after {name}": w for name, w in weights.items()}


def _rate(name: str, model: ModelConfig, optim: OptimConfig, step: int) -> float:
    """Return the rate of a matrix in a step as a multiple of `optim.lr`, by its released name."""
    share = min(1.0, step / max(1, optim.vocabulary_warmup_steps))
    if "embed_tokens" in name:
        return share * optim.embedding_lr_scale
    width = 1.0 if optim.base_hidden_size is None else optim.base_hidden_size / model.hidden_size
    if "lm_head" in name:
        return share * width * optim.head_lr_scale
    is_output = "o_proj" in name or "down_proj" in name
    if optim.base_num_layers is not None:
        width *= (optim.base_num_layers / model.num_layers) ** 0.5
    return width * (model.residual_scale if is_output else 1.0)


class Rounding:
    """How far from float64 plain fp32 is on one input, by the equations above: tests' bounds.

    A result may be FACTOR times as far off as fp32 is in the worst of several orders of summation,
    and FLOOR besides, for what fp32 has exactly by accident. Orders differ by permutations of the
    hidden and feed-forward dimensions. Where a few do not excuse a result, more are tried: noise
    that is small in a few by accident is not in many, but a fault stays beyond all of them.
    """

    FACTOR = 3.0
    """One order is off 2.1 times as far as the worst of 32 others, at most (the worst tensor of
    3,960 draws with four loops); beside the worst of 2 others it is 5.2."""
    FLOOR = 4 * torch.finfo(torch.float32).eps
    """As a part of a tensor's largest element, like all errors."""
    ORDERS = (2, 32)
    """Tried always, and at most."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        compute: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        seed: int,
    ):
        """
        Args:
            weights: in float64, under the released names.
            compute: maps weights to results in their precision; those named after a weight (at the
                end, after a space) have its shape.
        """
        self.exact = compute(weights)
        self.noise = dict.fromkeys(self.exact, 0.0)
        """Largest error of fp32 so far."""
        self._weights = {name: w.float() for name, w in weights.items()}
        self._compute, self._orders = compute, 0
        self._generator = torch.Generator().manual_seed(seed)

    def bound(self, name: str) -> float:
        return self.FACTOR * self.noise[name] + self.FLOOR

    def beyond(self, errors: dict[str, float]) -> dict[str, tuple[float, float]]:
        """Return the errors that fp32 does not excuse, each with its bound."""
        least, most = self.ORDERS
        while True:
            out = {n: (e, self.bound(n)) for n, e in errors.items() if not e <= self.bound(n)}
            if self._orders >= (most if out else least):
                return out
            self._try_another_order()

    def _try_another_order(self) -> None:
        width = self._weights["model.norm.weight"].numel()
        ffn = self._weights["model.layers.0.mlp.up_proj.weight"].shape[0]
        sizes = {"d": width, "f": ffn}
        orders = {a: torch.randperm(n, generator=self._generator) for a, n in sizes.items()}
        back = {axis: order.argsort() for axis, order in orders.items()}
        found = self._compute({name: reorder(name, w, orders) for name, w in self._weights.items()})
        for name, x in found.items():
            error = relative(reorder(name, x, back), self.exact[name])
            self.noise[name] = max(self.noise[name], error)
        self._orders += 1


_AXES = {
    "embed_tokens": "-d",
    "lm_head": "-d",
    "norm": "d",
    "input_layernorm": "d",
    "post_attention_layernorm": "d",
    "q_proj": "-d",
    "k_proj": "-d",
    "v_proj": "-d",
    "o_proj": "d-",
    "gate_norm": "d",
    "plt_gate": "-d",
    "exit_gate": "-d",
    "gate_proj": "fd",
    "up_proj": "fd",
    "down_proj": "df",
}
"""By module: which axes of its weight are the hidden (d) and the feed-forward dimension (f)."""


def reorder(name: str, x: Tensor, orders: dict[str, Tensor]) -> Tensor:
    """Permute the hidden and feed-forward dimensions of a weight; others stay as they are."""
    module = name.rsplit(" ", 1)[-1].split(".")[-2:][0]
    for index, axis in enumerate(_AXES.get(module, "")[: x.dim()]):
        if axis in orders and x.shape[index] == len(orders[axis]):  # a query gate's has no d
            x = x.index_select(index, orders[axis])
    return x


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative(x, exact[name].double()) for name, x in found.items()}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, as a part of the largest element of `theirs`."""
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()
