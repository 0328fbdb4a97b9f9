"""Where the files of a corpus are: all in a folder, or its training shards in a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopcoder.data.indexed import BLOCKS
from loopcoder.data.labels import LABELS
from loopcoder.data.mask import MASK, MASK_BLOCKS
from loopcoder.errors import InputError, LoopcoderError, Problem
from loopcoder.storage.files import parsing
from loopcoder.storage.remote import Store, is_url

TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"
ORIGIN = "origin.json"
"""Beside the manifest of a corpus whose training shards are in a store: its URL (see mirror.py)."""
CHAT_TEMPLATE = "chat_template.jinja"
"""Beside the manifest of a chat corpus: what its conversations were rendered with."""
HELD_OUT = "held_out.jsonl"
"""Beside it too: its held-out conversations, each a line, as `chat.conversation.canonical`."""
OF_A_SHARD = (".bin", ".idx", LABELS, MASK)
"""Suffixes of the files of a shard."""

ELSEWHERE = "data=corpus path=FOLDER, or the path of its entry in data.corpora,"
"""What names another place of a corpus that a run reads."""
PERMIT = "chmod or chown it so that this user may read it"


def tokenizer_file(path: Path) -> Path:
    """Return the file of a tokenizer: a path itself, or of a folder for transformers the
    tokenizer.json in it. Where that is missing, its SentencePiece model is for the reader to
    refuse."""
    path = path.expanduser()
    if not path.is_dir():
        return path
    others = (path / "tokenizer.model",)
    return next((p for p in (path / TOKENIZER, *others) if p.is_file()), path / TOKENIZER)


def origin_of(folder: Path) -> str | None:
    """Return the URL of a corpus whose training shards are in a store; None: they are here."""
    if not (folder / ORIGIN).is_file():
        return None
    why = "it names the store that has the training shards, and was cut off or altered"
    with parsing(folder / ORIGIN, why, f"rm -r {folder}; it is fetched again"):
        return str(json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["url"])


def small_files(manifest: Mapping[str, Any]) -> list[str]:
    """Return the files that training reads from a folder of this machine, of a corpus in a store:
    all but training shards, and what only people read."""
    shards = [s for d in manifest["domains"].values() for s in d["val"]["shards"]]
    names = [TOKENIZER, TOKEN_BYTES, CHAT_TEMPLATE, HELD_OUT]
    names += [s["prefix"] + e for s in shards for e in OF_A_SHARD]
    digests = [s["prefix"] + e for s in training_shards(manifest) for e in (BLOCKS, MASK_BLOCKS)]
    return [name for name in [*names, *digests] if name in manifest["files"]]


def check_store(store: Store, manifest: Mapping[str, Any]) -> None:
    """Compare the sizes of the objects of a corpus with its manifest.

    Raises:
        InputError: with everything that is missing or of another size.
        LoopcoderError: the store cannot be read.
    """
    sizes = store.sizes()
    problems = []
    shards = [s["prefix"] + e for s in training_shards(manifest) for e in (".bin", LABELS, MASK)]
    for name in [*small_files(manifest), *(n for n in shards if n in manifest["files"])]:
        wanted = manifest["files"][name]["bytes"]
        if (there := sizes.get(name)) != wanted:
            has = "is missing" if there is None else f"has {there:,} bytes"
            fact = f"{store.url}/{name} {has}, {wanted:,} were written"
            why = "it was cut off or changed after it was built, or never uploaded"
            problems.append(Problem(fact, why, rebuild(store.url)))
    if problems:
        raise InputError(problems)


def training_shards(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of all training shards."""
    return [shard for d in manifest["domains"].values() for shard in d["train"]["shards"]]


def rebuild(folder: Path | str) -> str:
    """Return the fix of a corpus that is damaged, by its folder or its URL."""
    if is_url(folder):
        return f"upload it to {folder} again from the corpus that was built, or build that again"
    if isinstance(folder, Path) and (folder / ORIGIN).is_file():
        return f"delete {folder}, which the same command fetches again"
    return (
        f"restore what is named from a copy of the corpus, or delete {folder} and build it again "
        "(the same command does, with data=sample, files or hf)"
    )


def unreadable(path: Path | str, error: OSError) -> LoopcoderError:
    """Return the error of a file of a corpus that is there and cannot be read."""
    fact = f"{path} cannot be read: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return InputError.of(fact, "training reads all files of its corpus", PERMIT)
    return LoopcoderError.of(
        fact,
        "its disk or its server fails; what was trained is saved",
        f"the same command once it can be read, or with {ELSEWHERE} of a copy",
    )
