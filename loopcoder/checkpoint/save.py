"""Save a run: shards by all ranks, then a manifest that makes them a checkpoint."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException  # a BaseException

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.agreed import same_error_on_all
from loopcoder.checkpoint.copies.copying import Copies
from loopcoder.checkpoint.digest import DIGEST, digest_of, shards_of, whole_digest
from loopcoder.checkpoint.fp8_history import with_history
from loopcoder.checkpoint.optimizer_parts import save_by_parts
from loopcoder.checkpoint.pruning import Pruning
from loopcoder.checkpoint.shards import Written, fault_of_shards, written_here
from loopcoder.checkpoint.staging import Staging
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.checkpoint.unpickled import metadata_of
from loopcoder.checkpoint.writers import (
    FULL_BYTES,
    BackgroundWriter,
    say_once_that_the_disk_is_full,
    use_result_queue,
)
from loopcoder.config.compose import save_config
from loopcoder.config.schema import Config
from loopcoder.data.ledger import LEDGER_FILE, Ledger
from loopcoder.data.sampler import Position
from loopcoder.errors import EXIT_RETRY, InputError, LoopcoderError, ProcessLost
from loopcoder.optim.schedule import branching_step
from loopcoder.parallel.peers import interruption_of, was_lost
from loopcoder.storage.disk import free_bytes, is_disk_full, is_too_large, no_space, remedy
from loopcoder.storage.files import write_json

METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Optimizer state by parameter, so that any layout loads what any other saved; megatron's default
refuses."""


def sharded_state(network: Any, optimizer: Any | None, *, is_loading: bool) -> dict[str, Any]:
    """Return what goes into (or comes out of) the shards. Names contain no loop and no layout."""
    metadata = dict(METADATA)  # megatron adds its process groups to what it is given
    model = network.sharded_state_dict(prefix="model.", metadata=metadata)
    model = with_history(network, model)
    state: dict[str, Any] = {"model": model}
    if optimizer is not None:
        save_by_parts(optimizer)
        state["optimizer"] = optimizer.sharded_state_dict(
            model, is_loading=is_loading, metadata=metadata
        )
    return state


_OLDER = "older ones are intact"
_LOST_WITHOUT = f"without checkpoints a run is lost when it ends; {_OLDER}"


class IncompleteRun(LoopcoderError):
    """A file of the run's folder is gone; the same command writes it again."""

    exit_code = EXIT_RETRY


class Saver:
    """Saves checkpoints, in the background if the config says so. All ranks call every method."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        report: Callable[..., None],
        companions: Sequence[Path] = (),
        copies: Copies | None = None,
    ):
        """
        Args:
            companions: Files of which every checkpoint gets a copy.
            copies: What sends them to a store.
            report: called on rank 0 with an event's kind and fields.
        """
        from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

        self.config, self.run_dir, self.report = config, run_dir, report
        self.companions, self.copies = companions, copies
        self.is_main = dist.get_rank() == 0
        self._queue = AsyncCallsQueue()
        self._writing = run_dir
        """Folder of the background save that is under way."""
        self._pruning = Pruning(config.checkpoint, report)
        say_once_that_the_disk_is_full(run_dir)
        self._manager = use_result_queue(config.checkpoint.async_save)
        self._staging: Staging | None = None
        """On a GPU; a forked writer has the memory of the host as it was."""
        self._faults: set[str] = set()
        """Of that memory; each is said once."""
        if config.checkpoint.async_save and torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
            self._staging = Staging(device)

    def save(self, network: Any, ddp: Any, optimizer: Any, state: CheckpointState) -> Path:
        """Save a run after the step of `state`, which names the folder."""
        from megatron.core import dist_checkpointing

        self.finish()  # one save at a time: the one before is complete first
        began = time.monotonic()
        folder = layout.step_folder(self.run_dir, state.step)
        with _same_error_on_all(folder):
            if self.is_main:
                _fresh(folder)
        if self.config.parallel.overlap_param_gather:
            ddp.start_param_sync(force_sync=True)
        shards = sharded_state(network, optimizer, is_loading=False)
        held = list(shards_of(shards))
        try:
            request = dist_checkpointing.save(
                shards,
                str(folder),
                async_sharded_save=self.config.checkpoint.async_save,
                async_strategy="mcore",
            )
        except (Exception, CheckpointException) as error:
            if was_lost(error) or interruption_of(error):
                raise  # who is said where the world is left
            raise self._failed(folder, error) from error
        if request is not None and self._staging is not None:
            request = self._staged(self._staging, request)
        # beside the copies, which another engine of the device makes
        sums = digest_of(held, optimizer) if self.config.checkpoint.digest else None
        if request is None:
            self._complete(folder, state, sums, began)
        else:
            writer = None
            if request.async_fn is not None:
                writer = BackgroundWriter(request.async_fn, folder, dist.get_rank())
                request = request._replace(async_fn=writer)
            request.add_finalize_fn(lambda: self._complete(folder, state, sums, began, writer))
            self._queue.schedule_async_request(request)
            self._writing = folder
        return folder

    def _staged(self, staging: Staging, request: Any) -> Any:
        """Begin to copy what the writer is to write; return the request that waits for it."""
        copies = staging.copy(request.async_fn_args[1]) if request.async_fn is not None else None
        faults: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(faults, staging.fault)
        for rank, fault in enumerate(faults):
            if self.is_main and fault is not None and fault not in self._faults:
                self._faults.add(fault)
                self.report("note", text=f"rank {rank}: {fault}")
                print(f"rank {rank}: {fault}", file=sys.stderr, flush=True)
        if copies is None:
            return request

        def whole() -> list[Any]:
            staging.wait()
            return copies

        return request._replace(preload_fn=whole)

    def prepare(self, network: Any, optimizer: Any) -> None:
        """Take the memory that background saves need, beside the steps to come; call it after one,
        when the optimizer has its state."""
        if self._staging is None or self._staging.is_prepared:
            return
        shards = sharded_state(network, optimizer, is_loading=False)
        self._staging.prepare(data.nbytes for _, data, _, _ in shards_of(shards))

    def close(self) -> None:
        """Give the memory for saves back; no other save comes."""
        if self._staging is not None:
            with suppress(RuntimeError):  # a device that failed has said so before
                self._staging.close()

    @property
    def is_preparing(self) -> bool:
        return self._staging is not None and self._staging.is_preparing

    def poll(self) -> None:
        """Complete a background save that has ended; call it once per step."""
        if self.config.checkpoint.async_save:
            self._finalise(blocking=False)
            self._pruning.poll()

    def finish(self) -> None:
        """Wait for a background save, and for what is deleted after it."""
        self._finalise(blocking=True)
        self._pruning.finish()

    def _finalise(self, blocking: bool) -> None:
        if self._queue.get_num_unfinalized_calls():
            writer = getattr(self._queue.async_calls[0].async_caller, "process", None)
            try:
                self._queue.maybe_finalize_async_calls(blocking=blocking)
            except LoopcoderError:
                raise
            except (Exception, CheckpointException) as error:
                if was_lost(error) or interruption_of(error):
                    raise
                raise self._failed(self._writing, error, writer) from error

    def _complete(
        self,
        folder: Path,
        state: CheckpointState,
        sums: dict[str, str] | None,
        began: float,
        writer: BackgroundWriter | None = None,
    ) -> None:
        """Hash the files on all ranks and write the manifest; only now is it a checkpoint."""
        with _same_error_on_all(folder):
            if self.is_main:
                save_config(self.config, folder / layout.CONFIG)
                write_json(folder / layout.STATE, state.to_json())
                if sums is not None:
                    sums = whole_digest(sums, state.to_json(), self.config)
                    write_json(folder / DIGEST, {"sums": sums})
                if state.ledger is not None:
                    self.keep_ledger(state.ledger, state.position)
                for file in self.companions:
                    shutil.copyfile(file, folder / file.name)
            written = written_here(folder, writer.hashed() if writer else None)
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, written)
        with _same_error_on_all(folder):
            size = self._write_manifest(folder, gathered) if self.is_main else 0
        if self.copies is not None:
            self.copies.saved(state.step)
        if not self.is_main:
            return
        self.report(
            "checkpoint_saved",
            step=state.step,
            path=str(folder),
            bytes=size,
            seconds=round(time.monotonic() - began, 3),
        )
        steps = self.config.train.max_steps
        spared = branching_step(self.config.optim, steps, state.warmup_steps)
        copied = () if self.copies is None else tuple(self.copies.in_use)
        self._pruning.begin(folder.parent, spared, state.step, copied)

    def _write_manifest(self, folder: Path, written: Sequence[Written]) -> int:
        """Make a checkpoint of what is there if that is all; return its bytes."""
        within_s = self.config.checkpoint.visible_within_s
        try:
            fault = fault_of_shards(folder, metadata_of(folder)[1], written, within_s)
        except InputError as error:  # what says where the tensors lie was cut off
            fault = error.problems[0].fact
        if fault is not None:
            raise IncompleteRun.of(
                f"could not save {folder}: {fault}",
                f"a checkpoint counts when all of its files are in one folder; {_OLDER}",
                "start the same command again, which looks whether all nodes have the same run_dir",
            )
        merged = {name: entry for part in written for name, entry in part.entries.items()}
        write_json(folder / layout.MANIFEST, {"files": merged})
        return sum(entry["bytes"] for entry in merged.values())

    def keep_ledger(self, ledger: Ledger, position: Position) -> None:
        """Write what a run has trained up to a position beside its metrics (rank 0)."""
        if self.is_main:
            with _disk_errors(self.run_dir):
                write_json(self.run_dir / LEDGER_FILE, ledger.as_file(position))

    def _failed(self, folder: Path, error: BaseException, writer: Any = None) -> LoopcoderError:
        """Describe a failed save, and give back the space that its shards took.

        Args:
            writer: Process that wrote in the background.
        """
        here = self._ended(writer), folder.exists()
        found: list[Any] = [here]
        if isinstance(error, CheckpointException):  # else the other ranks do not know of it yet
            found *= dist.get_world_size()
            dist.all_gather_object(found, here)
        described = _not_saved(folder, error)
        if ended := "; ".join(one for one, _ in found if one is not None):
            described = _writer_lost(folder, ended)
        elif not all(is_there for _, is_there in found):  # megatron does not say so
            described = _taken_away(folder, folder)
        # with a manifest it is a checkpoint, whatever failed after that
        if self.is_main and folder != self.run_dir and not (folder / layout.MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)
        return described

    def _ended(self, writer: Any) -> str | None:
        """Say which process that writes for this rank has been ended; None: none of them."""
        here = f"rank {dist.get_rank()} ({socket.gethostname()}"
        server = getattr(self._manager, "_process", None)
        if server is not None and not server.is_alive():
            return f"the process that passes on what the writer of {here}, {server.pid}) says ended"
        if writer is not None and (writer.exitcode or 0) < 0:
            how = signal.Signals(-writer.exitcode).name
            return f"{how} ended the writer of {here}, process {writer.pid})"
        return None


def _fresh(folder: Path) -> None:
    """Make an empty folder; one without a manifest is what a killed run left, and goes.

    A complete one, and what a link leads to, are kept under another name.
    """
    with _disk_errors(folder):
        if folder.is_symlink() or (folder / layout.MANIFEST).exists():
            folder.rename(layout.unused(folder, "replaced"))
        elif folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)


def _writer_lost(folder: Path, ended: str) -> ProcessLost:
    return ProcessLost.of(
        f"could not save {folder}: {ended}",
        f"what it was writing is not whole and is removed; {_OLDER}",
        "start the same command again: it continues from the newest checkpoint",
    )


def _taken_away(folder: Path, missing: object) -> IncompleteRun:
    return IncompleteRun.of(
        f"could not save {folder}: {missing} is missing",
        f"somebody removed or moved it while the run wrote there; {_LOST_WITHOUT}",
        "start the same command again, which writes the files of a run anew",
    )


def _not_saved(folder: Path, error: BaseException) -> LoopcoderError:
    """Say what failed. megatron's writer swallows the reason, so the free space is looked at."""
    full = is_disk_full(error) or free_bytes(folder) < FULL_BYTES
    if isinstance(error, FileNotFoundError) and not full:
        return _taken_away(folder, error.filename or error)
    if is_too_large(error):
        cause, fix = no_space(error, folder), remedy(error)
        fix = f"{fix}, then start the same command again"
        return LoopcoderError.of(f"could not save {folder}: {cause}", _LOST_WITHOUT, fix)
    cause = "the disk is full" if full else f"{type(error).__name__}: {error}"
    fix = "free space there (or lower checkpoint.keep)" if full else f"see to {folder.parent}"
    return LoopcoderError.of(
        f"could not save {folder}: {cause}",
        _LOST_WITHOUT,
        f"{fix}, then start the same command again",
    )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError into the error that says what to do."""
    try:
        yield
    except OSError as error:
        raise _not_saved(folder, error) from error


@contextmanager
def _same_error_on_all(folder: Path) -> Iterator[None]:
    """Raise on all ranks what any of them raises in the block, so that none waits for another."""
    found: LoopcoderError | None = None
    try:
        with _disk_errors(folder):
            yield
    except LoopcoderError as error:
        found = error
    same_error_on_all(found)
