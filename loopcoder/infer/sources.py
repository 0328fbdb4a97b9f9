"""Where the weights of a decoder are: a checkpoint of any layout, or a folder for transformers.

Both give one weight at a time under our names, and neither is copied: nothing is imported to the
cache, and megatron-core is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from loopcoder.backends import Backends
from loopcoder.checkpoint.copies.places import find_at
from loopcoder.checkpoint.format import MANIFEST, Checkpoint
from loopcoder.checkpoint.state import Specials
from loopcoder.config.schema import Config, ModelConfig, ParallelConfig
from loopcoder.config.this_machine import for_this_machine
from loopcoder.data.places import TOKENIZER, tokenizer_file
from loopcoder.data.sampler import trained_stage
from loopcoder.hf.folder import ReleasedFolder, is_folder
from loopcoder.hf.importing import new_gate, parts_of, plan
from loopcoder.hf.weights import Weights
from loopcoder.infer.weights import Read
from loopcoder.storage.digest import file_digest, fingerprint
from loopcoder.storage.remote import is_stored


@dataclass(frozen=True)
class Asked:
    """How the weights are to be run, where that is not as they were trained."""

    backends: Backends
    num_loops: int | None = None
    precision: Literal["fp32", "bf16"] | None = None
    """None: fp32 on a CPU, and on a GPU what was trained."""
    parallel: ParallelConfig | None = None

    def of(self, trained: Config) -> Config:
        return for_this_machine(
            trained, self.backends, self.num_loops, self.precision, self.parallel
        )


@dataclass(frozen=True)
class Source:
    """Weights, and what is known of them."""

    place: str
    """What names it to a user."""
    identity: str
    """Changes when other weights are written to the same place."""
    config: Config
    """With which this machine runs them."""
    model: ModelConfig
    """Of the config, with the `rope_theta` that was trained last."""
    rows: int
    """Of embedding and head, with those that pad."""
    tokens: int | None
    """Rows without those that pad; None: the tokenizer knows it."""
    tokenizer: Path | None
    """The tokenizer.json; None: there is none."""
    specials: Specials | None
    """What a folder says of special tokens and chat."""
    corpus: str | None
    """Folder of the corpus that was trained on last; None: it is not known."""
    read: Read
    check: Callable[[], None]
    """Raises InputError where what was read is not what was saved; once all of it was."""


def source_at(place: str | Path | Checkpoint, cache: Path, asked: Asked) -> Source:
    """Find the weights that a path or a URL names.

    Args:
        place: A checkpoint, a folder or URL of several, a run: the newest complete one; or a folder
            for transformers, exported or released.
        cache: Where what comes from a URL is kept.

    Raises:
        InputError: there are none, they are damaged, or cannot be run as asked.
    """
    if isinstance(place, Checkpoint):
        return _of_checkpoint(place, asked)
    folder = Path(place).expanduser()
    if not is_stored(str(place)) and is_folder(folder):
        return _of_folder(folder, asked)
    return _of_checkpoint(find_at(str(place), cache), asked)


def _of_checkpoint(checkpoint: Checkpoint, asked: Asked) -> Source:
    trained, state = checkpoint.config(), checkpoint.state()
    config = asked.of(trained)
    has_gates = trained.model.has_gates
    weights = Weights(checkpoint, config.model if has_gates else trained.model)

    def read(name: str) -> torch.Tensor:
        is_new = "plt_gate" in name and not has_gates
        return new_gate(name, config.model) if is_new else weights.read(name)

    stage = config.stages[trained_stage(config.stages, state.position)]
    copied = checkpoint.path / TOKENIZER
    tokenizer = copied if copied.is_file() else Path(state.tokenizer_path)
    return Source(
        place=checkpoint.place,
        identity=file_digest(checkpoint.path / MANIFEST),
        config=config,
        model=replace(config.model, rope_theta=stage.rope_theta),
        rows=state.vocab_size,
        tokens=state.tokens,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        specials=state.specials,
        corpus=state.corpus_dir or None,
        read=read,
        check=weights.check,
    )


def _of_folder(folder: Path, asked: Asked) -> Source:
    has_tokenizer = tokenizer_file(folder).is_file()
    # rows that pad would be tokens
    source = ReleasedFolder(folder)
    rows = source.config.get("vocab_size")
    planned = plan(source, [f"model.vocab_size={rows}"], "" if has_tokenizer else "none")
    config = asked.of(planned.config)
    return Source(
        place=str(folder),
        identity=_identity(folder),
        config=config,
        model=config.model,
        rows=planned.rows,
        tokens=planned.described.vocab_size,
        tokenizer=planned.tokenizer,
        specials=planned.specials,
        corpus=None,
        read=lambda name: torch.cat(parts_of(planned, config.model, name)),
        check=lambda: None,
    )


def _identity(folder: Path) -> str:
    """Hash what is known of a folder's files without reading weights."""
    files = sorted(f for pattern in ("*.safetensors", "*.json") for f in folder.glob(pattern))
    stats = [(file.name, file.stat()) for file in files]
    return fingerprint([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
