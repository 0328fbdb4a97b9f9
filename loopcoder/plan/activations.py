"""What the forward pass keeps for the backward pass on one rank, and what one of an evaluation
holds: estimates, stated as such.

They count the large tensors of a layer's run by name. What allocators and libraries need on the
way is not in them. On small models the first is compared with what autograd really saves
(`tests/plan`).
"""

from __future__ import annotations

from loopcoder.config.schema import Config
from loopcoder.model.flops import num_read_loops
from loopcoder.parallel.layout import microbatch_group, stage_layers

LOGITS_BYTES = {"te": 8, "torch": 12}
"""Of one logit, by layer spec: in 16 bits, in fp32 for the loss, and their gradients; Transformer
Engine's loss writes the gradient over the logits."""
KEPT_LOGITS_BYTES = {"te": 2, "torch": 4}
"""Of what one logit leaves for the backward pass: its gradient in 16 bits, or its softmax."""


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
    return round(in_flight * (tokens * (runs + norms) + mask_bytes(config, seq_length)))


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
    return 2 * _norm_bytes(config) + _attention_bytes(config, gated=gated) + _mlp_bytes(config)


def _attention_bytes(config: Config, *, gated: bool) -> int:
    model, size = config.model, number_bytes(config)
    q, kv = _heads(config, model.num_attention_heads), _heads(config, model.num_kv_heads)
    # v is a part of what the projection returned, which therefore stays whole.
    projected = size * (q + 2 * kv) + size * (q + kv)
    output = _into_product_bytes(config) * q
    return projected + output + (_two_attentions(config, q) if gated else 0)


def _mlp_bytes(config: Config) -> int:
    size, ffn = number_bytes(config), config.model.ffn_hidden_size // config.parallel.tp
    activated = 0 if config.model.layer_spec == "te" else size * ffn  # SiLU of one half
    return size * 2 * ffn + _into_product_bytes(config) * ffn + activated


def _recomputed_bytes(config: Config) -> int:
    """What all runs of a layer that is made again keep per token: their inputs, and loop 0's keys
    and values where later loops read them; v as a part of the whole projection."""
    model, size = config.model, number_bytes(config)
    q, kv = _heads(config, model.num_attention_heads), _heads(config, model.num_kv_heads)
    shared = q + 3 * kv if model.has_gates else 0
    return size * (model.num_loops * _hidden(config) + shared)


def _norm_bytes(config: Config) -> int:
    """Input and output of an RMSNorm; plain PyTorch keeps input and normed input in fp32, of an
    input in fp32 the normed one alone."""
    size, into = number_bytes(config), _into_product_bytes(config)
    if config.model.layer_spec == "te":
        return _hidden(config) * (size + into)
    return _hidden(config) * (8 if size == 4 else 8 + size)


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


def logits_bytes(
    config: Config, vocab_size: int, seq_length: int, num_microbatches: int = 1
) -> int:
    """Estimate the logits of one microbatch with their loss, on a stage that has the head; and what
    those of earlier loops have left, where their losses count, of all microbatches that wait for
    their backward pass.

    Args:
        num_microbatches: of one optimizer step on this rank.
    """
    model, parallel = config.model, config.parallel
    tokens = config.train.micro_batch_size * seq_length
    kind = "te" if model.layer_spec == "te" else "torch"
    chunks = model.num_loops * parallel.chunks_per_loop
    in_flight = microbatches_in_flight(parallel.pp, parallel.pp - 1, num_microbatches, chunks)
    earlier = (num_read_loops(config.objective, model.num_loops) - 1) * in_flight
    logit = LOGITS_BYTES[kind] + earlier * KEPT_LOGITS_BYTES[kind]
    return round(logit * tokens * vocab_size / parallel.tp)


def mask_bytes(config: Config, seq_length: int) -> int:
    """Masks of documents and of windows [S, S] as numbers that plain PyTorch adds, which all layers
    and loops share."""
    rows = _rows_of_masks(config) * _kinds_of_masks(config)
    return rows * seq_length**2 * number_bytes(config)


def evaluation_bytes(config: Config, vocab_size: int, pp_rank: int, seq_length: int) -> int:
    """Estimate what a rank holds of a microbatch of an evaluation at the fullest moment.

    Without a backward pass only loop 0's keys and values, the embedding and the masks stay; an
    attention, an MLP or the logits after a loop come on top.
    """
    model, parallel, size = config.model, config.parallel, number_bytes(config)
    chunks = model.num_loops * parallel.chunks_per_loop
    in_flight = microbatches_in_flight(parallel.pp, pp_rank, parallel.pp, chunks)
    tokens = config.train.micro_batch_size * seq_length
    stage = stage_layers(model.num_layers, parallel.pp, parallel.chunks_per_loop, pp_rank)
    q, kv = _heads(config, model.num_attention_heads), _heads(config, model.num_kv_heads)
    shared = sum(map(len, stage)) * (q + 3 * kv) if model.has_gates else 0
    held = tokens * size * (shared + 2 * _hidden(config)) + _borders_bytes(config, seq_length)
    attention = tokens * _attention_bytes(config, gated=model.has_gates)
    norms = 2 * tokens * (_norm_bytes(config) + size * _hidden(config))  # and what they read
    layer = max(attention, tokens * _mlp_bytes(config)) + norms
    logits = _read_out_bytes(config, vocab_size, pp_rank, seq_length)
    for_loss = logits if size == 4 else 3 * logits  # in fp32
    if model.layer_spec != "te" and parallel.tp == 1:  # and their logarithms
        for_loss += logits * 4 // size
    return round(in_flight * held + max(layer, for_loss))


def evaluation_floor_bytes(config: Config, vocab_size: int, pp_rank: int, seq_length: int) -> int:
    """Return the part of it that is arithmetic: the logits of a microbatch, and its masks."""
    logits = _read_out_bytes(config, vocab_size, pp_rank, seq_length)
    return logits + _borders_bytes(config, seq_length)


def _read_out_bytes(config: Config, vocab_size: int, pp_rank: int, seq_length: int) -> int:
    """Logits of a microbatch as the head returns them, on the stage that has it."""
    parallel, tokens = config.parallel, config.train.micro_batch_size * seq_length
    has_head = pp_rank == parallel.pp - 1
    return number_bytes(config) * tokens * vocab_size // parallel.tp if has_head else 0


def _borders_bytes(config: Config, seq_length: int) -> int:
    """What `model/documents.py` keeps of a microbatch for plain PyTorch: distances in int64, which
    all rows share, and masks, as such and as numbers."""
    if not (masks := _kinds_of_masks(config)):
        return 0
    rows = _rows_of_masks(config) * masks
    return seq_length**2 * (8 + rows) + mask_bytes(config, seq_length)


def _kinds_of_masks(config: Config) -> int:
    """One for documents and one for windows, where plain PyTorch needs them."""
    model = config.model
    if model.layer_spec == "te":
        return 0
    windows = model.has_gates and model.kernels != "cuda"
    return int(config.data.isolate_documents) + int(windows)


def _rows_of_masks(config: Config) -> int:
    """Rows of which attention gets a mask: of windows alone one is enough for all."""
    model = config.model
    if model.layer_spec == "te":
        return 0
    if config.data.isolate_documents:
        return config.train.micro_batch_size
    return int(model.has_gates and model.kernels != "cuda")


def _hidden(config: Config) -> int:
    """Width of the residual stream per token of this rank."""
    return config.model.hidden_size // (config.parallel.tp if config.parallel.sp else 1)


def _heads(config: Config, heads: int) -> int:
    return heads * config.model.head_dim // config.parallel.tp
