"""The configuration of a run: frozen dataclasses, one docstring under each field.

Numbers live in `conf/` (Hydra groups), derivations here: a derived value is a property. Each class
checks what it alone knows (types, ranges); what needs several of them is checked in
`config/check.py`.

The classes are pydantic dataclasses rather than omegaconf structured configs: omegaconf stops at
the first wrong value and has no `Literal`, and we owe the user every mistake at once.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from loopcoder.config.corpora import joined_mixture
from loopcoder.config.data import DataConfig, ResolvedStage, StageConfig
from loopcoder.config.evaluation import EvalConfig
from loopcoder.config.faults import FaultsConfig
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.types import (
    STRICT,
    Changes,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

VOCAB_MULTIPLE = 128
"""Rows of embedding and head are padded to a multiple of this in every layout."""

_NEW = Changes("numbers", since="2026-11-29")

Precision = Literal["fp32", "bf16", "fp8_tensorwise", "fp8_delayed", "fp8_blockwise"]


SHAPE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_kv_heads",
    "head_dim",
)
"""Fields of ModelConfig that decide how large its matrices are."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """A Parallel Loop Transformer: `num_layers` physical layers, executed `num_loops` times."""

    name: str
    """Name of the preset; part of the run's name."""
    num_layers: PositiveInt
    """Physical layers; every loop executes all of them with the same weights."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    ffn_hidden_size: PositiveInt
    """Width of the SwiGLU MLP (each of its gate and up halves)."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_kv_heads: PositiveInt
    """Key/value heads (grouped-query attention); divides num_attention_heads."""
    head_dim: PositiveInt
    """Width of one attention head."""
    num_loops: PositiveInt = 2
    """R, the number of passes through the layers; 1 is the plain dense transformer and has no
    gates."""
    layer_multiple: Annotated[PositiveInt, _NEW] = 1
    """Settled before the run starts: with 2 the model has twice `num_layers` physical layers (and
    this is 1 again), the dense control of two loops."""
    window: NonNegativeInt = 64
    """Keys to the left of a token that later loops see of their own K/V; the token itself comes on
    top."""
    shift: bool = True
    """Later loops read the previous loop's output at t-1 (true, PLT) or at t (false, a plain looped
    model)."""
    kv_sharing: Literal["first", "own"] = "first"
    """`first`: later loops read loop 0's K/V plus a gated window of their own. `own`: each its own
    K/V, no gate."""
    norm_per_loop: bool = True
    """Apply the final norm after every loop, not only the last."""
    gate: Literal["hidden", "query"] = "hidden"
    """What the gate reads: the residual stream through its own norm, or the query head after
    RoPE."""
    emb_scale: float | None = 0.707
    """a: factor of the embedding in the input of later loops; null means 1.0."""
    hidden_scale: float | None = 0.053
    """b: factor of the shifted previous output in the input of later loops; null means 1.0."""
    vocab_size: PositiveInt | None = None
    """Rows of embedding and head; null takes the tokenizer's size, padded to a multiple of 128."""
    norm_eps: PositiveFloat = 1e-5
    """Epsilon of every RMSNorm."""
    rope_theta: PositiveFloat = 500000.0
    """Base of the rotary position embedding; a data stage may override it."""
    max_position_embeddings: PositiveInt = 131072
    """Longest sequence the model is meant for, in tokens."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the normal initialisation: of the layers' matrices, and of embedding
    and head where they have none of their own."""
    embedding_init_std: Annotated[PositiveFloat | None, _NEW] = None
    """Standard deviation of the embedding: what loop 0 reads, and beside b what later loops see of
    their own token; null: init_std."""
    head_init_std: Annotated[NonNegativeFloat | None, _NEW] = None
    """Standard deviation of the head; 0 begins with the same logit for every token; null:
    init_std."""
    output_init: Literal["zero", "layers", "effective"] = "layers"
    """Output projections (of attention and MLP) start at zero, or smaller than init_std by
    1/sqrt(2L), or by 1/sqrt(2RL) with `effective`."""
    residual_scale: Annotated[PositiveFloat, _NEW] = 1.0
    """Factor of what every attention and MLP adds to the residual stream, 0.5 for 1/R with two
    loops. It is folded into their output projections, which start and learn by as much smaller,
    so that the forward pass and the exported weights have no factor."""
    gate_bias_init: Annotated[float, _NEW] = 0.0
    """Bias of the gates at the start: they weigh the attention to loop 0's K/V by sigmoid of it."""
    layer_spec: Literal["auto", "torch", "te"] = "auto"
    """Layers from plain PyTorch or from Transformer Engine; auto takes TE where it and a GPU are
    present."""
    kernels: Literal["auto", "stock", "cuda"] = "auto"
    """What computes gate and mixture of later loops' two attentions, and their input: stock parts,
    or the CUDA extension of kernels/; auto takes the extension where it is built and can compute
    this model."""

    @property
    def has_gates(self) -> bool:
        """Gates exist only where a later loop mixes two attentions."""
        return self.num_loops > 1 and self.kv_sharing == "first"

    @property
    def a(self) -> float:
        return 1.0 if self.emb_scale is None else self.emb_scale

    @property
    def b(self) -> float:
        return 1.0 if self.hidden_scale is None else self.hidden_scale


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """Learning rate over the steps."""

    kind: Literal["cosine", "wsd", "constant"]
    """cosine to min_lr; wsd: constant, then a decay over the last part; constant."""
    warmup_fraction: Fraction = 0.05
    """Share of max_steps with linear warm-up; ignored when warmup_steps is given, and by a run that
    is extended: it keeps the steps that it had."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up."""
    decay_fraction: Fraction = 0.1
    """wsd: share of max_steps over which the rate decays at the end; 0: as decay_steps=0."""
    decay_steps: Annotated[NonNegativeInt | None, _NEW] = None
    """wsd: steps of decay at the end, instead of decay_fraction; 0: it stays at its peak to the
    end, as in a run whose decays are branches."""
    decay_shape: Literal["linear", "1-sqrt", "cosine"] = "1-sqrt"
    """wsd: form of the decay."""


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """Adam with decoupled weight decay."""

    lr: PositiveFloat
    """Peak learning rate."""
    min_lr: NonNegativeFloat
    """Learning rate at the end of a cosine or wsd schedule."""
    schedule: ScheduleConfig
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-15
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled; norm weights and biases are exempt."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    base_hidden_size: Annotated[PositiveInt | None, _NEW] = None
    """Width at which all parameters learn at `lr`. At another one the layers' matrices and the head
    learn at lr * base_hidden_size / hidden_size, embedding, norms and biases at `lr` (maximal
    update parametrisation, arXiv 2203.03466); null: everything at `lr`."""
    base_num_layers: Annotated[PositiveInt | None, Changes("numbers", since="2026-11-30")] = None
    """Layers at which their matrices learn at that; with another number of them, and any number of
    loops, at sqrt(base_num_layers / num_layers) of it; null: depth changes no rate."""
    embedding_lr_scale: Annotated[PositiveFloat, _NEW] = 1.0
    """Learning rate of the embedding as a multiple of `lr`."""
    head_lr_scale: Annotated[PositiveFloat, _NEW] = 1.0
    """Learning rate of the head as a multiple of what base_hidden_size makes of `lr`."""
    vocabulary_warmup_steps: Annotated[NonNegativeInt, _NEW] = 0
    """Steps over which the rates of embedding and head grow linearly to what they are, besides the
    schedule's warm-up: at many times `lr` they overshoot first. 0: the schedule's alone."""


@dataclass(frozen=True, config=STRICT)
class ParallelConfig:
    """How one model is laid out over processes; data parallelism takes what tp, pp and cp leave."""

    tp: PositiveInt = 1
    """Tensor-parallel size."""
    pp: PositiveInt = 1
    """Pipeline-parallel size."""
    cp: PositiveInt = 1
    """Context-parallel size."""
    sp: bool = False
    """Sequence parallelism: norms and residual stream split along the sequence over the tp
    ranks."""
    chunks_per_loop: PositiveInt = 1
    """Virtual pipeline chunks a loop is cut into."""
    distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass runs."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass runs; needs overlap_grad_reduce."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Recompute in the backward pass: nothing, the attention core, or whole layers."""
    nproc_per_node: Annotated[PositiveInt | None, Changes("nothing")] = None
    """Processes that `loopcoder train` starts itself; null: one per GPU, as far as the global
    batch divides among them, or tp*pp*cp without a GPU."""
    nodes: Annotated[PositiveInt, Changes("nothing", since="2026-11-30")] = 1
    """Machines on each of which the same `loopcoder train` is started; torchrun and srun count them
    themselves."""
    rendezvous: Annotated[str | None, Changes("nothing", since="2026-11-30")] = None
    """Where several nodes meet: HOST:PORT of one of them, by a name or address that all reach."""
    timeout_s: Annotated[PositiveFloat, Changes("nothing")] = 1800
    """Seconds to wait for another process, at the start and in every collective; then the run
    stops with 75 and says who is missing."""
    report_after_s: Annotated[PositiveFloat, Changes("nothing")] = 300
    """Seconds that a step, evaluation or save lasts until it is reported who is waited for, with
    the Python stacks in `stacks/` of the run's folder."""


@dataclass(frozen=True, config=STRICT)
class PrecisionConfig:
    """Number formats."""

    name: Literal["auto", "fp32", "bf16", "fp8_tensorwise", "fp8_delayed", "fp8_blockwise"]
    """fp32 or bf16 for everything, or FP8 matrix products through Transformer Engine; auto: bf16 on
    a GPU, else fp32."""
    grad_reduce_in_fp32: bool = True
    """Accumulate and reduce gradients in fp32."""
    bf16_layers_at_start: NonNegativeInt = 0
    """With FP8: layers at the start of every loop that compute in bf16."""
    bf16_layers_at_end: NonNegativeInt = 0
    """With FP8: layers at the end of every loop that compute in bf16."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """When to save, and what to start from."""

    interval: Annotated[PositiveInt | None, Changes("nothing")] = 100
    """Steps between checkpoints; null saves only at the end. A wsd run has one more, where its
    decay begins."""
    keep: Annotated[PositiveInt | None, Changes("nothing")] = 3
    """Newest checkpoints that stay on disk, besides the one where a wsd run begins to decay; null
    keeps all."""
    keep_every: Annotated[PositiveInt | None, Changes("nothing")] = None
    """Checkpoints of steps that are a multiple of this stay on disk for ever, besides `keep`."""
    save_at_end: Annotated[bool, Changes("nothing")] = True
    """Save after the last step."""
    async_save: Annotated[bool, Changes("nothing")] = False
    """Write in the background while training goes on."""
    resume: Annotated[Literal["auto", "require", "never"], Changes("nothing")] = "auto"
    """Continue this run: from its newest checkpoint if there is one; it must exist; or start
    anew."""
    step: Annotated[PositiveInt | None, Changes("nothing")] = None
    """Go back to the checkpoint of this step of this run; later ones are set aside under another
    name. The same command again goes on from there."""
    init_from: str | None = None
    """Start another run from a checkpoint (or the newest in a folder of them), of this machine or,
    by a URL, of a store, whence a run fetches the whole of it to data.build.cache_dir."""
    init_optimizer: bool = False
    """Take the optimizer's state from init_from as well as the weights."""
    init_position: Annotated[bool, _NEW] = False
    """Go on in the data and count the steps from where init_from stood: a branch of that run, such
    as its decay."""
    verify: Annotated[Literal["hash", "size", "none"], Changes("nothing")] = "hash"
    """What is compared with the manifest before a checkpoint is loaded."""
    digest: Annotated[bool, Changes("nothing")] = True
    """Sum up every tensor, bit for bit and whatever the layout, when a checkpoint is saved, and
    compare what was loaded with that."""
    store: Annotated[str | None, Changes("nothing")] = None
    """URL of a folder in an object store (s3://BUCKET/RUN, or whatever fsspec knows) that gets a
    copy of every checkpoint in the background, and from which a run comes back whose run_dir is
    lost. The points of a sweep have folders of their own below it."""
    store_keep: Annotated[PositiveInt | None, Changes("nothing")] = None
    """Newest copies that stay in the store, besides those of `keep_every` and the one where a wsd
    run begins to decay; null keeps all."""
    visible_within_s: Annotated[PositiveFloat, Changes("nothing")] = 60
    """Seconds within which every process has to see in run_dir what another one wrote there: a
    network disk may lag."""


@dataclass(frozen=True, config=STRICT)
class LoggingConfig:
    """What is written while training; metrics.jsonl always is."""

    interval: PositiveInt = 1
    """Steps between lines of metrics.jsonl."""
    progress: bool = True
    """Show the progress line."""
    wandb: Literal["auto", "offline", "online", "off"] = "auto"
    """Weights & Biases; auto is offline where it is installed."""
    wandb_project: str = "loopcoder"
    """Project in Weights & Biases."""
    tensorboard: Literal["auto", "on", "off"] = "auto"
    """TensorBoard events; auto is on where it is installed."""
    plots: bool = True
    """Draw the loss curves as PNG at the end."""
    loop_losses: bool = False
    """In logged steps: the training loss of each loop's output through the head (logit lens)."""
    loop_gradients: bool = False
    """In logged steps: the norm of the gradient with respect to each loop's input."""
    diagnostics_interval: Annotated[NonNegativeInt, Changes("nothing", since="2026-11-30")] = 0
    """In logged steps that are a multiple of this: what each loop does to a few tokens of every
    sequence (step size, alignment, offset cost, output entropy and shift), and its mean gate; 0:
    never. `loopcoder diagnose` measures all of it, and more, of a checkpoint."""
    max_labels: NonNegativeInt = 64
    """Languages that have a loss of their own, those with most training tokens, and as many
    sources; the others are `other`. 0: no losses by language and source. A corpus without files of
    labels has none."""


@dataclass(frozen=True, config=STRICT)
class HardwareConfig:
    """What the machine could do at best; only MFU depends on it."""

    name: str = "auto"
    """auto reads the GPU's name."""
    peak_tflops_bf16: PositiveFloat | None = None
    """Dense bf16 peak per device, in TFLOP/s; null: looked up for a GPU; of a CPU there is none."""
    peak_tflops_fp8: PositiveFloat | None = None
    """Dense FP8 peak per device, in TFLOP/s."""


@dataclass(frozen=True, config=STRICT)
class BatchRampConfig:
    """Grow the global batch: start, start+increment, ..., evenly over `samples` sequences."""

    start: PositiveInt
    """Sequences per step at the beginning."""
    increment: PositiveInt
    """Sequences added at each stage of the ramp."""
    samples: PositiveInt
    """Sequences after which the batch has its full size."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """The loop."""

    max_steps: PositiveInt
    """Optimizer steps of the whole run."""
    global_batch_size: PositiveInt
    """Sequences between optimizer steps, over all data-parallel ranks."""
    micro_batch_size: PositiveInt
    """Sequences in one forward pass of one rank; the rest is gradient accumulation."""
    tokens: Annotated[PositiveInt | None, Changes("nothing")] = None
    """Tokens that the run is planned for, at the full batch and the length of `data.seq_length`.
    `max_steps` follows from it, and with plt_20m to plt_1b, where null means 20 for each parameter
    outside embedding and head, batch and rate as well; each of them may be given by itself, and
    then counts. Once they are settled it changes nothing."""
    batch_ramp: BatchRampConfig | None = None
    """Grow the global batch at the beginning; null: constant."""
    deterministic: Annotated[bool, Changes("numbers", since="2026-11-30")] = False
    """Use kernels on a GPU that give the same bits each time, so that a run that is resumed equals
    one that never stopped bit for bit; slower. On a CPU that is always so."""
    cuda_graphs: Annotated[Literal["off", "auto", "on"], Changes("nothing", since="2026-12-01")] = (
        "off"
    )
    """Launch a step on a GPU as one CUDA graph, on one process: for models so small that launching
    kernels takes longer than computing them. auto: where that is so, and a step can be a graph; the
    run says what it decided. on: or an error says what stands against it."""


@dataclass(frozen=True, config=STRICT)
class ProfileConfig:
    """Traces of single steps."""

    trace_steps: list[PositiveInt] = field(default_factory=list)
    """Steps whose torch profiler trace is written to profile/."""
    memory_steps: list[PositiveInt] = field(default_factory=list)
    """Steps after which a CUDA memory snapshot is written to profile/."""


@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything that determines a run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    parallel: ParallelConfig
    precision: PrecisionConfig
    checkpoint: CheckpointConfig
    logging: Annotated[LoggingConfig, Changes("nothing")]
    hardware: Annotated[HardwareConfig, Changes("nothing")]
    train: TrainConfig
    eval: EvalConfig
    profile: Annotated[ProfileConfig, Changes("nothing")]
    name: Annotated[Name | None, Changes("nothing")] = None
    """Beginning of the default folder's name, instead of <model>-r<loops>; of a sweep's as well."""
    run_dir: Annotated[str | None, Changes("nothing")] = None
    """Folder of everything this run writes; null: runs/<name>-<hash of what was asked for>."""
    seed: NonNegativeInt = 1234
    """Seed of initialisation and data order."""
    faults: Annotated[FaultsConfig, Changes("nothing")] = field(default_factory=FaultsConfig)
    objective: Annotated[ObjectiveConfig, Changes("numbers", since="2026-11-30")] = field(
        default_factory=ObjectiveConfig
    )

    @property
    def stages(self) -> list[ResolvedStage]:
        """The data stages with every inherited value filled in."""
        return [
            ResolvedStage(
                until=s.until,
                mixture=self._mixture(s),
                seq_length=s.seq_length or self.data.seq_length,
                rope_theta=s.rope_theta or self.model.rope_theta,
            )
            for s in (self.data.stages or [StageConfig()])
        ]

    def _mixture(self, stage: StageConfig) -> dict[str, float]:
        mixture = stage.mixture or self.data.mixture
        corpora = self.data.corpora if stage.corpora is None else stage.corpora
        return joined_mixture(mixture, corpora) if corpora else mixture
