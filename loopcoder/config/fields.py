"""Walk a schema by dotted keys: what it says about a field, and which fields change what."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from loopcoder.config.types import Changes, Effect

MISSING: Any = object()
"""Default of a field that has none."""
_NUMBERS = Changes("numbers")


@dataclass(frozen=True)
class FieldAt:
    """What a schema says about one key; `FieldAt(Config)` is the whole of it."""

    annotation: Any
    doc: str = ""
    default: Any = MISSING
    changes: Changes = _NUMBERS
    """Its own, or that of the nearest section around it."""

    @property
    def sections(self) -> list[type]:
        """Dataclasses the field may hold: it is a section, not one value."""
        return [a for a in arms(self.annotation) if isinstance(a, type) and is_dataclass(a)]

    @property
    def fields(self) -> dict[str, FieldAt]:
        """Fields of a section, by name."""
        return {
            name: at
            for section in self.sections
            for name, at in _children(section, self.changes).items()
        }

    @property
    def choices(self) -> list[str]:
        """Values of a field that has a fixed list of them."""
        return [str(v) for arm in arms(self.annotation) for v in _literals(arm)]

    def at(self, path: Sequence[str | int]) -> FieldAt | None:
        """Return the field at a path such as ("data", "stages", 0, "until"), or None."""
        found: FieldAt | None = self
        for part in path:
            found = found and found._step(part)
        return found

    def _step(self, part: str | int) -> FieldAt | None:
        if part in self.fields:
            return self.fields[str(part)]
        for arm in arms(self.annotation):
            if get_origin(arm) is list and str(part).isdigit():
                return FieldAt(get_args(arm)[0], self.doc, changes=self.changes)
            if get_origin(arm) is dict:
                return FieldAt(get_args(arm)[1], self.doc, changes=self.changes)
        return None


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def arms(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, without the wrappers of Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return arms(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [arm for part in get_args(annotation) for arm in arms(part)]
    return [annotation]


@cache
def _children(section: type, inherited: Changes) -> dict[str, FieldAt]:
    infos = section.__pydantic_fields__  # type: ignore[attr-defined]
    found = {}
    for name, info in infos.items():
        default = MISSING if info.default is PydanticUndefined else info.default
        if info.default_factory is not None:
            default = info.default_factory()
        # A section has no docstring line of its own in its parent: its class has one.
        doc = info.description or next(
            ((arm.__doc__ or "") for arm in arms(info.annotation) if is_dataclass(arm)), ""
        )
        changes = next((m for m in info.metadata if isinstance(m, Changes)), inherited)
        changes = replace(changes, since=changes.since or inherited.since)
        found[name] = FieldAt(info.annotation, doc, default, changes)
    return found


def leaves(at: FieldAt, prefix: str = "") -> Iterator[tuple[str, FieldAt]]:
    """Yield every dotted key below a section that takes a value."""
    for name, field in at.fields.items():
        if field.sections:
            yield from leaves(field, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def part_that_changes(plain: Any, at: FieldAt, effects: Container[Effect]) -> Any:
    """Return the fields of a section, as nested dicts, that have one of these effects."""
    part = _part(plain, at, effects)
    return {} if part is MISSING else part


def _part(plain: Any, at: FieldAt, effects: Container[Effect]) -> Any:
    if isinstance(plain, dict) and at.sections:
        parts = {name: _part(plain[name], field, effects) for name, field in at.fields.items()}
        return {k: v for k, v in parts.items() if v is not MISSING} or MISSING
    is_older = at.changes.since is not None and plain == at.default
    is_part = at.changes.effect in effects and not is_older
    if isinstance(plain, list) and (entry := at.at([0])) is not None and entry.sections:
        found = [p for value in plain if (p := _part(value, entry, effects)) is not MISSING]
        return found if found or is_part else MISSING
    return plain if is_part else MISSING


def as_override(value: Any) -> str:
    """Write a value the way it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{as_override(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(as_override(v) for v in value) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def placeholder(root: FieldAt, key: str) -> str:
    """Return what stands for the value of a field in advice: FOLDER, NUMBER, one of its choices."""
    at = root.at(key.split(".")) or FieldAt(Any)
    if key.rpartition(".")[2] in ("run_dir", "cache_dir", "init_from", "path"):
        return "FOLDER"
    if at.choices:
        return at.choices[0]
    kinds = arms(at.annotation)
    if bool in kinds:
        return "true"
    return "NUMBER" if int in kinds or float in kinds else "VALUE"


def typed(override: str) -> str:
    """Quote an override for a shell, if that would read it as something else: braces, spaces."""
    return shlex.quote(override) if set(override) & set("{} '\"$;&|<>()*?\\") else override


def next_multiple(value: int, of: int) -> int:
    """Return the smallest multiple that is not below a value: what an error suggests instead."""
    return max(1, -(-value // of)) * of
