"""From command-line overrides to a validated config, and between a config and its file.

Hydra selects the presets; single values are set here and checked by the schema, so that every
mistake is reported at once (Hydra stops at the first). A value replaces what the preset had,
mappings included: `data.mixture={code:1}` trains on code alone.

A preset may name the axes of a sweep, as Hydra has them: `hydra.sweeper.params`, a mapping of keys
to comma-separated values. `sweep_axes` returns them; one run needs one value for each.

A verb has a schema, a frozen dataclass like `Config`, and a root file in conf/ that selects its
presets. Its groups are the sections of the schema and what the root file's defaults name.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import hydra
import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from loopcoder.config.check_secrets import check_overrides, check_secrets
from loopcoder.config.fields import FieldAt, as_override, typed
from loopcoder.config.mistakes import not_written_out, problems_of, takes, unknown_key
from loopcoder.config.overrides import in_brackets, is_text, parse_overrides, quoted
from loopcoder.config.recipe import register
from loopcoder.config.renamed import translate
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem
from loopcoder.storage.files import write_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

register()
OmegaConf.register_new_resolver(
    "env_or", lambda name, default: os.environ.get(name) or default, replace=True
)

ROOT = "config"
"""Name of the root file of a run, conf/config.yaml."""

_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same in C, where PyYAML has it: five times as fast, which counts for hundreds of runs."""
_TAKES_PATH = {"data": "data=files path", "checkpoint": "checkpoint.init_from"}
"""What a path given to a group most likely meant."""
_OPTIONAL = ("experiment", "variant")
"""Groups of which a run takes none, one or a list."""


def conf_dir() -> Path:
    """Return the folder of the presets: in the installed package, or at the repository's root."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@overload
def compose(overrides: Sequence[str], config_dir: Path | None = None) -> Config: ...
@overload
def compose[T](
    overrides: Sequence[str], config_dir: Path | None = None, *, schema: type[T], root: str
) -> T: ...
def compose(
    overrides: Sequence[str],
    config_dir: Path | None = None,
    *,
    schema: type[Any] = Config,
    root: str = ROOT,
) -> Any:
    """Compose presets and overrides into a validated config of a run, or of another schema.

    `config_dir` is a folder of the user's own presets, laid out as conf/; `root` is the name of the
    schema's root file. Raises InputError with every unknown key, unknown preset, wrong value and
    secret that the config would hold.
    """
    if exposed := list(check_overrides(overrides)):
        raise InputError(exposed)  # before anything else is said of them
    dirs = preset_dirs(config_dir)
    problems: list[Problem] = []
    presets: list[str] = []
    values: list[Override] = []
    options = group_options(dirs, schema, root)
    parsed = parse_overrides(overrides, problems, schema)
    for override in parsed:
        problem = _problem_of(schema, override, options)
        if problem is not None:
            problems.append(problem)
        elif override.key_or_group in options:
            presets.append(_preset(override))
        else:
            values.append(override)
    composed, axes = _compose_presets(root, presets, dirs)
    problems += _without_a_value(axes, parsed, overrides)
    config = _validate(schema, *_apply(schema, composed, values, problems), problems)
    if exposed := list(check_secrets(config)):
        raise InputError(exposed)
    return config


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """Return a config in which overrides of single values are set; raises InputError as `compose`
    does."""
    problems: list[Problem] = []
    values = parse_overrides(overrides, problems, Config)
    problems += filter(None, (_problem_of(Config, value, {}) for value in values))
    before = OmegaConf.create(dataclasses.asdict(config))
    return _validate(Config, *_apply(Config, before, values, problems), problems)


def sweep_axes(overrides: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """Return the axes that the chosen presets sweep, as overrides such as `seed=1,2,3`, and what
    they set of the section `sweep`, as `sweep.tasks=chat`.

    They are those of Hydra's BasicSweeper, `hydra.sweeper.params`. Presets that are swept
    themselves contribute none: an axis is found before the sweep is expanded.
    """
    dirs = preset_dirs(config_dir)
    options = group_options(dirs)
    problems: list[Problem] = []  # composing the points says them
    presets = [
        _preset(override)
        for override in parse_overrides(overrides, problems)
        if override.key_or_group in options
        and not override.is_sweep_override()
        and _wrong_preset(override, options[override.key_or_group]) is None
    ]
    return [f"{key}={values}" for key, values in _compose_presets(ROOT, presets, dirs)[1].items()]


def preset_dirs(config_dir: Path | None) -> list[Path]:
    """Return the folders of presets: ours and, where there is one, the user's.

    Raises InputError if that does not exist, or has a preset that ours would hide.
    """
    if config_dir is None:
        return [conf_dir()]
    if not config_dir.is_dir():
        raise InputError.of(
            f"--config-dir {config_dir}", "there is no such folder", "give a folder with presets"
        )
    ours, theirs = conf_dir(), config_dir.resolve()
    for path in sorted(theirs.glob("*/*.yaml")):
        same = ours / path.relative_to(theirs)
        if same.exists() and same.read_bytes() != path.read_bytes():
            raise InputError.of(
                f"{path} has the name of a preset that comes with loopcoder",
                f"{same} is found first, so this one would have no effect",
                f"rename it to {path.with_name(f'my_{path.name}')}: "
                f"{path.parent.name}=my_{path.stem}",
            )
    return [ours, theirs]


def _preset(override: Override) -> str:
    """Return the override that Hydra takes; it has no null, only the removal of a group."""
    if override.is_delete() or override.value() is None:
        return f"~{override.key_or_group}"
    value = override.value()
    names = value if isinstance(value, list) else [value]
    # Quoted: Hydra refuses a preset whose name looks like a number.
    text = ",".join(quoted(str(name)) for name in names)
    return f"{override.key_or_group}={f'[{text}]' if isinstance(value, list) else text}"


def _without_a_value(
    axes: Mapping[str, str], parsed: Sequence[Override], overrides: Sequence[str]
) -> list[Problem]:
    """Refuse one run of what is a sweep: no value is better than another."""
    given = {override.key_or_group for override in parsed}
    own = ("sweep.",)  # of the command that runs it, not of its points
    left = {k: values for k, values in axes.items() if k not in given and not k.startswith(own)}
    if not left:
        return []
    experiment = next((o for o in overrides if o.startswith("experiment=")), "this preset")
    one = " ".join(f"{key}={values.split(',')[0]}" for key, values in left.items())
    return [
        Problem(
            f"{experiment} is a sweep over {' and '.join(left)}",
            f"one run needs one value for each, and {' and '.join(left)} have several",
            f"loopcoder train -m {' '.join(overrides)}, or for one of its runs add {one}",
        )
    ]


def group_options(
    dirs: Sequence[Path], schema: type[Any] = Config, root: str = ROOT
) -> dict[str, list[str]]:
    """Return the presets of each group of a schema; files that start with an underscore are shared
    parts."""
    sections = {name for name, at in FieldAt(schema).fields.items() if at.sections}
    groups = sections | _named_by_root(dirs[0] / f"{root}.yaml")
    found: dict[str, set[str]] = {}
    for path in (p for d in dirs for p in sorted(d.glob("*/*.yaml"))):
        if path.parent.name in groups and not path.name.startswith("_"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(found.items())}


def _named_by_root(path: Path) -> set[str]:
    """Return the groups in the defaults of a root file, such as `optional recipe: ${model}`."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _SAFE_LOADER)
        keys = [key for entry in content["defaults"] if isinstance(entry, dict) for key in entry]
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return set()  # composing says what is wrong with it
    return {str(key).split()[-1].strip("/").partition("@")[0] for key in keys}


def _problem_of(
    schema: type[Any], override: Override, options: dict[str, list[str]]
) -> Problem | None:
    root, key, text = FieldAt(schema), override.key_or_group, str(override.input_line)
    written = text.partition("=")[2]
    if override.is_sweep_override():
        why = "a comma-separated list starts one run per value"
        at = root.at(key.split("."))
        if at is not None and (meant := in_brackets(at, text.partition("=")[0], written)):
            if not takes(at, written.split(",")[0]):
                is_mapping = meant.endswith("}")
                what = "a mapping, written {a:1,b:2}" if is_mapping else "a list, written [a,b]"
                return Problem(text, f"this field takes {what}", typed(meant))
            each = f", or loopcoder train -m {typed(text)} for a run of each"
            why = "several values are a list, written [a,b]"
            return Problem(text, why, typed(meant) + (each if schema is Config else ""))
        if schema is not Config:
            return Problem(text, "it takes one value", f"'{key}=\"{written}\"'")
        return Problem(text, why, f"loopcoder train -m {text}")
    if key in options:
        return None if override.is_delete() else _wrong_preset(override, options[key])
    path = key.split(".")
    at = None if override.package or path[0] == "hydra" else root.at(path)
    if at is None:
        if not isinstance(override.value(), dict | list):
            written = as_override(override.value())
        return unknown_key(root, key, None if override.is_delete() else written)
    parent = root.at(path[:-1])
    if override.is_delete() and parent is not None and parent.sections:
        why = f"{key} is a field of the schema and cannot be removed"
        return Problem(text, why, f"leave out {text}")
    if at.sections and not isinstance(override.value(), dict | None):
        fields = " or ".join(f"{key}.{name}" for name in at.fields)
        return Problem(text, f"{key} is a section of fields, not one value", f"set {fields}")
    return None


def _wrong_preset(override: Override, options: list[str]) -> Problem | None:
    group, value = override.key_or_group, override.value()
    if value is None and group in _OPTIONAL:
        return None
    chosen = value if isinstance(value, list) and group in _OPTIONAL else [value]
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


def _compose_presets(
    root: str, presets: list[str], dirs: Sequence[Path]
) -> tuple[DictConfig, dict[str, str]]:
    """Compose presets by Hydra; return their values, and the axes of a sweep that they name."""
    files = (p for d in dirs for at in ("*.yaml", "*/*.yaml") for p in d.glob(at) if p.is_file())
    state = {(str(p), (at := p.stat()).st_mtime_ns, at.st_ino, at.st_size) for p in files}
    composed, axes = _composed(root, tuple(presets), tuple(dirs), frozenset(state))
    return copy.deepcopy(composed), dict(axes)


@lru_cache(maxsize=256)
def _composed(
    root: str, presets: tuple[str, ...], dirs: tuple[Path, ...], state: frozenset[object]
) -> tuple[DictConfig, dict[str, str]]:
    """Compose presets by Hydra once while their files stay as they are: it takes ten times as long
    as the rest, and points of a sweep differ in values that are set afterwards.

    Args:
        state: Of all files.
    """
    own = ",".join(quoted(f"file://{d}") for d in dirs[1:])
    search = [f"hydra.searchpath=[{own}]"] if own else []
    try:
        with hydra.initialize_config_dir(str(dirs[0]), version_base="1.3"):
            composed = hydra.compose(root, [*presets, *search], return_hydra_config=True)
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
    axes = OmegaConf.to_container(composed.hydra.sweeper.params or OmegaConf.create())
    with open_dict(composed):
        del composed["hydra"]
    assert isinstance(axes, dict)
    for key in map(str, axes):
        if is_text(FieldAt(Config).at(key.split("."))):
            _refuse_numbers(key, dirs)
    return composed, {str(key): str(values) for key, values in axes.items()}


def _refuse_numbers(key: str, dirs: Sequence[Path]) -> None:
    """Refuse a preset whose axis of a text is a number in YAML: Hydra hands it on as a text."""
    for path in (p for d in dirs for p in d.glob("*/*.yaml") if key in p.read_text("utf-8")):
        axes = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params", default={})
        if isinstance(axes.get(key, ""), bool | int | float):
            raise InputError([not_written_out(f"hydra.sweeper.params.{key} in {path}", axes[key])])


def _apply(
    schema: type[Any], config: DictConfig, overrides: list[Override], problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Set the overrides; return the plain values after and before."""
    try:
        before = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        before = OmegaConf.to_container(config, resolve=False)
    for override in overrides:
        try:
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                OmegaConf.set_struct(config, False)
                OmegaConf.select(config, parent).pop(name)
            else:
                key = override.key_or_group
                at = FieldAt(schema).at(key.split("."))
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
        _refer_as_text(schema, config, overrides)
        after = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        problems.append(
            Problem(reason, "a ${...} in the config leads nowhere", "correct the reference")
        )
        after = before
    assert isinstance(after, dict) and isinstance(before, dict)
    return after, before  # type: ignore[return-value]


def _refer_as_text(schema: type[Any], config: DictConfig, overrides: list[Override]) -> None:
    """Make a text of what a text field refers to: the number in `run_dir=${seed}`."""
    for override in overrides:
        key = override.key_or_group
        if "${" in str(override.input_line) and is_text(FieldAt(schema).at(key.split("."))):
            value = OmegaConf.select(config, key)
            if isinstance(value, int | float):
                OmegaConf.update(config, key, str(value))


def _validate[T](
    schema: type[T], container: Any, presets: dict[str, Any], problems: Sequence[Problem] = ()
) -> T:
    """Return the config; raise InputError with what is wrong with it and the problems so far."""
    try:
        config = TypeAdapter(schema).validate_python(container)
    except ValidationError as error:
        wrong = problems_of(FieldAt(schema), error, presets)
        raise InputError([*problems, *wrong]) from error
    if problems:
        raise InputError(problems)
    return config


def to_yaml(config: DataclassInstance) -> str:
    """Write a config as YAML, in the schema's order."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=100)
    return text


def save_config(config: DataclassInstance, path: Path) -> None:
    """Write a config to a YAML file that `load_config` reads back exactly."""
    write_bytes(path, to_yaml(config).encode())


@overload
def load_config(path: Path) -> Config: ...
@overload
def load_config[T](path: Path, *, schema: type[T]) -> T: ...
def load_config(path: Path, *, schema: type[Any] = Config) -> Any:
    """Read a config written by `save_config`, also one whose fields had other names then.

    Raises InputError naming every wrong field.
    """
    try:
        container = yaml.load(path.read_text(encoding="utf-8"), _SAFE_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError.of(
            f"cannot read the config {path}: {error}",
            "it must be a YAML file that loopcoder wrote",
            "give the config.yaml of a run folder or checkpoint",
        ) from error
    if isinstance(container, dict):
        container = translate(container)
    return _validate(schema, container, {})
