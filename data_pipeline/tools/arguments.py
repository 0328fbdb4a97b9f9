"""Arguments of the tools, whose mistakes are errors of three parts."""

from __future__ import annotations

import argparse
from typing import NoReturn

from loopcoder.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises InputError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        raise InputError.of(f"{self.prog}: {message}", usage, f"{self.prog} --help")
