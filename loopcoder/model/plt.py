"""The Parallel Loop Transformer: the same layers R times, each loop a token behind the one before.

    E = Embed(ids);  h = E
    for r in 0..R-1:
        if r > 0:  h = a*E + b*shift(h)                 # S = 0 on the first token of a document
        h = RMSNorm_final(layers(h))                    # loop 0 keeps its K/V, later ones read it
    logits = head(h)

Sources: the released LoopCoder-v2 7B model, arXiv 2606.18023 and 2510.24824. The released model
scales by a and b and norms before it shifts, which the paper's equation leaves out; the released
model wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.model.documents import Documents
from loopcoder.model.exit_gate import ExitGate
from loopcoder.model.idle import with_zero_gradients
from loopcoder.model.layer import PLTBlock
from loopcoder.model.linear import ColumnLinear
from loopcoder.model.objective import add_loop
from loopcoder.model.probe import Probe, observed
from loopcoder.model.reuse import in_loop
from loopcoder.model.shared_kv import EMBEDDING, SharedKV
from loopcoder.model.specs import block_submodules
from loopcoder.model.step_objective import StepObjective
from loopcoder.ops import kernels as cuda
from loopcoder.ops.cross_entropy import cross_entropy
from loopcoder.ops.loop_input import loop_input


@dataclass(frozen=True)
class PipelineStage:
    """The part of a model that one pipeline stage holds."""

    parts: list[list[int]]
    """Layers (0-based, in the model) of each part of a loop."""
    is_first: bool = True
    """It holds the embedding, and mixes it into the input of later loops."""
    is_last: bool = True
    """It holds the final norm, which ends every loop, and the head."""


@dataclass(frozen=True)
class ChunkInput:
    """Which part of which loop a stage runs, and on what."""

    loop_idx: int
    part: int
    """Index of the part of the loop."""
    hidden: Tensor | None
    """Output of the chunk before, from this stage or another; None where the embedding is first."""
    shared_kv: SharedKV
    """What loop 0 of the same microbatch left on this stage."""


class PLTModel(LanguageModule):
    """A looped language model on megatron-core's tensor-parallel layers.

    Weights belong to the stage, not to a loop: no name contains a loop index, and the checkpoint of
    one R loads into another (R = 1 only lacks the gates).
    """

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        vocab_size: int,
        groups: Any,
        previous_position: Callable[[Tensor], Tensor] | None = None,
        stage: PipelineStage | None = None,
        *,
        has_exit_gate: bool = False,
    ):
        """
        Args:
            config: megatron-core's config, from `specs.transformer_config`.
            model: the looped model, `layer_spec` and `kernels` resolved.
            vocab_size: rows of embedding and head, padded.
            groups: the process groups of this rank (`parallel.mcore.Ranks.groups`).
            previous_position: gives the position before this rank's part of a sequence; a split
                sequence needs `parallel.shift.position_before(group)`.
            stage: this rank's part of the model under pipeline parallelism; None: all of it.
            has_exit_gate: the model learns an exit distribution (`objective.exit`).
        """
        stage = stage or PipelineStage([list(range(model.num_layers))])
        if config.sequence_parallel and previous_position is None:
            raise ValueError("sequence parallelism needs parallel.shift.position_before")
        super().__init__(config=config, pg_collection=groups)
        self.model, self.previous_position = model, previous_position
        self.uses_cuda_kernels = model.kernels == "cuda"
        if self.uses_cuda_kernels:
            cuda.load()
        self.rope_theta: float | None = None
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process = stage.is_first, stage.is_last
        self.share_embeddings_and_output_weights = False
        if self.pre_process:
            self.embedding = LanguageModelEmbedding(
                config,
                vocab_size,
                max_sequence_length=model.max_position_embeddings,
                position_embedding_type="rope",
                tp_group=groups.tp,
            )
        self.set_rope_theta(model.rope_theta)
        self.decoder = PLTBlock(
            config,
            block_submodules(model, sum(len(part) for part in stage.parts)),
            stage.parts,
            pre_process=self.pre_process,
            post_process=self.post_process,
            pg_collection=groups,
        )
        if self.post_process:
            te = model.layer_spec == "te"
            head = tensor_parallel.ColumnParallelLinear if te else ColumnLinear
            self.output_layer = head(
                config.hidden_size,
                vocab_size,
                config=config,
                init_method=config.init_method,
                bias=False,
                skip_bias_add=False,
                gather_output=False,
                tp_group=groups.tp,
            )
        self.exit_gate: ExitGate | None = None
        if self.post_process and has_exit_gate:
            self.exit_gate = ExitGate(config, groups.tp)
        self.setup_embeddings_and_output_layer()

    def forward(
        self,
        tokens: Tensor,
        docs: Documents,
        labels: Tensor | None = None,
        *,
        every_loop: bool = False,
        chunk: ChunkInput | None = None,
        probe: Probe | None = None,
        objective: StepObjective | None = None,
    ) -> Any:
        """Run all loops, or one chunk of a pipeline.

        Args:
            tokens: [B, S]
            docs: where documents begin.
            labels: next tokens; None returns logits. [B, S]
            every_loop: also read the head after earlier loops (logit lens), stacked in front.
            probe: measures every loop on the way; it changes nothing.
            objective: how many loops run, and which of their losses count; None: all of them, and
                the last one's.

        Returns:
            the loss of every token [B, S] in fp32, with an objective of several loops what
            `model.objective.parts` takes apart; or logits [S, B, vocabulary of this rank];
            with `every_loop` [R, ...] of them. A chunk returns what the next one reads [S or S/tp,
            B, D], and the last chunk the loss; with `every_loop` each chunk that ends a loop
            returns both.
        """
        objective = objective or StepObjective(self.model.num_loops)
        run = partial(
            self.run_part, tokens, docs, labels, self.rope(docs), every_loop, probe, objective
        )
        if chunk is not None:
            to_next, output = run(chunk)
            if output is None:
                return to_next
            return (to_next, output) if every_loop else output
        hidden: Tensor | None = None
        outputs, shared_kv = [], SharedKV()
        for loop_idx, part in product(range(objective.num_loops), range(len(self.decoder.parts))):
            hidden, output = run(ChunkInput(loop_idx, part, hidden, shared_kv))
            if output is not None:
                outputs.append(output)
        return torch.stack(outputs) if every_loop else outputs[0]

    def run_part(
        self,
        tokens: Tensor,
        docs: Documents,
        labels: Tensor | None,
        rope: Tensor,
        every_loop: bool,
        probe: Probe | None,
        objective: StepObjective,
        chunk: ChunkInput,
    ) -> tuple[Tensor, Tensor | None]:
        """Run one part of one loop on this stage: the body of the loop, which is written only here.

        Returns:
            what the next part reads [S or S/tp, B, D], and what `forward` returns: None unless this
            part ends the last loop, or any loop with `every_loop`.
        """
        loop_idx, hidden, shared_kv = chunk.loop_idx, chunk.hidden, chunk.shared_kv
        if self.pre_process and chunk.part == 0:
            if loop_idx == 0:
                embedding = self.embedding(tokens, docs.position_ids)
                # A view, so that E's gradient is summed in the same order with and without a probe.
                hidden = shared_kv.keep(EMBEDDING, embedding.view_as(embedding), (embedding,))
            else:
                assert hidden is not None, "a later loop reads the one before"
                (embedding,) = shared_kv.of(EMBEDDING)
                hidden = self.next_input(embedding, hidden, docs)
            if probe is not None:
                probe.at_input(loop_idx, hidden)
        gated = shared_kv if self.model.has_gates else None
        with observed(self.decoder.layers, loop_idx, probe):
            hidden = self.decoder(hidden, loop_idx, gated, docs, rope, chunk.part)
        if objective.num_loops == 1:
            hidden = with_zero_gradients(hidden, self.idle_with_one_loop(chunk.part))
        if not self.post_process or chunk.part < len(self.decoder.parts) - 1:
            return hidden, None
        is_read = loop_idx in objective.read_loops
        use = objective.read_loops.index(loop_idx) if is_read else 0
        each_loop = self.model.norm_per_loop
        normed = in_loop(self.decoder.final_layernorm, loop_idx if each_loop else use)(hidden)
        output = self.read_out(normed, labels, use) if is_read or every_loop else None
        if probe is not None:
            probe.at_output(loop_idx, hidden, normed, labels, self.read_out, output)
        to_next = normed if each_loop else hidden
        if objective.sums_loops and output is not None:
            logit = None
            if self.exit_gate is not None and loop_idx < objective.num_loops - 1:
                logit = in_loop(self.exit_gate, use)(normed)
            return add_loop(objective, loop_idx, output, logit, to_next, shared_kv)
        return to_next, output

    def next_input(self, embedding: Tensor, hidden: Tensor, docs: Documents) -> Tensor:
        """Return a later loop's input a*E + b*S, where S is the previous loop's output at t-1. [S
        or S/tp, B, D]"""
        a, b = self.model.a, self.model.b
        if not self.model.shift:
            return a * embedding + b * hidden
        first_token = docs.first_token
        if self.config.sequence_parallel:
            first_token = first_token.chunk(self.tp_group.size())[self.tp_group.rank()]
        before = None if self.previous_position is None else self.previous_position(hidden)
        mix = cuda.LoopInput.apply if self.uses_cuda_kernels else loop_input
        return mix(embedding, hidden, before, first_token, a, b)

    def used_in_every_loop(self, *, reads_loops: bool = False) -> torch.nn.ModuleList:
        """Return the modules of this stage whose gradients come from every loop: the layers, and
        the final norm where it ends every loop; with `reads_loops` what reads a loop as well."""
        modules = torch.nn.ModuleList(self.decoder.layers)
        if self.post_process and (self.model.norm_per_loop or reads_loops):
            modules.append(self.decoder.final_layernorm)
        if self.post_process and reads_loops:
            modules.extend(m for m in (self.output_layer, self.exit_gate) if m is not None)
        return modules

    def idle_with_one_loop(self, part: int) -> Iterator[Tensor]:
        """Yield the parameters of a part of a loop that a step of one loop does not use."""
        for index in self.decoder.parts[part]:
            gate: Any = self.decoder.layers[index].self_attention.plt_gate  # type: ignore[union-attr]
            if gate is not None:
                yield from gate.parameters()
        if self.exit_gate is not None and part == len(self.decoder.parts) - 1:
            yield from self.exit_gate.parameters()

    def read_out(self, normed: Tensor, labels: Tensor | None, use: int = 0) -> Tensor:
        """Apply the head, and the loss where labels are given; `use` counts the loops that are
        read."""
        logits, _ = in_loop(self.output_layer, use)(normed)
        if labels is None:
            return logits
        if self.model.layer_spec == "te" or self.tp_group.size() > 1:
            return self.compute_language_model_loss(labels, logits)
        return cross_entropy(logits, labels.transpose(0, 1)).transpose(0, 1)

    def rope(self, docs: Documents) -> Tensor:
        """Return the rotary angles of every position [S, 1, 1, head_dim]; for plain PyTorch their
        cosines and sines [2, S, 1 or B, 1, head_dim]."""
        angles = self.rotary_pos_emb(docs.table_length)
        # Transformer Engine restarts positions at cu_seqlens by itself.
        if self.model.layer_spec == "te":
            return angles
        table = torch.stack([angles.cos(), angles.sin()])
        return table[:, docs.position_ids.transpose(0, 1), 0] if docs.is_packed else table

    def set_rope_theta(self, theta: float) -> None:
        """Set the base of the rotary embedding; it may change at the border of a data stage."""
        if theta == self.rope_theta:
            return
        self.rope_theta = theta
        self.rotary_pos_emb = RotaryEmbedding(
            self.model.head_dim,
            rotary_percent=1.0,
            rotary_base=theta,
            use_cpu_initialization=self.config.use_cpu_initialization,
            cp_group=self.cp_group,
        )

    def set_input_tensor(self, _: Any) -> None:
        """Called by megatron's schedules; without pipeline stages nothing comes in."""
