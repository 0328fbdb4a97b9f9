"""What names a run and a corpus: the fields that change it, under the names they had first.

Every field says for itself what it changes (`Changes` in types.py). A field that is renamed
(renamed.py) or added (`Changes.since`) renames no run and no corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.config.data import DataConfig
from loopcoder.config.fields import FieldAt, part_that_changes
from loopcoder.config.renamed import first_names
from loopcoder.config.schema import Config
from loopcoder.config.types import NAME, PATTERNS
from loopcoder.storage.folders import is_there

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def config_hash(config: DataclassInstance) -> str:
    """Return ten hex digits that name the run: equal for configs that give the same numbers."""
    text = json.dumps(first_names(_numbers(config)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def corpus_fields(data: DataConfig) -> dict[str, Any]:
    """Return the fields of `data` that decide which corpus is built, under their first names."""
    plain = part_that_changes(dataclasses.asdict(data), FieldAt(DataConfig), {"corpus"})
    return dict(first_names({"data": plain})["data"])


def numbers(config: DataclassInstance) -> dict[str, Any]:
    """Return the fields that a run's numbers depend on, by their dotted names."""
    return dict(leaves(_numbers(config)))


def changes(before: DataclassInstance, after: DataclassInstance) -> list[str]:
    """Return what differs between two configs and changes a run's numbers, one line per field."""
    old, new = numbers(before), numbers(after)
    # a field that was added later is left out where it has its default, which may not be null
    absent = "its default"
    return [
        f"{key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a nested mapping holds, by its dotted names."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, node


def resolve_run_dir(asked: Config, resolved: Config) -> Path:
    """Return the run's folder: `run_dir`, or one under runs/ that `name` and a hash name.

    The hash is of what was asked for, not of what this machine made of it, so that a run is found
    again where other kernels are installed.

    Args:
        resolved: What runs had their hash from until 2026-11-29: a folder with that name, if there
            is one, is this run's. So is one with a name that is not made safe, as all were then.
    """
    if asked.run_dir is not None:
        return Path(asked.run_dir).expanduser()
    label = asked.name or f"{asked.model.name}-r{asked.model.num_loops}"
    folders = [Path("runs") / f"{label}-{config_hash(c)}" for c in (asked, resolved)]
    there = (folder for folder in folders if is_there(folder))
    return next(there, Path("runs") / f"{as_folder(label)}-{config_hash(asked)}")


def as_folder(text: str, most: int = 150) -> str:
    """Return a text as part of the name of one folder: without slashes and what shells read, not
    hidden, and short enough for a file system, which counts bytes."""
    clean = text if re.fullmatch(NAME, text) else re.sub(PATTERNS[NAME][1], "-", text).strip("-")
    return clean.encode()[:most].decode(errors="ignore") or "run"


def _numbers(config: DataclassInstance) -> dict[str, Any]:
    """Return the part of a config that a run's numbers depend on."""
    plain = dataclasses.asdict(config)
    return dict(part_that_changes(plain, FieldAt(type(config)), {"numbers", "corpus"}))
