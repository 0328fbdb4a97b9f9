"""A folder for transformers -> a checkpoint of ours at step 0, of weights alone.

    OUTPUT/checkpoints/step_00000000/   what checkpoint.init_from= takes, in any layout
    OUTPUT/conf/model/NAME.yaml         its model as a preset, for `--config-dir OUTPUT/conf`

Tensor by tensor: the largest one is what has to fit into memory.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.state import CheckpointState, Specials
from loopcoder.checkpoint.written import WeightsWriter
from loopcoder.config.compose import changed, compose, save_config
from loopcoder.config.fields import typed
from loopcoder.config.identity import config_hash
from loopcoder.config.schema import VOCAB_MULTIPLE, Config, ModelConfig
from loopcoder.data.places import TOKEN_BYTES, TOKENIZER, tokenizer_file
from loopcoder.data.sampler import Position
from loopcoder.errors import InputError, counted
from loopcoder.hf.config import Described, from_released
from loopcoder.hf.folder import CONFIG, ReleasedFolder
from loopcoder.hf.mapping import merge_qkv, released_names, released_shapes, shard_name
from loopcoder.hf.specials import specials_of
from loopcoder.storage.digest import file_digest
from loopcoder.storage.files import write_bytes
from loopcoder.storage.folders import whole_folder

CHANGEABLE = (
    *("name", "num_loops", "window", "shift", "kv_sharing", "norm_per_loop", "gate"),
    *("emb_scale", "hidden_scale", "gate_bias_init", "vocab_size"),
)
"""Fields of `model` that may be other than the folder's."""
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SPARE = 1 << 26
"""Bytes that a checkpoint may take besides its tensors."""


@dataclass(frozen=True)
class Import:
    """What a folder becomes; everything that can be wrong with it has been looked at."""

    source: ReleasedFolder
    described: Described
    config: Config
    """Of the checkpoint; its model may have other loops than the folder's."""
    tokenizer: Path | None
    token_bytes: NDArray[np.int64] | None
    """UTF-8 bytes of each of its tokens. [tokens]"""
    specials: Specials

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def rows(self) -> int:
        """Of embedding and head, padding included."""
        assert self.model.vocab_size is not None
        return self.model.vocab_size

    @property
    def size_bytes(self) -> int:
        """Of the tensors as they are written: with new gates, padding and a head in any case."""
        shapes = released_shapes(self.model, self.rows).values()
        return self.source.dtype.itemsize * sum(math.prod(shape) for shape in shapes)

    @property
    def copies_head(self) -> bool:
        """The folder has no head of its own; one that is there counts, as in transformers 5,
        whatever its config.json says."""
        return self.described.is_tied and _HEAD not in self.source.tensors

    def notes(self) -> Iterator[str]:
        """Yield what the user is to know of it."""
        before, now = self.described.model, self.model
        if now.has_gates and not before.has_gates:
            yield (
                f"warning: R = {before.num_loops} becomes R = {now.num_loops}: its gates are new "
                f"(weights 0, bias {now.gate_bias_init:g}, norms 1), and no layer has learnt to "
                "read a later loop's input. Its loss is far from the folder's until it is trained"
            )
        elif before.has_gates and not now.has_gates:
            yield "note: the folder's gates are left out: a model without them is asked for"
        elif now.num_loops != before.num_loops:
            yield f"warning: trained with R = {before.num_loops}, R = {now.num_loops} is asked for"
        if self.copies_head:
            yield "note: the head is a copy of the embedding, and learns by itself from here on"
        elif self.described.is_tied:
            yield "note: the folder's own head is read, although its config.json says tied"
        if padding := self.rows - self.described.vocab_size:
            yield (
                f"warning: embedding and head get {counted(padding, 'row')} of zeros, "
                f"{self.described.vocab_size} -> {self.rows}: in the loss each is a token with the "
                f"logit 0. model.vocab_size={self.described.vocab_size} goes without, where "
                "parallel.tp divides it"
            )


def plan(source: ReleasedFolder, overrides: Sequence[str] = (), tokenizer: str = "") -> Import:
    """Look at a folder, and at all that could keep it from being imported.

    Args:
        overrides: Of the fields of `model` in CHANGEABLE, as on a command line.
        tokenizer: Path of a tokenizer.json or its folder; empty: that of the source; none: without.

    Raises:
        InputError: with what is wrong.
    """
    described = from_released(source.config, source.path / CONFIG)
    wanted = released_shapes(described.model, described.vocab_size)
    if described.is_tied and _HEAD not in source.tensors:
        del wanted[_HEAD]
    source.check(wanted)
    found, token_bytes = None, None
    if tokenizer != "none":
        found, token_bytes = _tokenizer(source.path, tokenizer, described)
    precision = "bf16" if source.dtype == torch.bfloat16 else "fp32"
    config = compose([f"precision={precision}"])
    build = replace(config.data.build, tokenizer=str(found or "train"))
    config = replace(
        config, model=described.model, data=replace(config.data, build=build), name=None
    )
    asked = _as_asked(config, described, overrides)
    return Import(source, described, asked, found, token_bytes, specials_of(source))


def import_folder(
    planned: Import, output: Path, report: Callable[[str], None] = lambda _: None
) -> Checkpoint:
    """Write the checkpoint; `output` is there when all of it is.

    Raises:
        InputError: something is there already, or the folder is not what it was.
        DiskFull: there is no room; nothing is left.
    """
    with whole_folder(output, "output", planned.size_bytes + _SPARE) as part:
        step = layout.step_folder(part, 0)
        with WeightsWriter(step) as writer:
            for ours in released_names(planned.model):
                _write(writer, planned, ours)
            companions = _companions(planned, part)
            final = layout.step_folder(output.absolute(), 0) / TOKENIZER
            writer.complete(_at(planned.config, final), _state(planned, final), companions)
            for file in companions:
                file.unlink()
        presets = part / "conf" / "model"
        presets.mkdir(parents=True)
        save_config(planned.model, presets / f"{planned.model.name}.yaml")
        for note in planned.notes():
            report(note)
    return layout.find(output)


def parts_of(planned: Import, model: ModelConfig, ours: str) -> list[Tensor]:
    """Return the tensors that make a weight, one below the other, as they are in the folder; gates
    that it does not have are new.

    Args:
        model: `planned.model`, or that with other loops.
        ours: Our name of the weight.
    """
    source, theirs = planned.source, released_names(model)[ours]
    if "plt_gate" in ours and not planned.described.model.has_gates:
        return [new_gate(ours, model)]
    if theirs == (_HEAD,) and planned.copies_head:
        parts = [source.read(_EMBEDDING)]
    else:
        parts = [source.read(one) for one in theirs]
    if len(parts) == 3:
        q, k, v = parts
        parts = [merge_qkv(q, k, v, model)]
    if theirs in ((_EMBEDDING,), (_HEAD,)) and planned.rows > len(parts[0]):
        parts.append(parts[0].new_zeros(planned.rows - len(parts[0]), *parts[0].shape[1:]))
    return parts


def new_gate(ours: str, model: ModelConfig) -> Tensor:
    """Return a weight of a gate as it is before training."""
    if "gate_norm" in ours:
        return torch.ones(model.hidden_size)
    if ours.endswith("bias"):
        return torch.full((model.num_attention_heads,), model.gate_bias_init)
    width = model.hidden_size if model.gate == "hidden" else model.head_dim
    return torch.zeros(model.num_attention_heads, width)


def to_train(planned: Import, output: Path) -> str:
    """Return the command that trains on what was imported."""
    tokenizer = layout.step_folder(output, 0) / TOKENIZER
    words = [
        f"loopcoder train --config-dir {shlex.quote(str(output / 'conf'))}",
        f"model={planned.model.name}",
        typed(f"checkpoint.init_from={output}"),
    ]
    if planned.tokenizer is None:
        return (
            f"{' '.join(words)} data.build.tokenizer=PATH\n"
            "PATH is the tokenizer.json of these weights, which were imported without"
        )
    return " ".join([*words, typed(f"data.build.tokenizer={tokenizer}")])


def _as_asked(config: Config, described: Described, overrides: Sequence[str]) -> Config:
    for override in overrides:
        section, _, field = override.partition("=")[0].partition(".")
        if section != "model" or field not in CHANGEABLE:
            raise InputError.of(
                override,
                "the weights decide everything but model." + ", model.".join(CHANGEABLE),
                "leave it out; loopcoder train takes the rest",
            )
    config = changed(config, overrides)
    name = config.model.name
    if Path(name).name != name or name == "..":
        raise InputError.of(
            f"model.name={name}", "it names a file of the checkpoint's presets", "a name without /"
        )
    before, now, size = described.model, config.model, described.vocab_size
    rows = now.vocab_size or -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if rows < size:
        raise InputError.of(
            f"model.vocab_size={rows}, the folder has {size} rows",
            "tokens would be lost",
            f"model.vocab_size={size}",
        )
    if before.has_gates and now.has_gates and before.gate != now.gate:
        raise InputError.of(
            f"model.gate={now.gate}, the folder's gates read {before.gate}",
            "their weights have another shape and meaning",
            f"model.gate={before.gate}",
        )
    return replace(config, model=replace(now, vocab_size=rows))


def _tokenizer(folder: Path, given: str, described: Described) -> tuple[Path, NDArray[np.int64]]:
    """Return the file of the tokenizer, after trying whether corpora can be built with it, and the
    bytes of its tokens."""
    from data_pipeline.tokenizer.imported import import_tokenizer

    path = tokenizer_file(Path(given) if given else folder)
    if not path.is_file():
        raise InputError.of(
            f"there is no tokenizer {path}",
            "without it nothing can be read that the weights have learnt",
            "tokenizer=PATH of the tokenizer.json, or tokenizer=none for the weights alone",
        )
    encoder = import_tokenizer(path, "reference")
    if encoder.vocab_size > described.vocab_size:
        raise InputError.of(
            f"{path} has {encoder.vocab_size} tokens, the embedding {described.vocab_size} rows",
            "it is not the tokenizer of these weights",
            "tokenizer=PATH of the one that they were trained with",
        )
    return path, encoder.token_bytes


def _companions(planned: Import, folder: Path) -> list[Path]:
    """Write the files that decode the tokens, as a corpus has them."""
    if planned.tokenizer is None or planned.token_bytes is None:
        return []
    tokenizer, lengths = folder / TOKENIZER, folder / TOKEN_BYTES
    write_bytes(tokenizer, planned.tokenizer.read_bytes())
    np.save(lengths, planned.token_bytes)
    return [tokenizer, lengths]


def _at(config: Config, tokenizer: Path) -> Config:
    if config.data.build.tokenizer == "train":
        return config
    build = replace(config.data.build, tokenizer=str(tokenizer))
    return replace(config, data=replace(config.data, build=build))


def _state(planned: Import, tokenizer: Path) -> CheckpointState:
    found = planned.tokenizer
    return CheckpointState(
        position=Position(),
        num_loops=planned.model.num_loops,
        vocab_size=planned.rows,
        tokens=planned.described.vocab_size,
        tokenizer_hash="" if found is None else file_digest(found),
        tokenizer_path="" if found is None else str(tokenizer),
        corpus="",
        corpus_dir="",
        config_hash=config_hash(planned.config),
        world_size=1,
        warmup_steps=None,
        specials=planned.specials,
    )


def _write(writer: WeightsWriter, planned: Import, ours: str) -> None:
    name, layer = shard_name(ours)
    model, parts = planned.model, parts_of(planned, planned.model, ours)
    shape = [sum(len(part) for part in parts), *parts[0].shape[1:]]
    row = 0
    for part in parts:
        offset = [row, *[0] * (part.ndim - 1)]
        row += len(part)
        found = part.to(planned.source.dtype)
        if layer is None:
            writer.write(name, found, offset, shape)
        else:
            writer.write(name, found[None], [layer, *offset], [model.num_layers, *shape])
