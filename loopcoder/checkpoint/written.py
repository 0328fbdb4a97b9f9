"""A checkpoint of weights alone, written tensor by tensor by one process without a process group.

The format is that of torch.distributed.checkpoint as megatron-core writes it; what a tensor needs
in memory is all that is needed.
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.digest import DIGEST, tensor_digest, whole_digest
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.checkpoint.unpickled import METADATA
from loopcoder.config.compose import save_config
from loopcoder.config.schema import Config
from loopcoder.storage.files import sync_folder, synced_entry, write_bytes, write_json

_SHARD = "__0_0.distcp"
_COMMON = "common_state/shard_0_1"
"""Where megatron-core looks for what is no tensor; there is nothing such beside weights."""
_BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


class WeightsWriter:
    """Writes the shards of a new checkpoint, then what makes them one.

    Used as a context manager, which closes its file.
    """

    def __init__(self, folder: Path):
        """
        Args:
            folder: To be made; its name is step_NNNNNNNN.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        self._file = open(folder / _SHARD, "wb")  # noqa: SIM115 - closed by __exit__
        self._tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._sums: dict[str, int] = {}
        self._save(MetadataIndex(_COMMON), [{}])
        self._tensors[_COMMON] = BytesStorageMetadata()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, name: str, part: Tensor, offset: Sequence[int], shape: Sequence[int]) -> None:
        """Write a part of a tensor.

        Args:
            name: Of the tensor in the shards (`hf.mapping.shard_name`).
            part: As many axes as the whole tensor.
            offset: Where it begins in the whole tensor, by axis.
            shape: Of the whole tensor.
        """
        part = part.detach().contiguous()
        if part.untyped_storage().nbytes() != part.nbytes:  # else all of it would be written
            part = part.clone()
        at = torch.Size(offset)
        whole = TensorStorageMetadata(TensorProperties(part.dtype), torch.Size(shape), [])
        known = self._tensors.setdefault(name, whole)
        assert isinstance(known, TensorStorageMetadata)
        known.chunks.append(ChunkStorageMetadata(at, part.shape))
        found = tensor_digest(name, part, list(offset), list(shape))
        self._sums[name] = (self._sums.get(name, 0) + int(found)) % (1 << 64)
        self._save(MetadataIndex(name, at), part)

    def complete(self, config: Config, state: CheckpointState, companions: Sequence[Path]) -> None:
        """Write everything else; with the manifest, which comes last, it is a checkpoint.

        Args:
            config: Of a run that could have saved it.
            companions: Files of which it gets a copy.
        """
        self._file.close()
        metadata = Metadata(self._tensors, storage_data=self._places)
        write_bytes(self.folder / METADATA, pickle.dumps(metadata))
        write_json(self.folder / "metadata.json", _BACKEND)
        save_config(config, self.folder / layout.CONFIG)
        content = state.to_json()
        write_json(self.folder / layout.STATE, content)
        sums = {name: f"{total:016x}" for name, total in self._sums.items()}
        write_json(self.folder / DIGEST, {"sums": whole_digest(sums, content, config)})
        for file in companions:
            shutil.copyfile(file, self.folder / file.name)
        files = {path.name: synced_entry(path) for path in sorted(self.folder.iterdir())}
        write_json(self.folder / layout.MANIFEST, {"files": files})
        sync_folder(self.folder)

    def _save(self, index: MetadataIndex, value: object) -> None:
        offset = self._file.tell()
        if isinstance(value, Tensor):
            torch.save(value, self._file)
        else:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            self._file.write(buffer.getbuffer())
        length = self._file.tell() - offset
        self._places[index] = _StorageInfo(_SHARD, offset, length)
