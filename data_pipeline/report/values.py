"""Values of a manifest; None for those that it lacks, as older ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Manifest = Mapping[str, Any]


def at(value: Any, *keys: str) -> Any:
    """Return the value at a path of keys, None if there is none."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def as_number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else None


def as_list(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def as_counts(value: Any) -> dict[str, float]:
    """Return the numbers of a mapping, the largest first."""
    if not isinstance(value, Mapping):
        return {}
    found = {str(k): n for k, v in value.items() if (n := as_number(v)) is not None}
    return dict(sorted(found.items(), key=lambda kv: (-kv[1], kv[0])))


def sum_of(parts: Sequence[float | None]) -> float | None:
    """Return the sum; None if there are no parts or one of them is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def trained_on(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """Return the entry of the training split of each domain."""
    found = at(manifest, "domains")
    domains = found.items() if isinstance(found, Mapping) else ()
    return {
        str(d): train for d, splits in domains if isinstance(train := at(splits, "train"), Mapping)
    }


def stage_named(manifest: Manifest, name: str) -> Mapping[str, Any] | None:
    found = [s for s in as_list(at(manifest, "stages")) if s.get("stage") == name]
    return found[0] if found else None
