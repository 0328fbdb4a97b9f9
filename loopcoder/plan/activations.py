"""What the forward pass keeps for the backward pass on one rank: an estimate, stated as such.

It counts the large tensors of a layer's run by name. What allocators and libraries need on the way
is not in it. On small models it is compared with what autograd really saves (`tests/plan`).
"""

from __future__ import annotations

from loopcoder.config.schema import Config
from loopcoder.parallel.layout import microbatch_group, stage_layers

LOGITS_BYTES = {"te": 8, "torch": 12}
"""Of one logit, by layer spec: in 16 bits, in fp32 for the loss, and their gradients; Transformer
Engine's loss writes the gradient over the logits."""


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
    chunks = model.num_loops * parallel.chunks_per_loop
    in_flight = microbatches_in_flight(parallel.pp, pp_rank, num_microbatches, chunks)
    tokens = config.train.micro_batch_size * seq_length
    stage = stage_layers(model.num_layers, parallel.pp, parallel.chunks_per_loop, pp_rank)
    layers = sum(map(len, stage))
    first, later = layer_bytes(config, gated=False), layer_bytes(config, gated=model.has_gates)
    if parallel.recompute == "full":  # one run at a time is made again
        runs = layers * _recomputed_bytes(config) + max(first, later)
    else:
        runs = layers * (first + (model.num_loops - 1) * later)
    norms = model.num_loops * _norm_bytes(config)  # the final one, in every loop
    return round(in_flight * (tokens * (runs + norms) + layers * _mask_bytes(config, seq_length)))


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
    ffn = model.ffn_hidden_size // tp
    q, kv = _heads(config, model.num_attention_heads), _heads(config, model.num_kv_heads)
    into = _into_product_bytes(config)
    # v is a part of what the projection returned, which therefore stays whole.
    projected = size * (q + 2 * kv) + size * (q + kv)
    # Plain PyTorch also keeps SiLU of one half, and the other half by itself.
    mlp = size * 2 * ffn + into * ffn + (0 if model.layer_spec == "te" else 2 * size * ffn)
    attention = into * q + (_two_attentions(config, q) if gated else 0)
    return 2 * _norm_bytes(config) + projected + mlp + attention


def _recomputed_bytes(config: Config) -> int:
    """What all runs of a layer that is made again keep per token: their inputs, and loop 0's keys
    and values where later loops read them; v as a part of the whole projection."""
    model, size = config.model, number_bytes(config)
    q, kv = _heads(config, model.num_attention_heads), _heads(config, model.num_kv_heads)
    shared = q + 3 * kv if model.has_gates else 0
    return size * (model.num_loops * _hidden(config) + shared)


def _norm_bytes(config: Config) -> int:
    """Input and output of an RMSNorm; plain PyTorch keeps input and normed input in fp32."""
    size, into = number_bytes(config), _into_product_bytes(config)
    return _hidden(config) * (size + into if config.model.layer_spec == "te" else 8 + size)


def _two_attentions(config: Config, q: int) -> int:
    """What a gated run keeps besides the mixture: attentions, and what the gate's norm needs."""
    model, size, is_fused = config.model, number_bytes(config), config.model.layer_spec == "te"
    if config.parallel.recompute == "selective":
        outputs = 0
    elif model.kernels == "cuda":
        outputs = size * q
    else:  # plain PyTorch mixes in fp32
        outputs = 2 * q * (size if is_fused or size == 4 else size + 4)
    if model.gate == "query" or model.kernels == "cuda":
        return outputs
    return outputs + _hidden(config) * (8 if size == 4 else 10)


def _into_product_bytes(config: Config) -> int:
    """Of a number that goes into a matrix product: it is kept in FP8 where that computes it."""
    return 1 if config.precision.name.startswith("fp8") else number_bytes(config)


def logits_bytes(config: Config, vocab_size: int, seq_length: int) -> int:
    """Estimate the logits of one microbatch with their loss, on a stage that has the head."""
    tokens = config.train.micro_batch_size * seq_length
    logit = LOGITS_BYTES["te" if config.model.layer_spec == "te" else "torch"]
    return logit * tokens * vocab_size // config.parallel.tp


def _mask_bytes(config: Config, seq_length: int) -> int:
    """Masks of packed documents and windows that plain PyTorch keeps of a layer's runs: [S, S]."""
    model, parallel = config.model, config.parallel
    if model.layer_spec == "te" or parallel.recompute != "none":
        return 0
    attentions = 2 * model.num_loops - 1 if model.has_gates else model.num_loops
    return attentions * config.train.micro_batch_size * seq_length**2 * number_bytes(config)


def _hidden(config: Config) -> int:
    """Width of the residual stream per token of this rank."""
    return config.model.hidden_size // (config.parallel.tp if config.parallel.sp else 1)


def _heads(config: Config, heads: int) -> int:
    return heads * config.model.head_dim // config.parallel.tp
