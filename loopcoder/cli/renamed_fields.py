"""Errors about arguments, by the names of the fields that set them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from loopcoder.errors import InputError


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let what is wrong with an argument name the field of the command.

    Args:
        names: Of arguments, "kernels=", and what stands for them.
    """
    argument = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, names)) + ")")

    def ours(text: str) -> str:
        return argument.sub(lambda found: names[found[1]], text)

    try:
        yield
    except InputError as error:
        problems = [replace(p, fact=ours(p.fact), fix=ours(p.fix)) for p in error.problems]
        raise InputError(problems) from error
