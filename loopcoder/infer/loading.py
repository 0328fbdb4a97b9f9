"""A decoder from wherever weights are, with what makes text of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from loopcoder.backends import detect
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.compose import compose
from loopcoder.config.schema import Config, ModelConfig, ParallelConfig
from loopcoder.data.tokenizer import read_tokenizer, vocabulary_of
from loopcoder.errors import InputError
from loopcoder.hf.card import Tokenizer
from loopcoder.hf.mapping import plain_name
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.fit import check_fits
from loopcoder.infer.fused_layers import Kernels, choose
from loopcoder.infer.sources import Asked, Source, source_at
from loopcoder.infer.split import WHOLE, Split
from loopcoder.infer.weights import build_weights, weight_bytes
from loopcoder.parallel import cpu
from loopcoder.plan.device import machine_memory

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WORK = 0.05
"""Of a GPU's memory: CUDA's graphs, workspaces, NCCL's buffers, logits."""


@dataclass(frozen=True)
class LoadedDecoder:
    """A decoder, and what makes text of its tokens."""

    decoder: Decoder
    source: Source

    @property
    def config(self) -> Config:
        """With which this machine runs the model."""
        return self.source.config

    @cached_property
    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer`.

        Raises InputError: the weights have none.
        """
        return read_tokenizer(tokenizer_of(self.source))

    @property
    def bos_id(self) -> int:
        """What a document begins behind."""
        return self._specials.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """What ends an answer: a document, or a turn of a chat."""
        return frozenset(self._specials.end_ids)

    @property
    def chat_template(self) -> str | None:
        """In Jinja; None: the model has no words for a chat."""
        return self._specials.chat_template

    @cached_property
    def _specials(self) -> Tokenizer:
        return Tokenizer.of(tokenizer_of(self.source), self.source.specials)


def load_decoder(
    place: str | Path | Checkpoint | Source,
    *,
    num_places: int,
    max_length: int,
    num_loops: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    parallel: ParallelConfig | None = None,
    split: Split = WHOLE,
    cuda_graphs: Literal["auto", "off"] = "auto",
    kernels: Kernels = "auto",
    cache: Path | None = None,
) -> LoadedDecoder:
    """Load weights into this process, on its GPU if it has one, and make room for sequences.

    Args:
        place: A checkpoint, a folder of them, a run or the URL of one: the newest complete one; or
            a folder for transformers, exported or released. Or what `source_at` made of one, with
            all that was asked for then.
        num_places: Sequences at a time.
        max_length: Tokens of each, the prompt's included.
        num_loops: Loops to run with instead of those that were trained.
        precision: None: fp32 on a CPU, and on a GPU what was trained.
        parallel: Layout of the ranks that load together; None: one process.
        split: This rank's part of the model, of as many as `parallel.tp`; all must call it.
        cuda_graphs: Whether steps on a GPU are launched as graphs; auto: they are.
        kernels: Whether steps run on the CUDA extension; auto: where it can run the model.
        cache: Where what comes from a URL is kept; None: data.build.cache_dir.

    Raises:
        InputError: there are no weights, they are damaged, cannot be run as asked, or do not fit
            into memory together with the sequences.
    """
    cache = cache or Path(compose([]).data.build.cache_dir).expanduser()
    asked = Asked(detect(), num_loops, precision, parallel)

    def load() -> LoadedDecoder:
        source = place if isinstance(place, Source) else source_at(place, cache, asked)
        split.check(source.model)
        device, dtype = cpu.device(), _DTYPES[source.config.precision.name]
        # before weights are read; the decoder chooses the same
        is_fused = choose(kernels, source.model, device, dtype, asked.backends, split)
        vocabulary = _vocabulary(source)
        weights = weight_bytes(source.model, source.rows, vocabulary, dtype, split)
        free = _free_bytes(device)
        check_fits(
            source.model, num_places, max_length, dtype, split, weights, free, is_fused=is_fused
        )
        held = build_weights(source.read, source.model, vocabulary, device, dtype, split)
        source.check()
        decoder = Decoder(
            held,
            source.model,
            vocabulary,
            num_places=num_places,
            max_length=max_length,
            split=split,
            cuda_graphs=cuda_graphs,
            kernels=kernels,
        )
        return LoadedDecoder(decoder, source)

    return split.all_or_none(load, lambda loaded: loaded.source.place)


def decoder_of(
    network: torch.nn.Module,
    model: ModelConfig,
    vocabulary: int,
    *,
    num_places: int,
    max_length: int,
    cuda_graphs: Literal["auto", "off"] = "auto",
    kernels: Kernels = "auto",
) -> Decoder:
    """Make a decoder of a PLTModel in this process, whose weights it shares.

    Args:
        network: All of the model, in one process.
        model: With the `rope_theta` that the network runs with.
        vocabulary: Tokens that there are.

    Raises:
        InputError: the sequences do not fit into memory.
    """
    ours = {plain_name(name): x.detach() for name, x in network.named_parameters()}
    first = next(iter(ours.values()))
    free = _free_bytes(first.device)
    is_fused = choose(kernels, model, first.device, first.dtype, detect())
    check_fits(model, num_places, max_length, first.dtype, WHOLE, 0, free, is_fused=is_fused)
    held = build_weights(ours.__getitem__, model, vocabulary, first.device, first.dtype)
    return Decoder(
        held,
        model,
        vocabulary,
        num_places=num_places,
        max_length=max_length,
        cuda_graphs=cuda_graphs,
        kernels=kernels,
    )


def _free_bytes(device: torch.device) -> int:
    """Return the memory that there is for a decoder."""
    if device.type == "cpu":
        return machine_memory()[1]
    free, total = torch.cuda.mem_get_info(device)
    # what torch holds and does not use is free as well
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, int(free + unused - _WORK * total))


def _vocabulary(source: Source) -> int:
    """Return the tokens that there are: those of the tokenizer, and no row that pads."""
    if source.tokens is not None and source.tokenizer is None:
        return source.tokens
    return vocabulary_of(read_tokenizer(tokenizer_of(source)), source.tokens)


def tokenizer_of(source: Source) -> Path:
    """Return the tokenizer.json of weights.

    Raises:
        InputError: they have none.
    """
    if source.tokenizer is not None:
        return source.tokenizer
    raise InputError.of(
        f"{source.place} has no tokenizer.json",
        "it makes tokens of text, and text of tokens",
        "put the tokenizer of the weights there",
    )
