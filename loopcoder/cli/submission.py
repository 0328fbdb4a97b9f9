"""What a scheduler is handed: a run's config, finished and checked, and where its job keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launch.frozen import digest_of
from launch.jobs import FOLDER
from launch.snapshot import code_hash, copy_code
from loopcoder.backends import Backends
from loopcoder.cli.arguments import Arguments
from loopcoder.cli.checks import check_config
from loopcoder.config.compose import compose, save_config
from loopcoder.config.identity import resolve_run_dir
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config, ParallelConfig
from loopcoder.errors import InputError
from loopcoder.storage.files import write_bytes
from loopcoder.storage.folders import make_folder


@dataclass(frozen=True)
class Submission:
    """A run as it is handed over; two of one command and one code have the same folder."""

    config: Config
    sha256: str
    """Of the config as it is written."""
    folder: Path
    """Of the job's config, code and output, named by their hash."""

    @property
    def run_dir(self) -> Path:
        return Path(str(self.config.run_dir))

    @property
    def code(self) -> Path:
        """Copy of this program."""
        return self.folder / "code"

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    def write(self, files: Mapping[str, str]) -> None:
        """Write config, code and what the scheduler reads: texts by the names of their files."""
        make_folder(self.folder, "run_dir")
        copy_code(self.folder, self.code.name)
        save_config(self.config, self.config_file)
        for name, text in files.items():
            write_bytes(self.folder / name, text.encode())


def submission(
    arguments: Arguments,
    backends: Backends,
    nodes: int,
    gpus_per_node: int,
    placed: Callable[[ParallelConfig, Path], ParallelConfig] = lambda parallel, _: parallel,
    *,
    has_keys: bool = True,
) -> Submission:
    """Compose and check a run for the nodes of a scheduler.

    Args:
        arguments: Those of `loopcoder train`.
        backends: Of this machine.
        gpus_per_node: 0: nodes without GPUs.
        placed: Completes how the processes of a run in a folder meet.
        has_keys: The processes have the keys of this shell and no others.

    Raises:
        InputError: it could not start.
    """
    asked = compose(arguments.overrides, arguments.config_dir)
    tasks = asked.parallel.nproc_per_node or gpus_per_node or 1
    run_dir = resolve_run_dir(asked, resolve(asked, backends)).absolute()
    parallel = placed(replace(asked.parallel, nproc_per_node=tasks), run_dir)
    config = replace(asked, run_dir=str(run_dir), parallel=parallel)
    there = on_nodes(gpus_per_node, backends)
    checked = resolve(config, there)
    if not has_keys:
        checked = replace(checked, logging=replace(checked.logging, wandb="offline"))
    try:
        check_config(checked, nodes * tasks, there)
    except InputError as error:
        hint = f"; or gpus_per_node=N before `train` or `sweep` (now {gpus_per_node})"
        raise InputError(
            [
                replace(p, fix=p.fix + hint) if "data-parallel rank" in f"{p.fact} {p.why}" else p
                for p in error.problems
            ]
        ) from error
    sha256 = digest_of(config)
    return Submission(config, sha256, run_dir / f"{FOLDER}{code_hash()}-{sha256[:10]}")


def on_nodes(gpus_per_node: int, backends: Backends) -> Backends:
    """Return what the nodes have, as far as it is known here: their number of GPUs, and of which
    kind if this machine has such."""
    if gpus_per_node == 0:
        return replace(backends, gpu_count=0, gpu_name=None, compute_capability=None)
    if backends.has_gpu:
        return replace(backends, gpu_count=gpus_per_node)
    return replace(backends, gpu_count=gpus_per_node, compute_capability=(9, 0))
