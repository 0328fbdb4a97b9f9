"""The weights of a checkpoint, one tensor at a time, without a process group, a model or a GPU.

A checkpoint of any layout says in its metadata which part of which tensor lies where. All layers
are in it as one tensor, with an axis for the layer in front, under the names of Transformer Engine,
which fuses two norms into the projections that follow (mapping.plain_name).
"""

from __future__ import annotations

import math
import pickle
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.digest import read_digest, tensor_digest
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.unpickled import read_metadata
from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError, Problem
from loopcoder.hf.mapping import names_of, plain_name

_MODEL = "model."
_LAYERS = re.compile(r"decoder\.layers\.(?!\d+\.)")
"""Of the name of a tensor that has all layers."""


@dataclass(frozen=True)
class _Part:
    """Where a part of a tensor lies."""

    file: str
    offset: int
    length: int
    begin: tuple[int, ...]
    """Its first element in the whole tensor, by axis."""
    size: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """A tensor of one name here, as a checkpoint has it."""

    key: str
    """In the checkpoint."""
    layer: int | None
    """Of a tensor that has all layers."""
    whole: tuple[int, ...]
    """Shape of the tensor in the checkpoint."""
    dtype: torch.dtype
    parts: tuple[_Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole if self.layer is None else self.whole[1:]


class Weights:
    """The weights of a checkpoint under our names of plain PyTorch layers."""

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig):
        """
        Args:
            model: What the checkpoint is of.

        Raises:
            InputError: it is damaged, wants to run something, or lacks weights of the model.
        """
        self.checkpoint = checkpoint
        self.names = names_of(model)
        self._digest = read_digest(checkpoint)
        # without a digest of every tensor, the hashes of all files say whether they are whole
        level: layout.Level = "small" if self._digest is not None else "hash"
        if facts := list(layout.faults(checkpoint, level)):
            raise layout.corrupt(checkpoint, facts)
        self._places = _places(checkpoint)
        if missing := [name for name in self.names if name not in self._places]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError.of(
                f"{checkpoint.place} lacks {', '.join(missing[:3])}{more}",
                "a model of its config.yaml has them",
                "another checkpoint",
            )
        self._sums: dict[str, int] = defaultdict(int)
        self._read: set[str] = set()

    def like(self, name: str) -> Tensor:
        """Return an empty tensor on the device `meta` of a weight's shape and type."""
        place = self._places[name]
        return torch.empty(place.shape, dtype=place.dtype, device="meta")

    def read(self, name: str) -> Tensor:
        """Return a weight, whole.

        Raises:
            InputError: its file is damaged.
        """
        place = self._places[name]
        if len(place.parts) == 1:
            found = self._load(place, place.parts[0])
        else:
            found = torch.empty(place.shape, dtype=place.dtype)
            for part in place.parts:
                axes = zip(part.begin, part.size, strict=True)
                region = [slice(begin, begin + size) for begin, size in axes]
                found[tuple(region if place.layer is None else region[1:])] = self._load(
                    place, part
                )
        if self._digest is not None and name not in self._read:
            self._read.add(name)
            whole = found if place.layer is None else found[None]
            begin = [0] * whole.ndim if place.layer is None else [place.layer] + [0] * found.ndim
            self._sums[place.key] += int(tensor_digest(place.key, whole, begin, [*place.whole]))
        return found

    def check(self) -> None:
        """Compare what was read with the digest of the checkpoint, once every weight was.

        Raises:
            InputError: with every tensor that is not what was saved.
        """
        if self._digest is None:
            return
        if unread := set(self.names) - self._read:
            raise AssertionError(f"{len(unread)} weights were not read")
        problems = [
            Problem(
                f"{self.checkpoint.place}: {key} is not what was saved",
                "its bits were altered after they were summed up (digest.json)",
                f"another checkpoint: {layout.contents(self.checkpoint.path.absolute().parent)}",
            )
            for key, total in self._sums.items()
            if f"{total % (1 << 64):016x}" != self._digest.get(key)
        ]
        if problems:
            raise InputError(problems)

    def _load(self, place: _Place, part: _Part) -> Tensor:
        path = self.checkpoint.path / part.file
        try:
            with open(path, "rb") as file:
                view: Any = _create_file_view(file, part.offset, part.length)
                data = torch.load(view, map_location="cpu", weights_only=True)
        except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            said = str(error).splitlines()[0] if str(error) else repr(error)
            fact = f"{path}: {place.key} cannot be read: {said}"
            raise layout.corrupt(self.checkpoint, [fact]) from error
        wanted = part.size if place.layer is None else part.size[1:]
        is_tensor = isinstance(data, Tensor) and data.dtype == place.dtype
        if not is_tensor or data.numel() != math.prod(part.size):
            fact = f"{path}: {place.key} is not what its metadata says"
            raise layout.corrupt(self.checkpoint, [fact])
        return data.reshape(wanted)


def _places(checkpoint: Checkpoint) -> dict[str, _Place]:
    """Return where each weight lies, by our names."""
    metadata = read_metadata(checkpoint)
    lie: dict[str, dict[tuple[int, ...], tuple[str, int, int]]] = defaultdict(dict)
    for index, info in metadata.storage_data.items():
        if index.fqn.startswith(_MODEL) and index.offset is not None:
            place = info.relative_path, info.offset, info.length
            lie[index.fqn][tuple(index.offset)] = place
    out: dict[str, _Place] = {}
    for key, about in metadata.state_dict_metadata.items():
        # extra state of Transformer Engine is no tensor
        if not key.startswith(_MODEL) or not isinstance(about, TensorStorageMetadata):
            continue
        chunks = [(tuple(c.offsets), tuple(c.sizes)) for c in about.chunks]
        parts = [_Part(*lie[key][b], b, s) for b, s in chunks if b in lie[key]]
        whole, name = tuple(about.size), plain_name(key.removeprefix(_MODEL))
        dtype = about.properties.dtype
        if _LAYERS.search(name) is None:
            out[name] = _whole(checkpoint, _Place(key, None, whole, dtype, tuple(parts)))
            continue
        for layer in range(whole[0]):
            mine = tuple(part for part in parts if part.begin[0] == layer)
            of_layer = name.replace("decoder.layers.", f"decoder.layers.{layer}.")
            out[of_layer] = _whole(checkpoint, _Place(key, layer, whole, dtype, mine))
    return out


def _whole(checkpoint: Checkpoint, place: _Place) -> _Place:
    """Return a place whose parts are the tensor, without gaps."""
    elements = sum(math.prod(part.size) for part in place.parts)
    fits = all(_is_within(part, place) for part in place.parts)
    if not fits or elements != math.prod(place.shape):
        fact = f"{checkpoint.path}: the parts of {place.key} in its metadata are not the tensor"
        raise layout.corrupt(checkpoint, [fact])
    return place


def _is_within(part: _Part, place: _Place) -> bool:
    one_layer = place.layer is None or part.size[0] == 1
    ends: Sequence[int] = [b + s for b, s in zip(part.begin, part.size, strict=True)]
    return one_layer and all(end <= n for end, n in zip(ends, place.whole, strict=True))
