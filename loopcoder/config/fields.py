"""Walk the schema by dotted keys, and turn pydantic's complaints into problems of three parts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from loopcoder.config.schema import Config
from loopcoder.errors import Problem

_MISSING = object()


@dataclass(frozen=True)
class FieldAt:
    """What the schema says about one key."""

    annotation: Any
    doc: str = ""
    default: Any = _MISSING

    @property
    def sections(self) -> list[type]:
        """Dataclasses the field may hold: it is a section, not one value."""
        return [a for a in _arms(self.annotation) if isinstance(a, type) and is_dataclass(a)]

    @property
    def fields(self) -> list[str]:
        """Names of the fields of a section."""
        return [name for section in self.sections for name in _children(section)]

    @property
    def choices(self) -> list[str]:
        """Values of a field that has a fixed list of them."""
        return [str(v) for arm in _arms(self.annotation) for v in _literals(arm)]


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _arms(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, without the wrappers of Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _arms(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [arm for part in get_args(annotation) for arm in _arms(part)]
    return [annotation]


def _children(section: type) -> dict[str, FieldAt]:
    infos = section.__pydantic_fields__  # type: ignore[attr-defined]
    found = {}
    for name, info in infos.items():
        default = _MISSING if info.default is PydanticUndefined else info.default
        if info.default_factory is not None:
            default = info.default_factory()
        # A section has no docstring line of its own in its parent: its class has one.
        doc = info.description or next(
            ((arm.__doc__ or "") for arm in _arms(info.annotation) if is_dataclass(arm)), ""
        )
        found[name] = FieldAt(info.annotation, doc, default)
    return found


def field_at(path: Sequence[str | int]) -> FieldAt | None:
    """Return the schema's field at a path such as ("data", "sources", 0, "kind"), or None."""
    at = FieldAt(Config)
    for part in path:
        step = _step(at, part)
        if step is None:
            return None
        at = step
    return at


def _step(at: FieldAt, part: str | int) -> FieldAt | None:
    for arm in _arms(at.annotation):
        if is_dataclass(arm) and part in (children := _children(arm)):  # type: ignore[arg-type]
            return children[str(part)]
        if get_origin(arm) is list and str(part).isdigit():
            return FieldAt(get_args(arm)[0], at.doc)
        if get_origin(arm) is dict:
            return FieldAt(get_args(arm)[1], at.doc)
    return None


def leaf_keys(section: type = Config, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the schema that takes a value."""
    for name, at in _children(section).items():
        if at.sections:
            for inner in at.sections:
                yield from leaf_keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def nearest_keys(key: str) -> list[str]:
    """Return the keys that an unknown key may have meant: of the same name, or the nearest."""
    keys = list(leaf_keys())
    by_last: dict[str, list[str]] = {}
    for k in keys:
        by_last.setdefault(k.rsplit(".", 1)[-1], []).append(k)
    last = key.rsplit(".", 1)[-1]
    if last in by_last:
        # The nearest section first: `modle.interval` means model's before logging's.
        return sorted(by_last[last], key=lambda k: -difflib.SequenceMatcher(a=k, b=key).ratio())
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    names = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
    return list(dict.fromkeys([*close, *(k for n in names for k in by_last[n])]))[:3]


def unknown_key(key: str, value: Any) -> Problem:
    """Name an override or a field of a YAML file that the schema does not have."""
    nearest = nearest_keys(key)
    parent = key.rsplit(".", 1)[0] if "." in key else ""
    siblings = field_at(parent.split(".")) if parent else None
    if siblings is not None and siblings.fields:
        where = f"{parent} has: {', '.join(siblings.fields)}"
    else:
        where = f"there are: {', '.join(_children(Config))}"
    fix = " or ".join(f"{k}={as_override(value)}" for k in nearest) or "leave it out"
    return Problem(f"{key}={as_override(value)}", f"there is no field {key}; {where}", fix)


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


def next_multiple(value: int, of: int) -> int:
    """Return the smallest multiple that is not below a value: what an error suggests instead."""
    return max(1, -(-value // of)) * of


_WHY = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list, written [a,b]",
    "dict_type": "must be a mapping, written {{text:1,code:1}}",
    "dataclass_type": "is a section of fields, not one value",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {choices}",
    "missing": "is required and was not given",
}


def problems_of(error: ValidationError, presets: Mapping[str, Any]) -> list[Problem]:
    """Translate all of pydantic's errors; `presets` has the values before the overrides."""
    merged: dict[str, list[ErrorDetails]] = {}
    unknown: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        path = _schema_path(detail["loc"])
        key = ".".join(map(str, path))
        if detail["type"] == "unexpected_keyword_argument":
            key = ".".join(map(str, detail["loc"]))
            unknown[key] = unknown_key(key, detail["input"])
        else:
            merged.setdefault(key, []).append(detail)
    return [*unknown.values(), *(_problem(k, d, presets) for k, d in merged.items())]


def _schema_path(loc: tuple[str | int, ...]) -> list[str | int]:
    """Drop what pydantic inserts into a location to name the arm of a union."""
    path: list[str | int] = []
    names_arm = False
    for part in loc:
        if names_arm:
            names_arm = False
            continue
        at = field_at([*path, part])
        if at is None:
            break
        path.append(part)
        names_arm = sum(arm is not NoneType for arm in _arms(at.annotation)) > 1
    return path


def _problem(key: str, details: list[ErrorDetails], presets: Mapping[str, Any]) -> Problem:
    at = field_at(key.split(".")) or FieldAt(Any)
    first = details[0]
    whys = []
    for d in details:
        limits = {k: as_override(v) for k, v in d.get("ctx", {}).items()}
        text = _WHY.get(d["type"], d["msg"])
        whys.append(text.format(**limits, choices=", ".join(at.choices)) if "{" in text else text)
    why = " or ".join(dict.fromkeys(whys)) + (f": {' '.join(at.doc.split())}" if at.doc else "")
    if first["type"] == "missing":
        value = as_override(at.default) if at.default is not _MISSING else "VALUE"
        return Problem(f"{key} has no value", why, f"{key}={value}")
    return Problem(
        f"{key}={as_override(first['input'])}", why, f"{key}={_mended(key, first, at, presets)}"
    )


def _mended(key: str, detail: ErrorDetails, at: FieldAt, presets: Mapping[str, Any]) -> str:
    """Return a value that is allowed: the limit, the nearest choice, or the preset's own value."""
    limits = detail.get("ctx", {})
    if "ge" in limits and isinstance(limits["ge"], int):
        return as_override(limits["ge"])
    value = detail["input"]
    if at.choices:
        # YAML 1.1 reads a bare on/off as a boolean.
        text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        return (difflib.get_close_matches(text, at.choices, n=1, cutoff=0.5) or at.choices)[0]
    preset: Any = presets
    for part in key.split("."):
        if isinstance(preset, Mapping) and part in preset:
            preset = preset[part]
        else:
            preset = at.default
            break
    if preset is _MISSING or preset == value:
        preset = at.default
    return as_override(preset) if preset is not _MISSING and preset != value else "VALUE"
