"""Options of the verbs that take folders and names instead of a config."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from loopcoder.errors import InputError


def parse_options(
    verb: str, argv: Sequence[str], *, flags: Collection[str] = (), values: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Split what stands behind a verb into its operands and its options.

    Args:
        verb: As it is typed, such as `data list`.
        argv: What stands behind it; after `--` everything is an operand.
        flags: Options without a value, besides --help.
        values: Options with one, as `--option VALUE` or `--option=VALUE`.

    Raises:
        InputError: an option that the verb does not have, or one without its value.
    """
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
            if not options[name]:
                raise InputError.of(
                    f"loopcoder {verb} {name}", "a value belongs behind it", f"{name} VALUE"
                )
        elif argument.startswith("-") and argument != "-":
            known = [*flags, *values, "--help"]
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError.of(
                f"loopcoder {verb} {argument}",
                f"its options are {', '.join(known)}",
                f"{near[0]}{has_value}{value}" if near else f"loopcoder {verb} --help",
            )
        else:
            operands.append(argument)
    return operands, options
