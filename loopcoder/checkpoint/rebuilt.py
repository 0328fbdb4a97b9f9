"""A corpus that is about to be built for weights that exist: will they know its tokens?

When it is built its tokenizer is compared with that of the weights (`start.check_fits`). What tells
the difference before hours of work is compared here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loopcoder.checkpoint.format import CONFIG, Checkpoint
from loopcoder.checkpoint.pinned import RECORD
from loopcoder.checkpoint.start import find_start, kept_tokens
from loopcoder.config.build import BuildConfig
from loopcoder.config.compose import load_config
from loopcoder.config.schema import Config
from loopcoder.data.places import tokenizer_file
from loopcoder.errors import InputError
from loopcoder.storage.digest import file_digest


def refuse_other_tokens(config: Config, run_dir: Path, inputs: Sequence[str]) -> None:
    """Raise InputError if the corpus of a config would have another tokenizer than the weights that
    the run starts from.

    Args:
        config: Of the run.
        run_dir: Its folder.
        inputs: The hash of each source's files as they are now.
    """
    start = find_start(config, run_dir)
    if start is None:
        return
    checkpoint = start.checkpoint
    if not checkpoint.state().has_tokenizer:
        if config.data.build.tokenizer == "train":
            raise InputError.of(
                f"{checkpoint.place} was imported without a tokenizer",
                "one that is trained on the documents gives other meanings to the ids",
                "data.build.tokenizer=PATH of the tokenizer.json of these weights",
            )
        return
    before = load_config(checkpoint.path / CONFIG).data.build
    if fact := _other_tokenizer(checkpoint, before, config.data.build, inputs):
        raise InputError.of(
            fact,
            f"the ids that {checkpoint.path} was trained on would mean other text",
            kept_tokens(checkpoint, checkpoint.state(), start.resumes),
        )


def _other_tokenizer(
    checkpoint: Checkpoint, before: BuildConfig, build: BuildConfig, inputs: Sequence[str]
) -> str | None:
    """Return what makes another tokenizer; None: nothing that can be known without training it."""
    if build.tokenizer != "train":
        found = file_digest(tokenizer_file(Path(build.tokenizer)))
        known = checkpoint.state().tokenizer_hash
        return (
            f"data.build.tokenizer={build.tokenizer} is another one than that of the weights"
            if found != known
            else None
        )
    if before.tokenizer != "train":
        return (
            "data.build.tokenizer=train makes another tokenizer than "
            f"data.build.tokenizer={before.tokenizer}"
        )
    old, new = before.tokenizer_vocab_size, build.tokenizer_vocab_size
    if before.sources and old != new:
        return f"data.build.tokenizer_vocab_size={new}, that of the weights had {old}"
    recorded = _recorded_inputs(checkpoint.path.parent.parent)
    if recorded is not None and recorded != list(inputs):
        return "the sources have changed, and data.build.tokenizer=train makes another tokenizer"
    return None


def _recorded_inputs(run_dir: Path) -> list[str] | None:
    """Return the hashes of the sources by a run's record; None: it does not know them."""
    try:
        inputs = json.loads((run_dir / RECORD).read_text(encoding="utf-8")).get("inputs")
    except (OSError, ValueError, AttributeError):
        return None
    return inputs if isinstance(inputs, list) and all(inputs) else None
