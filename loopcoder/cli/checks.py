"""What refuses a run before anything is made: its config, this machine, and its folder."""

from __future__ import annotations

import netrc
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from loopcoder.backends import Backends
from loopcoder.checkpoint.start import check_start
from loopcoder.cli.arguments import rank
from loopcoder.config.check import check
from loopcoder.config.corpora import joined_corpora
from loopcoder.config.schema import Config
from loopcoder.data.check_packed import packed_problems
from loopcoder.data.joined import check_joined_folders
from loopcoder.data.manifest import MANIFEST, check_domains, read_manifest
from loopcoder.data.mirror import folder_of
from loopcoder.data.own_sets import check_own_folders
from loopcoder.errors import InputError, Problem
from loopcoder.metrics.throughput import peak_flops

_SETTINGS = ("~/.config/wandb/settings", "wandb/settings")
"""Of wandb, for a user and for a folder."""
_REACHED_S = 10.0
"""Within which a server answers."""


def check_config(config: Config, world_size: int, backends: Backends) -> None:
    """Raise InputError for all that does not depend on memory or on a corpus that is not there yet.

    Args:
        config: Resolved, with its run_dir.
        world_size: Processes of the run.
        backends: Of this machine.
    """
    _together(partial(check, config, world_size, backends), partial(check_inputs, config))
    check_folder(config, backends)


def check_folder(config: Config, backends: Backends) -> None:
    """Raise InputError where the run's folder, the checkpoint that it branches from, or what it is
    given does not let it start, or the device that it names is not known."""
    peak_flops(config.hardware, backends.gpu_name, config.precision.name)  # type: ignore[arg-type]
    _together(
        partial(check_start, config, Path(str(config.run_dir))), partial(check_inputs, config)
    )


def check_inputs(config: Config) -> None:
    """Raise InputError for a domain that the given corpus lacks, a length that it is not packed
    for, and a service that nobody is logged in to."""
    problems = [*_login(config)]
    data = config.data
    if joined_corpora(data):
        try:
            problems += packed_problems(config, check_joined_folders(data))
        except InputError as error:
            problems += error.problems
    elif not data.build.sources and isinstance(data.path, str):
        try:
            folder = folder_of(data)
            wanted = dict.fromkeys(domain for stage in config.stages for domain in stage.mixture)
            if (folder / MANIFEST).is_file():
                manifest = read_manifest(folder)
                check_domains(folder, manifest, list(wanted))
                problems += packed_problems(config, {"": manifest})
        except InputError as error:
            problems += error.problems
    try:
        check_own_folders(config)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)


def _together(*checks: Callable[[], None]) -> None:
    """Run every check, and raise what all of them found as one error."""
    problems: list[Problem] = []
    for one in checks:
        try:
            one()
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


def _login(config: Config) -> Iterator[Problem]:
    """Yield that Weights & Biases is to be written to online and does not know this user."""
    if config.logging.wandb != "online" or rank() > 0:  # the others write nothing there
        return
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return
    if any(_names_a_server(Path(file)) for file in _SETTINGS):
        return
    host = urlsplit(_wandb_url()).hostname or ""
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    if not any(_knows(Path(file).expanduser(), host) for file in files if file):
        yield Problem(
            "logging.wandb=online, and nobody is logged in to Weights & Biases here",
            f"{host} takes a run with a key only: WANDB_API_KEY is not set, and ~/.netrc has none",
            "wandb login, export WANDB_API_KEY=KEY, or logging.wandb=offline",
        )


def check_services(config: Config) -> None:
    """Raise InputError if Weights & Biases is to be written to online and cannot be reached.

    It is asked once, before there is a corpus or a model: wandb itself would try for minutes.
    """
    if config.logging.wandb != "online" or rank() > 0:
        return
    if any(_names_a_server(Path(file)) for file in _SETTINGS):
        return  # wandb knows where its server is
    url = urlsplit(_wandb_url())
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_REACHED_S).close()
    except OSError as error:
        raise InputError.of(
            f"logging.wandb=online, and {url.hostname}:{port} cannot be reached: {error}",
            "every step would be sent there over the network",
            "logging.wandb=offline, whose files `wandb sync` uploads later, or logging.wandb=off",
        ) from error


def _wandb_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _names_a_server(settings: Path) -> bool:
    """Say whether settings of wandb have a server or a key of their own, which it reads itself."""
    try:
        text = settings.expanduser().read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):
        return False
    return "base_url" in text or "api_key" in text


def _knows(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except netrc.NetrcParseError:
        return True  # wandb reads it in a way of its own
    except (OSError, RuntimeError):
        return False
