"""What megatron-core and torch unpickle when they load a checkpoint, kept from running anything.

`.metadata`, which says where each tensor lies, and objects among the shards (`common_state`, the
optimizer's groups) are pickles, and torch 2.11 loads both without limits
(torch/distributed/checkpoint: filesystem.py `read_metadata`, default_planner.py `load_bytes`).
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException  # a BaseException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from loopcoder.checkpoint.format import Checkpoint, files_of
from loopcoder.errors import InputError
from loopcoder.storage.unpickle import RefusedPickle, unpickle

METADATA = ".metadata"
_COMMON = "common.pt"
_MODULES = {
    metadata.__name__: {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata"),
        *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
    },
    filesystem.__name__: {"_StorageInfo"},
}
_MAKERS: dict[str, Callable[..., Any]] = {
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    f"{metadata.__name__}._MEM_FORMAT_ENCODING": metadata._MEM_FORMAT_ENCODING,
}


def _is_known(module: str, name: str) -> bool:
    is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
    return is_type or name in _MODULES.get(module, ())


def metadata_of(folder: Path) -> tuple[metadata.Metadata, dict[str, int]]:
    """Read where the tensors of a checkpoint lie, and how long each file is at least.

    Raises:
        InputError: it is damaged, or wants to run something.
    """
    path = folder / METADATA
    needed: dict[str, int] = {}
    try:
        found = unpickle(path.read_bytes(), _is_known, _MAKERS)
        if not isinstance(found, metadata.Metadata):
            raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
        for info in found.storage_data.values():
            end = info.offset + info.length
            needed[info.relative_path] = max(end, needed.get(info.relative_path, 0))
    except RefusedPickle as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # a damaged pickle fails in as many ways as there are instructions
        raise InputError.of(
            f"{path} cannot be read: {error!r}",
            "it says where each tensor lies, and was cut off or altered",
            "another checkpoint",
        ) from error
    return found, needed


def read_metadata(checkpoint: Checkpoint) -> metadata.Metadata:
    """Read where the tensors of a checkpoint lie.

    Raises:
        InputError: it is damaged, wants to run something, or names files outside the manifest.
    """
    found, named = metadata_of(checkpoint.path)
    path = checkpoint.path / METADATA
    if foreign := sorted(named.keys() - files_of(checkpoint).keys()):
        raise InputError.of(
            f"{path} names {foreign[0]}, which the manifest does not have",
            "what is not in the manifest was not written with the checkpoint",
            "another checkpoint",
        )
    return found


@contextmanager
def nothing_runs(checkpoint: Checkpoint) -> Iterator[None]:
    """Keep what is loaded in the block by megatron-core from running anything.

    Raises:
        InputError: a file wants to; it names both.
    """
    if (checkpoint.path / _COMMON).exists():  # megatron-core would read it instead of the shards
        raise InputError.of(
            f"{checkpoint.path / _COMMON} is in the checkpoint",
            "loopcoder writes no such file, and it could bring what the manifest does not have",
            "remove it, or another checkpoint",
        )
    found = read_metadata(checkpoint)
    refused: list[InputError] = []

    def read(reader: Any, *_: Any, **__: Any) -> metadata.Metadata:
        return found

    def load_known(planner: Any, item: Any, value: io.BytesIO) -> None:
        try:
            torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            info = found.storage_data[item.storage_index]
            place = f"{checkpoint.path / info.relative_path} ({item.storage_index.fqn})"
            refused.append(_refused(Path(place), _wanted(error)))
            raise refused[-1] from error  # torch hands it to the other ranks
        value.seek(0)
        load_theirs(planner, item, value)

    reader: Any = filesystem.FileSystemReader
    planner: Any = DefaultLoadPlanner
    read_theirs, load_theirs = reader.read_metadata, planner.load_bytes
    reader.read_metadata, planner.load_bytes = read, load_known
    try:
        yield
    except (Exception, CheckpointException) as error:
        if isinstance(error, CheckpointException):
            refused += [e for e, _ in error.failures.values() if isinstance(e, InputError)]
        if refused:
            raise refused[0] from None
        raise
    finally:
        reader.read_metadata, planner.load_bytes = read_theirs, load_theirs


def _wanted(error: pickle.UnpicklingError) -> str:
    """Return what torch says that a file wanted, out of its advice to trust it."""
    said = str(error)
    found = re.search(r"GLOBAL (\S+)", said) or re.search(r"WeightsUnpickler error: (.*)", said)
    return found[1] if found else said.splitlines()[0]


def _refused(path: Path, wanted: str) -> InputError:
    return InputError.of(
        f"{path} wants to run {wanted}",
        "a checkpoint holds tensors and numbers; whoever made or altered this one wants code to be "
        "run where it is loaded. Nothing of it was run",
        "tell whoever gave it to you; a checkpoint from another source",
    )
