"""From command-line overrides to a validated `Config`; its hash, its file, its folder.

Hydra selects the presets; single values are set here and checked by the schema, so that every
mistake is reported at once (Hydra stops at the first). A value replaces what the preset had,
mappings included: `data.mixture={code:1}` trains on code alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from loopcoder.config.fields import as_override, field_at, problems_of, unknown_key
from loopcoder.config.renamed import first_names, translate
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem

ALIASES = {"path": "data.path"}
_TAKES_PATH = {"data": "data=files path", "checkpoint": "checkpoint.init_from"}
"""What a path given to a group most likely meant."""

# What does not change a run's numbers. `checkpoint.init_from` does, and stays in the hash.
_NOT_HASHED = {
    "run_dir": None,
    "logging": None,
    "hardware": None,
    "profile": None,
    "checkpoint": (
        "interval", "keep", "save_at_end", "async_save", "resume", "verify",
    ),
    "data": ("cache_dir", "prefetch_steps", "tokenizer_backend", "executor", "keep_work", "verify"),
    "parallel": ("nproc_per_node",),
}  # fmt: skip


def conf_dir() -> Path:
    """Return the folder of the presets: in the installed package, or at the repository's root."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """Compose presets and overrides into a validated config.

    `config_dir` is a folder of the user's own presets, laid out as conf/. Raises InputError with
    every unknown key, unknown preset and wrong value.
    """
    dirs = [conf_dir()]
    if config_dir is not None:
        if not config_dir.is_dir():
            raise InputError.of(
                f"--config-dir {config_dir}",
                "there is no such folder",
                "give a folder with presets",
            )
        dirs.append(config_dir.resolve())
    problems: list[Problem] = []
    presets: list[str] = []
    values: list[Override] = []
    options = group_options(dirs)
    for override in parse_overrides(overrides, problems):
        problem = _problem_of(override, options)
        if problem is not None:
            problems.append(problem)
        elif override.key_or_group in options:
            presets.append(f"{override.key_or_group}={override.get_value_string()}")
        else:
            values.append(override)
    container, before = _apply(_compose_presets(presets, dirs), values, problems)
    config, wrong = _validate(container, before)
    if problems or config is None:
        raise InputError([*problems, *wrong])
    return config


def parse_overrides(overrides: Sequence[str], problems: list[Problem]) -> list[Override]:
    """Parse overrides and resolve aliases; what cannot be parsed is added to `problems`."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        # Hydra's grammar has no unquoted ~ and the like, and a shell takes the quotes away.
        key, _, value = text.partition("=")
        plain = value and not set(value) & set("[]{}()'\",")
        try:
            try:
                override = parser.parse_override(text)
            except HydraException:
                override = parser.parse_override(f"{key}='{value}'" if plain else text)
        except HydraException:
            problems.append(
                Problem(
                    f"cannot read {text!r}",
                    "an override is key=value; spaces, commas and brackets need quotes",
                    "loopcoder train train.max_steps=100 'run_dir=\"my run\"'",
                )
            )
            continue
        override.key_or_group = ALIASES.get(override.key_or_group, override.key_or_group)
        parsed.append(override)
    return parsed


def group_options(dirs: Sequence[Path]) -> dict[str, list[str]]:
    """Return the presets of each group; files that start with an underscore are shared parts."""
    found: dict[str, set[str]] = {}
    for path in (p for d in dirs for p in sorted(d.glob("*/*.yaml"))):
        if not path.name.startswith("_"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in found.items()}


def _problem_of(override: Override, options: dict[str, list[str]]) -> Problem | None:
    key, text = override.key_or_group, str(override.input_line)
    if override.is_sweep_override():
        return Problem(text, "several values are several runs", f"loopcoder train -m {text}")
    if key in options:
        return None if override.is_delete() else _wrong_preset(override, options[key])
    at = None if override.package or key.startswith("hydra") else field_at(key.split("."))
    if at is None:
        return unknown_key(key, override.value())
    parent = field_at(key.split(".")[:-1])
    if override.is_delete() and parent is not None and parent.sections:
        why = f"{key} is a field of the schema and cannot be removed"
        return Problem(text, why, f"leave out {text}")
    if at.sections and not isinstance(override.value(), dict | None):
        fields = " or ".join(f"{key}.{name}" for name in at.fields)
        return Problem(text, f"{key} is a section of fields, not one value", f"set {fields}")
    return None


def _wrong_preset(override: Override, options: list[str]) -> Problem | None:
    group, value = override.key_or_group, override.value()
    if value is None and group == "experiment":
        return None
    chosen = value if isinstance(value, list) and group == "experiment" else [value]
    unknown = [as_override(name) for name in chosen if as_override(name) not in options]
    if not unknown:
        return None
    nearest = difflib.get_close_matches(unknown[0], options, n=1, cutoff=0.4) or options
    fix = f"{group}={nearest[0]}"
    if "/" in unknown[0] and group in _TAKES_PATH:
        fix = f"{_TAKES_PATH[group]}={unknown[0]}"
    return Problem(
        f"{group}={as_override(value)}",
        f"there is no such preset; {group} has: {', '.join(options)}",
        fix,
    )


def _compose_presets(presets: list[str], dirs: Sequence[Path]) -> DictConfig:
    search = [f"hydra.searchpath=[{','.join(f'file://{d}' for d in dirs[1:])}]"] if dirs[1:] else []
    try:
        with hydra.initialize_config_dir(str(dirs[0]), version_base="1.3"):
            return hydra.compose("config", [*presets, *search])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        # Hydra wraps the reason in exceptions that say less.
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise InputError.of(
            f"the presets do not compose: {reason}",
            "a YAML file in " + " or ".join(map(str, dirs)) + " is wrong",
            "correct that file",
        ) from error


def _apply(
    config: DictConfig, overrides: list[Override], problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Set the overrides; return the plain values after and before."""
    before = OmegaConf.to_container(config, resolve=False)
    for override in overrides:
        try:
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                OmegaConf.set_struct(config, False)
                OmegaConf.select(config, parent).pop(name)
            else:
                key = override.key_or_group
                at = field_at(key.split("."))
                section = at is not None and bool(at.sections)
                OmegaConf.update(config, key, override.value(), merge=section, force_add=True)
        except (
            OmegaConfBaseException,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            line = str(override.input_line)
            reason = str(error).splitlines()[0]
            problems.append(Problem(line, f"it cannot be set: {reason}", f"leave out {line}"))
    try:
        after = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        problems.append(
            Problem(reason, "a ${...} in the config leads nowhere", "correct the reference")
        )
        after = before
    assert isinstance(after, dict) and isinstance(before, dict)
    return after, before  # type: ignore[return-value]


def _validate(container: Any, presets: dict[str, Any]) -> tuple[Config | None, list[Problem]]:
    try:
        return TypeAdapter(Config).validate_python(container), []
    except ValidationError as error:
        return None, problems_of(error, presets)


def config_hash(config: Config) -> str:
    """Return ten hex digits that name the run: equal for configs that give the same numbers."""
    text = json.dumps(_numbers(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def changes(before: Config, after: Config) -> list[str]:
    """Return what differs between two configs and changes a run's numbers, one line a field."""
    old, new = (dict(_leaves(_numbers(c))) for c in (before, after))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _numbers(config: Config) -> dict[str, Any]:
    """Return the part of a config that a run's numbers depend on."""
    plain = first_names(dataclasses.asdict(config))
    for section, names in _NOT_HASHED.items():
        for name in [section] if names is None else names:
            (plain if names is None else plain[section]).pop(name)
    return plain


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, node


def resolve_run_dir(config: Config) -> Path:
    """Return the run's folder: `run_dir`, or one under runs/ that the hash names."""
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser()
    return Path("runs") / f"{config.model.name}-r{config.model.num_loops}-{config_hash(config)}"


def to_yaml(config: Config) -> str:
    """Write the config as YAML, in the schema's order."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=100)
    return text


def save_config(config: Config, path: Path) -> None:
    """Write the config to a YAML file that `load_config` reads back exactly."""
    path.write_text(to_yaml(config), encoding="utf-8")


def load_config(path: Path) -> Config:
    """Read a config written by `save_config`. Raises InputError naming every wrong field."""
    try:
        container = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError.of(
            f"cannot read the config {path}: {error}",
            "it must be a YAML file that loopcoder wrote",
            "give the config.yaml of a run folder or checkpoint",
        ) from error
    if isinstance(container, dict):
        container = translate(container)
    config, problems = _validate(container, {})
    if config is None:
        raise InputError(problems)
    return config
