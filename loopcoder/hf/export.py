"""A checkpoint as a folder for transformers: weights, config, tokenizer, code and model card.

    config.json, generation_config.json             every field of the released format
    model-0000N-of-0000M.safetensors, ...index.json the released names, one file where it is small
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja
    configuration_iquestpltcoder.py, modeling_iquestpltcoder.py
    README.md                                       model card
    loopcoder_export.json                           source; size and hash of each file

It is written under another name, and has its own when it is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from loopcoder import __version__
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.schema import ModelConfig
from loopcoder.data.places import TOKENIZER
from loopcoder.data.sampler import trained_stage
from loopcoder.errors import InputError
from loopcoder.hf import card, config, template
from loopcoder.hf.mapping import to_released
from loopcoder.hf.weights import Weights
from loopcoder.storage.digest import file_digest, fingerprint
from loopcoder.storage.files import (
    FileEntry,
    fault_of,
    in_words,
    synced_entry,
    write_bytes,
    write_json,
)
from loopcoder.storage.folders import refuse_unnamed, whole_folder

RECORD = "loopcoder_export.json"
INDEX = "model.safetensors.index.json"
CODE = ("configuration_iquestpltcoder.py", "modeling_iquestpltcoder.py")
SHARD_BYTES = 4_000_000_000
"""Size of a file of weights, which is also about what the export needs of memory."""
_SMALL_BYTES = 50_000_000
"""Room for all other files."""
_BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
Released = Callable[[str, Tensor], dict[str, Tensor]]
"""Makes the released tensors of one of our weights."""
_DTYPES: dict[torch.dtype, Literal["bfloat16", "float32"]] = {
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}


@dataclass(frozen=True)
class Exported:
    """A folder that was written, or was there."""

    folder: Path
    files: tuple[str, ...]
    """Names of all that belongs to it."""
    size_bytes: int
    was_there: bool


def export(
    checkpoint: Checkpoint,
    output: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a checkpoint of any layout as a folder for transformers.

    Args:
        output: Not there yet, empty, or the same export.
        shard_bytes: At most in a file of weights, but for a tensor that is larger.
        report: Called with what is being written.

    Raises:
        InputError: the checkpoint is damaged, the released format has no field for its model, or
            something else is in `output`.
        DiskFull: there is no room.
    """
    refuse_unnamed(output, "output")
    trained, state = checkpoint.config(), checkpoint.state()
    made_from = {
        "manifest": file_digest(checkpoint.path / layout.MANIFEST),
        "loopcoder": __version__,
        "template": fingerprint(*(file_digest(path) for path in _code())),
        "shard_bytes": shard_bytes,
    }
    if (there := _there(output, made_from)) is not None:
        return there
    weights = Weights(checkpoint, trained.model)
    tokenizer = card.Tokenizer.of(_tokenizer(checkpoint), state.specials)
    dtype = weights.like(weights.names[0]).dtype
    if dtype not in _DTYPES:
        raise InputError.of(
            f"{checkpoint.place} has weights of {dtype}",
            f"weights are exported in {' or '.join(_DTYPES.values())}",
            "a checkpoint of precision=bf16 or fp8_*, whose weights are in bf16",
        )
    rows = state.tokens or state.vocab_size
    stage = trained.stages[trained_stage(trained.stages, state.position)]
    content = config.to_released(
        trained.model,
        rows,
        rope_theta=stage.rope_theta,
        dtype=_DTYPES[dtype],
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_ids,
        pad_token_id=tokenizer.given_pad_id,
    )
    content["auto_map"] = {
        "AutoConfig": "configuration_iquestpltcoder.IQuestPLTCoderConfig",
        "AutoModel": "modeling_iquestpltcoder.IQuestPLTCoderModel",
        "AutoModelForCausalLM": "modeling_iquestpltcoder.IQuestPLTCoderForCausalLM",
    }
    released = partial(_released, trained.model, rows)
    parts = _parts(weights, released, shard_bytes)
    total = sum(size for part in parts for size in part.values())
    with whole_folder(output, "output", total + _SMALL_BYTES, may_be_empty=True) as folder:
        where: dict[str, str] = {}
        for number, part in enumerate(parts, 1):
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            name = "model.safetensors" if len(parts) == 1 else name
            report(f"{name} ({in_words(sum(part.values()))})")
            where |= dict.fromkeys(_save(folder / name, part, weights, released), name)
        weights.check()
        if len(parts) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_json(folder / INDEX, index)
        write_json(folder / "config.json", content)
        for name, text in tokenizer.files(trained.model.max_position_embeddings).items():
            write_bytes(folder / name, text.encode())
        for path in _code():
            write_bytes(folder / path.name, path.read_bytes())
        text = card.model_card(checkpoint, trained, state, content, total, __version__)
        write_bytes(folder / "README.md", text.encode())
        files = {path.name: synced_entry(path) for path in sorted(folder.iterdir())}
        write_json(folder / RECORD, {"made_from": made_from, "files": files})
    return _exported(output, files, was_there=False)


def _exported(output: Path, files: Mapping[str, FileEntry], *, was_there: bool) -> Exported:
    size = sum(entry["bytes"] for entry in files.values())
    return Exported(output, (*files, RECORD), size, was_there)


def _code() -> list[Path]:
    return [Path(str(template.__file__)).with_name(name) for name in CODE]


def _tokenizer(checkpoint: Checkpoint) -> Path:
    copied = checkpoint.path / TOKENIZER
    path = copied if copied.is_file() else Path(checkpoint.state().tokenizer_path)
    if path.is_file():
        return path
    raise InputError.of(
        f"{checkpoint.place} has no {TOKENIZER}, and {path} is gone",
        "checkpoints have a copy since 2026-11-29; older ones name that of their corpus",
        f"put the tokenizer of the corpus at {copied}",
    )


def _released(model: ModelConfig, rows: int, name: str, weight: Tensor) -> dict[str, Tensor]:
    """Return the released tensors of a weight; embedding and head without the rows that pad what
    was imported."""
    found = to_released({name: weight}, model)
    return {key: x[:rows] if key in _BY_TOKEN else x for key, x in found.items()}


def _parts(weights: Weights, released: Released, shard_bytes: int) -> list[dict[str, int]]:
    """Share the weights among files; return the bytes of each by our names."""
    parts: list[dict[str, int]] = [{}]
    for name in weights.names:
        size = sum(x.nbytes for x in released(name, weights.like(name)).values())
        if parts[-1] and sum(parts[-1].values()) + size > shard_bytes:
            parts.append({})
        parts[-1][name] = size
    return parts


def _save(path: Path, part: dict[str, int], weights: Weights, released: Released) -> list[str]:
    """Write a file of weights; return the released names in it."""
    tensors: dict[str, Tensor] = {}
    for name in part:
        tensors |= released(name, weights.read(name))
    # parts of a merged weight are views, which safetensors does not take
    tensors = {name: tensors[name].contiguous() for name in list(tensors)}
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), str(error)) from error
        raise
    # safetensors makes its files for this user alone
    usual = path.with_suffix(".mode")
    usual.touch()
    path.chmod(usual.stat().st_mode & 0o777)
    usual.unlink()
    return list(tensors)


def _there(output: Path, made_from: dict[str, Any]) -> Exported | None:
    """Return the same export where it is there already; None: nothing is there.

    Raises:
        InputError: something else is there.
    """
    if not output.is_symlink() and not output.exists():
        return None
    fact = f"output={output} is there already"
    fix = f"output=ANOTHER, or rm -r {output}"
    if not output.is_dir():
        raise InputError.of(fact, "an export is a new folder", "output=ANOTHER")
    if not any(output.iterdir()):
        return None
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        files, same = record["files"], record["made_from"] == made_from
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"it is no export that could be compared ({RECORD} is missing or damaged)"
        raise InputError.of(fact, why, "output=ANOTHER") from error
    if not same:
        why = "it is an export of another checkpoint, or by another version of loopcoder"
        raise InputError.of(fact, why, fix)
    for name, entry in files.items():
        if fault := fault_of(output / name, entry):
            raise InputError.of(fault, f"{output} was altered after it was exported", fix)
    return _exported(output, files, was_there=True)
