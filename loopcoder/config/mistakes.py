"""Turn what is wrong with keys and values into problems of three parts, with what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from loopcoder.config.fields import MISSING, FieldAt, arms, as_override, leaves, placeholder, typed
from loopcoder.config.mixture import CORPUS_EACH
from loopcoder.config.renamed import new_name
from loopcoder.config.types import PATTERNS
from loopcoder.errors import Problem

_ANY = "VALUE"
_LONG = 120
"""Characters of what a choice is."""
_WEIGHT = re.compile(r"data\.(stages\.\d+\.)?mixture\.[^.]+")
GROUPS = ("experiment", "variant")
"""Groups of presets that are no section of the schema: they change all of them."""


def nearest_keys(root: FieldAt, key: str) -> list[str]:
    """Return the keys that an unknown key may have meant: of the same name, or the nearest."""
    keys = [key for key, _ in leaves(root)]
    by_last: dict[str, list[str]] = {}
    for k in keys:
        by_last.setdefault(k.rsplit(".", 1)[-1], []).append(k)
    last = key.rsplit(".", 1)[-1]
    if last in by_last:
        # The nearest section first: `modle.interval` means model's before logging's.
        return sorted(by_last[last], key=lambda k: -difflib.SequenceMatcher(a=k, b=key).ratio())
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    names = [name for name in by_last if last in name.split("_")]  # --steps: max_steps
    names.sort(key=len)
    names = names or difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
    return list(dict.fromkeys([*close, *(k for n in names for k in by_last[n])]))[:3]


def unknown_key(root: FieldAt, key: str, value: str | None) -> Problem:
    """Name an override or a field of a YAML file that the schema does not have, or no longer.

    `value` is as it is written on the command line; None: the override was to remove the key.
    """

    def written(key: str) -> str:
        return f"~{key}" if value is None else f"{key}={value}"

    new = new_name(key)
    if new is not None and root.at(new.split(".")) is not None:
        return Problem(written(key), f"{key} is now {new}", typed(written(new)))
    if key in GROUPS and value is not None:
        why = f"a preset of {key} changes any section, which its file says in its first line"
        return Problem(f"{key}: {value}", why, "begin the file with `# @package _global_`")
    parent = key.rsplit(".", 1)[0] if "." in key else ""
    siblings = root.at(parent.split(".")) if parent else None
    if siblings is not None and siblings.fields:
        where = f"{parent} has: {', '.join(siblings.fields)}"
    else:
        where = f"there are: {', '.join(root.fields)}"
    groups = [*(name for name, at in root.fields.items() if at.sections), *GROUPS]
    near = [] if parent else difflib.get_close_matches(key, groups, n=1, cutoff=0.7)
    fix = " or ".join(typed(written(k)) for k in near or nearest_keys(root, key)) or "leave it out"
    return Problem(written(key), f"there is no field {key}; {where}", fix)


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


def problems_of(root: FieldAt, error: ValidationError, presets: Mapping[str, Any]) -> list[Problem]:
    """Translate all of pydantic's errors; `presets` has the values before the overrides."""
    merged: dict[str, list[ErrorDetails]] = {}
    unknown: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        path = _schema_path(root, detail["loc"])
        key = ".".join(map(str, path))
        if detail["type"] == "unexpected_keyword_argument":
            key = ".".join(map(str, detail["loc"]))
            unknown[key] = unknown_key(root, key, as_override(detail["input"]))
        else:
            merged.setdefault(key, []).append(detail)
    # of a field that may be one word or a mapping, a mapping is what was meant
    for key in [k for k, (first, *_) in merged.items() if isinstance(first["input"], Mapping)]:
        if any(other.startswith(f"{key}.") for other in merged):
            del merged[key]
    return [*unknown.values(), *(_problem(root, k, d, presets) for k, d in merged.items())]


def _schema_path(root: FieldAt, loc: tuple[str | int, ...]) -> list[str | int]:
    """Drop what pydantic inserts into a location to name the arm of a union."""
    path: list[str | int] = []
    names_arm = False
    for part in loc:
        if names_arm:
            names_arm = False
            continue
        at = root.at([*path, part])
        if at is None:
            break
        path.append(part)
        names_arm = sum(arm is not NoneType for arm in arms(at.annotation)) > 1
    return path


def _problem(
    root: FieldAt, key: str, details: list[ErrorDetails], presets: Mapping[str, Any]
) -> Problem:
    at = root.at(key.split(".")) or FieldAt(Any)
    first = details[0]
    if isinstance(first["input"], Mapping) and _WEIGHT.fullmatch(key):
        why = "a mixture weighs domains; languages and sources lie mixed in a corpus"
        return Problem(f"{key}={as_override(first['input'])}", why, f"data=corpus {CORPUS_EACH}")
    whys = []
    for d in details:
        if d["type"] == "string_pattern_mismatch":
            whys.append(PATTERNS[d["ctx"]["pattern"]][0])
            continue
        limits = {k: as_override(v) for k, v in d.get("ctx", {}).items()}
        text = _WHY.get(d["type"], d["msg"])
        whys.append(text.format(**limits, choices=", ".join(at.choices)) if "{" in text else text)
    why = " or ".join(dict.fromkeys(whys)).replace(" or must be ", " or ")
    if doc := _in_short(at):
        why += f": {doc}"
    if first["type"] == "missing":
        value = as_override(at.default) if at.default is not MISSING else placeholder(root, key)
        return Problem(f"{key} has no value", why, typed(f"{key}={value}"))
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
        return not_written_out(key, first["input"])
    mended = _mended(key, first, at, presets)
    mended = typed(f"{key}={placeholder(root, key) if mended == _ANY else mended}")
    return Problem(f"{key}={as_override(first['input'])}", why, mended)


def _in_short(at: FieldAt) -> str:
    """Return what a field is; of a long text that goes through its choices, the first clause."""
    doc = " ".join(at.doc.split())
    if not at.choices or len(doc) <= _LONG:
        return doc
    return re.split(r"[.:;] ", doc)[0]


def takes(at: FieldAt, value: Any) -> bool:
    """Say whether a field has such values."""
    try:
        TypeAdapter(at.annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def cleaned(text: str, pattern: str) -> str:
    """Return a text with a dash for every part that a pattern of `types.py` does not allow; "" if
    nothing is left."""
    return re.sub(PATTERNS[pattern][1], "-", text).strip("-")


def not_written_out(key: str, value: object) -> Problem:
    """Refuse what a YAML file has for a text and YAML reads as a number, a date or a boolean."""
    text = as_override(value)
    why = "must be text; without quotes YAML reads 1.10 as 1.1 and 20241122_10 as a number too"
    return Problem(f"{key}: {text}", why, f'{key}: "{text}", in quotes, as it was written')


def _mended(key: str, detail: ErrorDetails, at: FieldAt, presets: Mapping[str, Any]) -> str:
    """Return a value that is allowed: the limit, the nearest choice, or the preset's own value."""
    limits = detail.get("ctx", {})
    if "ge" in limits and isinstance(limits["ge"], int):
        return as_override(limits["ge"])
    value = detail["input"]
    if "pattern" in limits and (clean := cleaned(value, limits["pattern"])):
        return clean
    if detail["type"] == "list_type" and takes(at, [value]):
        return as_override([value])
    if at.sections and detail["type"] == "dataclass_type":
        return f"{{{next(iter(at.fields))}:VALUE}}"
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
    if preset is MISSING or preset == value:
        preset = at.default
    return as_override(preset) if preset is not MISSING and preset != value else _ANY
