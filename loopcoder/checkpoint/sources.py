"""What a run was started with: another `data` than that is refused before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from operator import attrgetter
from typing import Any

from loopcoder.config.compose import compose
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import FieldAt, as_override, leaves, typed
from loopcoder.config.identity import corpus_fields
from loopcoder.config.overrides import quoted
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem


def other_sources(before: Config, config: Config) -> Iterator[Problem]:
    """Yield that a run asks for other documents than it was started with, and not by
    data.rebuild=true: an override that was left out means those of a preset.

    A finished corpus that is named is opened, not built, and compared when it is.
    """
    old, new = (corpus_fields(c.data) for c in (before, config))
    is_asked_for = config.data.rebuild or not config.data.build.sources
    if is_asked_for or all(old[n] == new[n] for n in ("path", "sources")):
        return
    asked = f"data={config.data.name}"
    asked += "" if config.data.path is None else f" path={written(config.data.path)}"
    overrides = [typed(override) for override in data_overrides(before)]
    yield Problem(
        f"this run was started with {' '.join(overrides[:2])}, and {asked} is asked for",
        "a run goes on with the documents it was trained on, unless data.rebuild=true is given",
        " ".join(overrides),
    )


def data_overrides(config: Config) -> list[str]:
    """Return the overrides that ask for the data of a config: its preset, then what differs."""
    data, chosen = config.data, [f"data={config.data.name}"]
    if data.path is not None:
        chosen.append(f"path={written(data.path)}")
    try:
        preset = compose([f"model={config.model.name}", *chosen])
    except InputError:  # presets of the user's own
        return chosen
    for key, at in leaves(FieldAt(DataConfig), "data."):
        value, usual = (attrgetter(key)(c) for c in (config, preset))
        if at.changes.effect != "nothing" and value != usual and key != "data.path":
            chosen.append(f"{key}={written(value)}")
    return chosen


def written(value: Any) -> str:
    """Write a value so that an override reads it back."""
    if isinstance(value, str):
        return quoted(value) if set(value) & set("\"'\\ ,:=()[]{}") or not value else value
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(v) for v in value) + "]"
    if is_dataclass(value) and not isinstance(value, type):
        fields = asdict(value)
        return written({key: v for key, v in fields.items() if v is not None})
    return as_override(value)
