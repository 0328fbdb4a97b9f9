"""What the forward pass keeps for the backward pass on one rank: an estimate, stated as such.

It counts the large tensors of a layer's run by name. What allocators and libraries need on the way
is not in it. On small models it is compared with what autograd really saves (`tests/plan`).
"""

from __future__ import annotations

from loopcoder.config.schema import Config, ModelConfig
from loopcoder.parallel.layout import microbatch_group, stage_layers

LOGITS_BYTES = 12
"""Of one logit: in 16 bits, in fp32 for the loss, and the gradient of both."""


def number_bytes(config: Config) -> int:
    """Return the bytes of a weight or an activation."""
    return 4 if config.precision.name == "fp32" else 2


def activation_bytes(config: Config, pp_rank: int, num_microbatches: int, seq_length: int) -> int:
    """Estimate what a rank holds of its microbatches at the fullest moment, logits aside.

    Args:
        config: `precision.name`, `model.layer_spec` and `model.kernels` settled.
        pp_rank: the pipeline stage.
        num_microbatches: of one optimizer step on this rank.
        seq_length: tokens of a sequence.
    """
    model, parallel = config.model, config.parallel
    tokens = config.train.micro_batch_size * seq_length
    layers = sum(map(len, stage_layers(model.num_layers, parallel.pp, parallel.chunks_per_loop, pp_rank)))
    first, later = layer_bytes(config, gated=False), layer_bytes(config, gated=model.has_gates)
    size, hidden = number_bytes(config), _hidden(config)
    if parallel.recompute == "full":
        # Of every run its input, of loop 0 its keys and values as well; one run is made again.
        kept = model.num_loops * size * hidden + 2 * size * _heads(config, model.num_kv_heads)
        runs = layers * kept + max(first, later)
    else:
        runs = layers * (first + (model.num_loops - 1) * later)
    # Around the layers: the embedding, and what goes into the final norm and comes out of it.
    around = (1 + 2 * model.num_loops) * size * hidden
    chunks = model.num_loops * parallel.chunks_per_loop
    in_flight = microbatches_in_flight(parallel.pp, pp_rank, num_microbatches, chunks)
    return round(in_flight * tokens * (runs + around)) + _mask_bytes(config, seq_length)


def microbatches_in_flight(pp: int, pp_rank: int, microbatches: int, chunks: int) -> float:
    """Return how many microbatches of a stage wait for their backward pass at most.

    megatron-core runs so many chunks forward before the first one backward (pipeline_parallel/
    schedules.py); a chunk is 1/chunks of a microbatch.
    """
    if pp == 1:
        return 1.0
    if chunks == 1:
        return float(min(microbatches, pp - pp_rank))
    if microbatches < pp:
        return float(microbatches)  # such a pipeline is refused elsewhere
    group = microbatch_group(microbatches, pp)
    warm_up = 2 * (pp - pp_rank - 1) + (chunks - 1) * group + 1
    return min(warm_up, microbatches * chunks) / chunks


def layer_bytes(config: Config, *, gated: bool) -> int:
    """Estimate what one run of a layer keeps per token, in bytes: `gated` in a later loop."""
    model, tp, size = config.model, config.parallel.tp, number_bytes(config)
    hidden, ffn = _hidden(config), model.ffn_hidden_size // tp
    q, kv = _heads(config, model.num_attention_heads), _heads(config, model.num_kv_heads)
    # What goes into a matrix product is kept in FP8 where that computes it.
    into = 1 if config.precision.name.startswith("fp8") else size
    is_fused = model.layer_spec == "te"
    norms = 2 * size * hidden + 2 * into * hidden
    # v is a part of what the projection returned, which therefore stays whole.
    projected = size * (q + 2 * kv) + size * (q + kv)
    mlp = size * 2 * ffn + into * ffn + (0 if is_fused else size * ffn)
    attention = into * q + (_two_attentions(config, q, hidden) if gated else 0)
    return norms + projected + mlp + attention


def _two_attentions(config: Config, q: int, hidden: int) -> int:
    """What a gated run keeps besides the mixture: the attentions, and the gate's normed input."""
    model, size = config.model, number_bytes(config)
    if model.kernels == "cuda":
        outputs = size * q
    elif model.layer_spec == "te" or size == 4:
        outputs = 2 * size * q
    else:
        outputs = 2 * (size + 4) * q  # they are mixed in fp32
    if config.parallel.recompute == "selective":
        outputs = 0
    normed = size * hidden if model.gate == "hidden" and model.kernels != "cuda" else 0
    return outputs + normed


def logits_bytes(config: Config, vocab_size: int, seq_length: int) -> int:
    """Estimate the logits of one microbatch with their loss, on a stage that has the head."""
    tokens = config.train.micro_batch_size * seq_length
    return LOGITS_BYTES * tokens * vocab_size // config.parallel.tp


def _mask_bytes(config: Config, seq_length: int) -> int:
    """Masks of packed documents and windows, and the distances they are made from: [S, S]."""
    if config.model.layer_spec == "te":
        return 0
    return (8 + 3 * config.train.micro_batch_size) * seq_length**2


def _hidden(config: Config) -> int:
    """Width of the residual stream per token of this rank."""
    return config.model.hidden_size // (config.parallel.tp if config.parallel.sp else 1)


def _heads(config: Config, heads: int) -> int:
    return heads * config.model.head_dim // config.parallel.tp
