"""Packages that only some inputs and settings need: imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from loopcoder.errors import InputError


def require(module: str, fact: str, why: str, fix: str = "pip install 'loopcoder[data]'") -> Any:
    """Return a module; raise InputError with what asks for it where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise InputError.of(fact, why, fix) from e
