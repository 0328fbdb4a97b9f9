"""The one dial: from the shape of a model to the numbers of its run, `${recipe:NAME}` in conf/.

Every number follows from the others of the same config, so one that is given on the command line
changes what depends on it: another batch has another rate, more tokens have more steps. What a
number rests on is in docs/recipes.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loopcoder.config.mixture import lowest_terms
from loopcoder.errors import InputError

TOKENS_PER_PARAMETER = 20
"""Of the parameters outside embedding and head (Hoffmann et al., arXiv 2203.15556)."""
BATCH_TOKENS, AT_TOKENS, BATCH_EXPONENT = 65536, 4e8, 0.383
"""Tokens per step at so many tokens in all, and the power of the latter with which they grow."""
RATE, RATE_BATCH_TOKENS = 1.7e-3, 8192
"""Rate of one loop at so many tokens per step, and at the width that conf/recipe/_dial.yaml names
as `optim.base_hidden_size`; it grows with the root of the batch. That of the layers' matrices
falls with the width, and with the root of the depth (`optim.base_num_layers`)."""
LOOPED_RATE = 0.5
"""Share of it that two loops or more train best with, and that one loop can take at once."""
CALM_WARMUP, VOCABULARY_WARMUP = 50, 200
"""Steps of warm-up that one loop needs for its rate, and steps over which embedding and head grow
to theirs where there are fewer: they learn many times as fast, and overshoot."""
EVALUATIONS = 20
"""Evaluations, and checkpoints, of a whole run."""
ACTIVATION_BYTES = 30e9
"""Memory for activations on one 80 GB GPU."""
SMALL_MICRO_BATCH = 16384
"""Tokens that one pass has at least, if the batch has them: fewer leave a GPU idle."""


def register() -> None:
    """Make `${recipe:NAME}` known to OmegaConf."""
    OmegaConf.register_new_resolver("recipe", _value, replace=True)


def _value(name: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """Return a number; `default` where train.tokens is null and the recipe has one of its own."""
    try:
        if default is not None and _root_.train.tokens is None:
            return default
        number = _NUMBERS[name](_root_)
    except (TypeError, ValueError, ArithmeticError, OmegaConfBaseException, InputError):
        number = 0
    # Something that it depends on is no positive number: the schema says which, and only that.
    return number if number > 0 else 1


def parameters(root: Any) -> int:
    """Return the weights of the layers' matrices, once whatever R is."""
    m = root.model
    heads = 2 * m.num_attention_heads + 2 * m.num_kv_heads
    layer = m.hidden_size * m.head_dim * heads + 3 * m.hidden_size * m.ffn_hidden_size
    return int(m.num_layers * layer)


def tokens(root: Any) -> int:
    return TOKENS_PER_PARAMETER * parameters(root)


def _planned(root: Any) -> float:
    return tokens(root) if root.train.tokens is None else root.train.tokens


def global_batch_size(root: Any) -> int:
    """Return sequences per step: the nearest power of two in tokens, then the nearest number that
    holds the mixture exactly. A mixture that needs more than twice as many is left to the check."""
    wanted = BATCH_TOKENS * (_planned(root) / AT_TOKENS) ** BATCH_EXPONENT
    sequences: int = 1 << max(0, round(math.log2(wanted / root.data.seq_length)))
    unit = sum(lowest_terms(dict(root.data.mixture)).values())
    return sequences if unit > 2 * sequences else max(1, round(sequences / unit)) * unit


def micro_batch_size(root: Any) -> int:
    """Return the sequences of one pass: as many as fit into memory, but small enough for eight GPUs
    to share the batch as long as a pass has SMALL_MICRO_BATCH tokens."""
    m, p, length = root.model, root.parallel, root.data.seq_length
    batch = root.train.global_batch_size
    layer = 2 * (8 * m.hidden_size + 3 * m.ffn_hidden_size)
    vocabulary = m.vocab_size or root.data.build.tokenizer_vocab_size
    per_token = m.num_loops * m.num_layers * m.get("layer_multiple", 1) * layer + 12 * vocabulary
    fits = ACTIVATION_BYTES / per_token / length
    most = int(min(fits, max(batch / 8, SMALL_MICRO_BATCH / length)))
    copies = max(1, (p.nproc_per_node or 1) // (p.tp * p.pp * p.cp))
    share = batch // copies if batch % copies == 0 else batch
    return next((n for n in range(min(most, share), 1, -1) if share % n == 0), 1)


def max_steps(root: Any) -> int:
    per_step: int = root.train.global_batch_size * root.data.seq_length
    return math.ceil(_planned(root) / per_step)


def lr(root: Any) -> float:
    per_step = root.train.global_batch_size * root.data.seq_length
    share = LOOPED_RATE if root.model.num_loops > 1 or not _warms_up(root) else 1.0
    return _two_digits(share * RATE * math.sqrt(per_step / RATE_BATCH_TOKENS))


def vocabulary_warmup_steps(root: Any) -> int:
    """Return VOCABULARY_WARMUP, which costs loops nothing. It costs one loop 0.5 nats in 33M
    tokens, which therefore has it only if its warm-up is shorter than CALM_WARMUP; 1 is none, and
    leaves the optimizer's groups as they are."""
    return VOCABULARY_WARMUP if root.model.num_loops > 1 or not _warms_up(root) else 1


def _warms_up(root: Any) -> bool:
    """Say whether the warm-up of all weights is long enough for one loop."""
    schedule = root.optim.schedule
    warmup = schedule.warmup_steps
    if warmup is None:
        warmup = math.ceil(schedule.warmup_fraction * root.train.max_steps)
    return bool(warmup >= CALM_WARMUP)


def min_lr(root: Any) -> float:
    return _two_digits(root.optim.lr / 10)


def interval(root: Any) -> int:
    """Return steps between evaluations: 1, 2 or 5 times a power of ten, at least 10."""
    wanted = max(10.0, root.train.max_steps / EVALUATIONS)
    power = 10 ** math.floor(math.log10(wanted))
    return int(max(n * power for n in (1, 2, 5) if n * power <= wanted))


def init_std(root: Any) -> float:
    """Return (2.5 d)^-1/2 (arXiv 2607.16051)."""
    return _two_digits((2.5 * root.model.hidden_size) ** -0.5)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


_NUMBERS: dict[str, Callable[[Any], Any]] = {
    f.__name__: f
    for f in (
        tokens,
        global_batch_size,
        micro_batch_size,
        max_steps,
        lr,
        vocabulary_warmup_steps,
        min_lr,
        interval,
        init_std,
    )
}
