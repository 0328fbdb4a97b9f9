"""What stands behind a verb: options, overrides, and the config that they come to."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.frozen import handed_config
from launch.torchrun import CONFIG_VARIABLE
from loopcoder.backends import Backends
from loopcoder.config.compose import compose
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import MISSING, FieldAt, as_override, placeholder, typed
from loopcoder.config.identity import resolve_run_dir
from loopcoder.config.mistakes import nearest_keys
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem
from loopcoder.storage.folders import folder_for


@dataclass(frozen=True)
class Arguments:
    """What stood behind a verb."""

    overrides: list[str]
    config_dir: Path | None = None
    multirun: bool = False
    print_config: bool = False
    help: bool = False

    @property
    def asked(self) -> list[str]:
        """What chose the run: the overrides, behind the folder of the presets that they name."""
        folder = [] if self.config_dir is None else ["--config-dir", str(self.config_dir)]
        return [*folder, *self.overrides]


def parse_arguments(
    arguments: Sequence[str], takes: Collection[str] = ("-m", "--print-config")
) -> Arguments:
    """Split options from overrides.

    Args:
        arguments: What stands behind the verb.
        takes: Options of the verb besides --config-dir and --help, which all have.

    Raises:
        InputError: an option that is unknown, or that the verb would ignore.
    """
    found = Arguments([])
    options = ", ".join([*takes, "--config-dir DIR and --help"])
    rest = iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if argument in ("-h", "--help"):
            found = replace(found, help=True)
        elif argument in ("-m", "--multirun") and "-m" in takes:
            found = replace(found, multirun=True)
        elif argument == "--print-config" and argument in takes:
            found = replace(found, print_config=True)
        elif name == "--config-dir":
            folder = value if has_value else next(rest, "")
            if not folder or (not has_value and folder.startswith("-")):
                raise InputError.of("--config-dir", "it needs a folder", "--config-dir DIR")
            found = replace(found, config_dir=Path(folder).expanduser())
        elif argument.startswith("-"):
            given = value if has_value else next(rest, "")
            near = difflib.get_close_matches(name, [*takes, "--config-dir", "--help"], 1, 0.8)
            meant = "--config-dir DIR" if near == ["--config-dir"] else "".join(near)
            raise InputError.of(
                argument,
                f"the options of this verb are {options}; everything else is key=value",
                f"{meant or _override_for(name, given)}, or loopcoder help",
            )
        else:
            found.overrides.append(argument)
    return found


def _override_for(option: str, value: str) -> str:
    """Return the override that an option like --max-steps most likely meant."""
    root, key = FieldAt(Config), option.lstrip("-").replace("-", "_")
    known = key if root.at(key.split(".")) else next(iter(nearest_keys(root, key)), None)
    if known is None:
        return "leave it out"
    is_given = value and "=" not in value and not value.startswith("-")
    return f"{known}={value if is_given else placeholder(root, known)}"


def section_of[T](overrides: Sequence[str], name: str, schema: type[T]) -> tuple[T, list[str]]:
    """Return a verb's own section of a command line, and the other overrides.

    Args:
        name: Of the section, and of its root file in conf/.

    Raises:
        InputError: about keys as they stand on the command line; a field of the section stands
            there without its name.
    """
    before = f"{name}."
    own = [o.removeprefix(before) for o in overrides if o.startswith(before)]
    others = [o for o in overrides if not o.startswith(before)]
    bare = [o for o in others if "=" in o and o.partition("=")[0] in FieldAt(schema).fields]
    problems = [
        Problem(o, f"{o.partition('=')[0]} is a field of the section {name}", typed(before + o))
        for o in bare
    ]
    try:
        section = compose(own, schema=schema, root=name)
    except InputError as error:
        problems += [_as_written(before, p) for p in error.problems]
        raise InputError(problems) from error
    if problems:
        raise InputError(problems)
    return section, others


def _as_written(before: str, problem: Problem) -> Problem:
    """Return a problem of a section with its keys as they stand on the command line."""
    fix = f"{before}{problem.fix}" if "=" in problem.fix.split()[0] else problem.fix
    return replace(problem, fact=f"{before}{problem.fact}", fix=fix)


def fields_of(name: str, schema: type[Any]) -> str:
    """Return the fields of a verb's own section for its help, each with its default."""
    fields = FieldAt(schema).fields
    keys = {
        field: f"{name}.{field}" + ("" if at.default is MISSING else f"={as_override(at.default)}")
        for field, at in fields.items()
    }
    width = max(map(len, keys.values()))
    return "\n".join(
        f"  {key:<{width}}  {' '.join(fields[field].doc.split())}" for field, key in keys.items()
    )


def rank() -> int:
    """Return this process's rank; 0 outside of a launcher."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def say(text: str) -> None:
    """Print on rank 0."""
    if rank() == 0:
        print(text, flush=True)


def say_aside(text: str) -> None:
    """Print what is no result, to stderr."""
    print(text, file=sys.stderr, flush=True)


def cache_for(data: DataConfig) -> AbstractContextManager[None]:
    """Make the folder of corpora before anything long; one that is there may be read-only.

    Raises:
        InputError: it cannot be made.
    """
    cache = Path(data.build.cache_dir).expanduser()
    if data.build.sources and not cache.is_dir():
        return folder_for(cache, "data.build.cache_dir")
    return nullcontext()


def composed(arguments: Arguments, backends: Backends) -> Config:
    """Compose the config, or load the one that our own launcher composed for its workers.

    Its run_dir is given: that of the overrides, or the one that follows from them.
    """
    handed = handed_config()
    if handed is None:
        asked = compose(arguments.overrides, arguments.config_dir)
        config = resolve(asked, backends)
        return replace(config, run_dir=str(resolve_run_dir(asked, config)))
    if arguments.overrides:
        raise InputError.of(
            f"{CONFIG_VARIABLE}={os.environ[CONFIG_VARIABLE]} and {' '.join(arguments.overrides)}",
            "the variable names a finished config, so the overrides would have no effect",
            f"unset {CONFIG_VARIABLE}",
        )
    return resolve(handed, backends)
