"""A config that is composed where a job is submitted, and is the same on every rank, for ever."""

from __future__ import annotations

import hashlib
import os
from collections.abc import MutableMapping
from pathlib import Path

from launch.torchrun import CONFIG_VARIABLE, HASH_VARIABLE
from loopcoder.config.compose import load_config, to_yaml
from loopcoder.config.schema import Config
from loopcoder.errors import InputError


def digest_of(config: Config) -> str:
    """Return the SHA-256 of a config as it is written."""
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def handed_config(environ: MutableMapping[str, str] = os.environ) -> Config | None:
    """Return the config that a launcher has composed; None: there is none.

    Raises InputError: it is not what was submitted, or no config.
    """
    if CONFIG_VARIABLE not in environ:
        return None
    path = Path(environ[CONFIG_VARIABLE])
    wanted = environ.get(HASH_VARIABLE)
    if wanted is not None:
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            found = f"nothing ({error.strerror})"
        if found != wanted:
            raise InputError.of(
                f"{path} has the SHA-256 {found}, at submission it was {wanted}",
                "a job runs what was submitted, and the file was changed since",
                "submit the job again",
            )
    return load_config(path)
