"""A folder as transformers has it, read safely: JSON and safetensors only.

Nothing of it is executed: no pickle is opened and no Python file is imported. Tensors are views of
files that are mapped into memory, so that the largest model takes little of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loopcoder.errors import InputError, Problem
from loopcoder.hf.mapping import todays_name
from loopcoder.storage.files import parsing

CONFIG = "config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_BUFFERS = ("rotary_emb.inv_freq",)
"""Suffixes of what older folders hold and no model learns."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMED = 3
"""Tensors that a message names at most."""
_AGAIN = "download the folder again, with all of its files"


def is_folder(path: Path) -> bool:
    """Say whether a path is a folder of this kind, and no run or checkpoint of ours."""
    return (path / CONFIG).is_file() and not (path / "manifest.json").exists()


@dataclass(frozen=True)
class TensorAt:
    """Where a tensor is, and what its file says of it."""

    file: Path
    name: str
    """In the file; it may be of an older spelling."""
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ReleasedFolder:
    """A folder of config.json and safetensors.

    Raises InputError from every property that reads a file which is missing, damaged, or not what
    the others say.
    """

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_object(self.path / CONFIG)

    @cached_property
    def tensors(self) -> dict[str, TensorAt]:
        """Every tensor by its released name of today."""
        found = {}
        for file, names in self._files().items():
            with self._opened(file) as content:
                there = set(content.keys())
                if missing := sorted(names - there) if names is not None else []:
                    raise InputError.of(
                        f"{file} has no {_listed(missing)}",
                        f"{_INDEX} says that it is there",
                        _AGAIN,
                    )
                for name in sorted(names if names is not None else there):
                    if not name.endswith(_BUFFERS):
                        part = content.get_slice(name)
                        dtype = _dtype(file, name, part.get_dtype())
                        at = TensorAt(file, name, dtype, tuple(part.get_shape()))
                        found[todays_name(name)] = at
        return found

    @property
    def dtype(self) -> torch.dtype:
        """bf16 if every tensor is; else fp32, which holds all the others exactly."""
        bf16 = all(at.dtype == torch.bfloat16 for at in self.tensors.values())
        return torch.bfloat16 if bf16 else torch.float32

    def read(self, name: str) -> Tensor:
        """Return a tensor by its released name of today, as it is in its file, which is mapped into
        memory."""
        at = self.tensors[name]
        with self._opened(at.file) as content:
            tensor: Tensor = content.get_tensor(at.name)
        return tensor

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Compare names and shapes with those of a model.

        Raises:
            InputError: with what is missing, of another shape, or of no such model.
        """
        missing = [name for name in wanted if name not in self.tensors]
        foreign = sorted(self.tensors.keys() - wanted.keys())
        other = [
            f"{name} ({_shape(at.shape)}, not {_shape(wanted[name])})"
            for name, at in self.tensors.items()
            if name in wanted and at.shape != wanted[name]
        ]
        why = f"a model of its {CONFIG} has other tensors"
        problems = [
            Problem(f"{self.path} {fact} {_listed(names)}", why, fix)
            for fact, names, fix in (
                ("lacks", missing, _AGAIN),
                ("has another shape of", other, f"the {CONFIG} that belongs to the weights"),
                ("has what no such model has:", foreign, "a folder of a model that is supported"),
            )
            if names
        ]
        if problems:
            raise InputError(problems)

    def _opened(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise InputError.of(
                f"{file} cannot be read: {error}",
                "it is missing, cut off, or no safetensors file",
                _AGAIN,
            ) from error

    def _files(self) -> dict[Path, set[str] | None]:
        """Return the files with weights, and which tensors the index wants from each."""
        if (self.path / _INDEX).is_file():
            return dict(self._indexed())
        if (self.path / _SINGLE).is_file():
            return {self.path / _SINGLE: None}
        pickles = sorted(p.name for pattern in _PICKLES for p in self.path.glob(pattern))
        if pickles:
            raise InputError.of(
                f"{self.path} has weights in {_listed(pickles)} and no safetensors",
                "they are pickles, which can run anything where they are opened; none was opened",
                "the folder with safetensors; if you trust it, save_pretrained() of transformers "
                "writes them",
            )
        raise InputError.of(
            f"{self.path} has neither {_SINGLE} nor {_INDEX}",
            "weights are read from safetensors",
            _AGAIN,
        )

    def _indexed(self) -> Iterator[tuple[Path, set[str]]]:
        index = self.path / _INDEX
        weights = read_object(index).get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(f, str) for f in weights.values()):
            raise InputError.of(f"{index} has no weight_map", "it names each tensor's file", _AGAIN)
        for name in sorted(set(weights.values())):
            if Path(name).name != name or not name.endswith(".safetensors"):
                why = "weights are safetensors directly in the folder"
                raise InputError.of(f"{index} names {name!r}", why, "a folder that you trust")
        files = {self.path / name for name in weights.values()}
        if missing := sorted(file.name for file in files if not file.is_file()):
            raise InputError.of(
                f"{self.path} lacks {_listed(missing)}", f"{_INDEX} names them", _AGAIN
            )
        for file in sorted(files):
            yield file, {name for name, at in weights.items() if at == file.name}


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a file of JSON.

    Raises:
        InputError: it is missing, damaged, or no object.
    """
    try:
        with parsing(path, "it says what the weights are", _AGAIN):
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            return content
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError.of(
            f"there is no {path}",
            "a folder of weights for transformers has one",
            "the folder that has config.json and safetensors",
        ) from error


def _dtype(file: Path, name: str, dtype: str) -> torch.dtype:
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    raise InputError.of(
        f"{file}: {name} is {dtype}",
        f"weights of {', '.join(_DTYPES)} are read; others are quantised",
        "the folder with the weights as they were trained",
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
