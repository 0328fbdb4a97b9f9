"""The tokenizer of a checkpoint, for conversations that it is to be tuned on.

    CACHE/tokenizers/KEY/   tokenizer.json, chat_template.jinja and tokenizer_config.json, as for
                            transformers; KEY follows from their content

A checkpoint keeps its template and the names of its special tokens in its state, where the pipeline
does not look.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.places import find_at
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.chat import CHECKPOINT
from loopcoder.config.schema import Config
from loopcoder.data.places import CHAT_TEMPLATE, TOKENIZER
from loopcoder.errors import InputError
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.files import write_bytes

_CONFIG = "tokenizer_config.json"
FOLDER = "tokenizers"
"""Below data.build.cache_dir."""


def with_own_tokenizer(config: Config, start: Checkpoint | None = None) -> Config:
    """Return a config whose conversations are encoded by the tokenizer in a folder, in place of
    that of a checkpoint, or of a run; others come back as they are.

    Args:
        start: What the run starts from, if that is known: its own newest checkpoint has the
            tokenizer of the one that it began from, which may be gone.

    Raises:
        InputError: there is no such checkpoint, or it has no tokenizer.
        LoopcoderError: its store does not answer.
    """
    build = config.data.build
    if not build.is_chat or build.tokenizer == "train":
        return config
    cache = Path(build.cache_dir).expanduser()
    place = build.tokenizer
    if place == CHECKPOINT and start is not None:
        found = start
    elif place == CHECKPOINT:
        if config.checkpoint.init_from is None:
            return config  # which the pipeline refuses, if it has to build the corpus
        found = find_at(config.checkpoint.init_from, cache, "checkpoint.init_from", shards=False)
    elif not _is_checkpoint(Path(place).expanduser()):
        return config
    else:
        found = find_at(place, cache, "data.build.tokenizer", shards=False)
    folder = tokenizer_folder(found, cache)
    data = replace(config.data, build=replace(build, tokenizer=str(folder)))
    return replace(config, data=data)


def _is_checkpoint(path: Path) -> bool:
    """Say whether a path is a checkpoint's, or of a folder of them or of a run."""
    return (path / layout.STATE).is_file() or any(
        layout.complete(folder) for folder in (path, path / "checkpoints")
    )


def tokenizer_folder(checkpoint: Checkpoint, cache: Path) -> Path:
    """Return a folder of the cache with the tokenizer of a checkpoint, and its template.

    Raises:
        InputError: it has no tokenizer.
    """
    state = checkpoint.state()
    tokenizer = checkpoint.path / TOKENIZER
    if not tokenizer.is_file():
        raise InputError.of(
            f"{checkpoint.place} has no tokenizer",
            "conversations are encoded by that of the weights, or their ids would mean other text",
            "data.build.tokenizer=FOLDER with the tokenizer.json of these weights",
        )
    contents = {TOKENIZER: tokenizer.read_bytes()}
    if state.specials is not None:
        contents[_CONFIG] = json.dumps(state.specials.names, sort_keys=True).encode()
        if (template := state.specials.chat_template) is not None:
            contents[CHAT_TEMPLATE] = template.encode()
    digests = {name: fingerprint(content.hex()) for name, content in contents.items()}
    folder = cache / FOLDER / fingerprint(digests)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if not (folder / name).is_file():
            write_bytes(folder / name, content)
    return folder
