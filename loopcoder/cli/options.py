"""Options of the verbs that take folders and names instead of a config."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from loopcoder.errors import InputError


def parse_options(
    verb: str,
    argv: Sequence[str],
    *,
    flags: Collection[str] = (),
    values: Mapping[str, str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Split what stands behind a verb into its operands and its options.

    Args:
        verb: As it is typed, such as `data list`.
        argv: What stands behind it; after `--` everything is an operand.
        flags: Options without a value, besides --help.
        values: Options with one, as `--option VALUE` or `--option=VALUE`, and what that is called.

    Raises:
        InputError: an option that the verb does not have, or one without its value.
    """
    values = values or {}
    known = [*flags, *values, "--help"]
    operands: list[str] = []
    options: dict[str, str] = {}
    rest = iter(argv)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if argument == "--":
            operands += rest
        elif argument in ("-h", "--help"):
            options["--help"] = ""
        elif argument in flags:
            options[argument] = ""
        elif name in values:
            options[name] = value if has_value else next(rest, "")
            if not options[name] or (not has_value and options[name].partition("=")[0] in known):
                raise InputError.of(
                    f"loopcoder {verb} {argument}",
                    f"{values[name]} belongs behind it",
                    f"{name} {values[name]}",
                )
        elif argument.startswith("-") and argument != "-":
            raise _no_option(verb, argument, flags, values)
        else:
            operands.append(argument)
    return operands, options


def split_folders(operands: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split what stands behind a verb into folders, in whose names there may be a `=`, and
    overrides."""
    folders = [o for o in operands if "=" not in o or Path(o).expanduser().is_dir()]
    return folders, [o for o in operands if o not in folders]


def config_dir_of(options: Mapping[str, str]) -> Path | None:
    """Return the folder of --config-dir, if it is given."""
    return Path(options["--config-dir"]).expanduser() if "--config-dir" in options else None


def _no_option(
    verb: str, argument: str, flags: Collection[str], values: Mapping[str, str]
) -> InputError:
    """Return the error for an option that a verb does not have, with the nearest that it has."""
    name, has_value, value = argument.partition("=")
    written = [*flags, *(f"{option} {what}" for option, what in values.items()), "--help"]
    near = difflib.get_close_matches(name, [*flags, *values, "--help"], n=1)
    fix = f"loopcoder {verb} --help"
    if near and near[0] in values:
        fix = f"{near[0]}={value}" if has_value else f"{near[0]} {values[near[0]]}"
    elif near:
        fix = near[0]
    return InputError.of(
        f"loopcoder {verb} {argument}", f"its options are {', '.join(written)}", fix
    )


def whole(options: Mapping[str, str], name: str, default: int) -> int:
    """Return the whole number that an option has.

    Raises:
        InputError: it has something else, or one below 0.
    """
    try:
        value = int(options.get(name, default))
        if value < 0:
            raise ValueError(name)
        return value
    except ValueError as error:
        raise InputError.of(
            f"{name} {options[name]}", "it takes a whole number, 0 or more", f"{name} {default}"
        ) from error


def taken(
    verb: str, arguments: Sequence[str], *, needed: Sequence[str], others: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Split `key=value` of a verb's own keys from overrides of a config.

    Raises:
        InputError: a key that is needed is missing or empty, one is given twice, or an argument is
            no override.
    """
    found: dict[str, str] = {}
    rest = []
    usage = f"loopcoder {verb} " + " ".join(f"{key}=..." for key in needed)
    for argument in arguments:
        key, is_pair, value = argument.partition("=")
        if not is_pair:
            raise InputError.of(f"loopcoder {verb} {argument}", "it takes key=value", usage)
        if key not in (*needed, *others):
            rest.append(argument)
        elif key in found:
            raise InputError.of(argument, f"{key}={found[key]} is given already", "leave one out")
        else:
            found[key] = value
    if missing := [key for key in needed if not found.get(key)]:
        raise InputError.of(
            f"loopcoder {verb} " + " ".join(arguments), f"{', '.join(missing)}= is missing", usage
        )
    return found, rest
