"""`prepare`: the corpus that a config describes, built once however many processes ask for it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from glob import escape
from pathlib import Path

from data_pipeline.balance.names import missing_shares
from data_pipeline.balance.plan import Planned
from data_pipeline.chat.rendered import Rendered
from data_pipeline.former import former_line
from data_pipeline.readers.base import Source
from data_pipeline.readers.ingest import Listed, input_hash, list_parts
from data_pipeline.resolve import (
    domains_of,
    fingerprint_of,
    open_all,
    open_sources,
    refuse_unusable,
    resolve_auto,
    weights_of,
    with_rules,
)
from data_pipeline.sealing import Finished
from data_pipeline.stages import stages_of
from data_pipeline.tasks.execute import check_executor, run_tasks
from data_pipeline.tasks.progress import Report, described, left_out, total_cost, watched
from data_pipeline.tasks.stage import Stage
from data_pipeline.tasks.work import Cost, Task, Work, disk_errors
from data_pipeline.tokenizer.changes import changes_line
from data_pipeline.tokenizer.count import Counted, Tokenizer
from loopcoder.config.build import ExecutorConfig
from loopcoder.config.corpora import joined_corpora
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import as_override
from loopcoder.config.identity import as_folder
from loopcoder.data.corpus import Corpus, Verify, load_corpus
from loopcoder.data.joined import open_joined
from loopcoder.data.manifest import MANIFEST, check_domains, read_manifest
from loopcoder.data.mirror import folder_of
from loopcoder.errors import InputError, counted
from loopcoder.storage.files import sync_folder
from loopcoder.storage.folders import is_there
from loopcoder.storage.lock import hold

_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EROFS)
_SMALL_BYTES = 200_000_000
"""Of input; less is done by this process alone unless data.build.executor.workers says
otherwise."""


def prepare(
    data: DataConfig,
    *,
    report: Report = print,
    verify: Verify = "hash",
    before_build: Callable[[list[str]], None] | None = None,
) -> Corpus:
    """Return the corpus that `data` describes, after building it if it is not there yet.

    Any number of processes on one machine may call this at once: the first builds, the others wait.
    A folder under its final name is always complete. What a builder that was killed had finished
    lies in a hidden folder beside it, and the next one continues there.

    Args:
        data: What to build from; without sources, `data.path` is a finished corpus folder.
        report: Receives a line for each stage.
        verify: What of a finished corpus is compared with its manifest; one process in a run that
            hashes it is enough.
        before_build: Takes the hash of each source's files, `input_xxh3_128` of the manifest, if
            the corpus has to be built; it may refuse that.

    Raises:
        InputError: the input, the config or an existing folder is unusable, or the disk is full.
    """
    if not data.build.sources:
        return _finished(data, verify)
    refuse_unusable(data)
    domains = domains_of(data)
    data = resolve_auto(data)
    _check_executor_early(data)
    sources = open_all(data, domains, report)
    weights = weights_of(data, domains)
    fingerprint = fingerprint_of(data, sources, weights)
    cache = Path(data.build.cache_dir).expanduser()
    folder = _folder(cache, data, fingerprint)
    work = Work(_work_of(folder), data, fingerprint, domains, weights)
    # outside the lock, so that a cache that one may only read serves as well
    if folder.exists():
        _remove_work(work, folder, report)
        return load_corpus(folder, verify)
    check_executor(data.build.executor)
    if before_build is not None:
        before_build([input_hash(source) for source in sources])
    try:
        with disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with _lock(folder, report):
                if not folder.exists():
                    _build(work, sources, folder, report)
    except OSError as e:
        if e.errno not in _UNUSABLE:
            raise
        raise InputError.of(
            f"cannot build the corpus in {cache}: {e}",
            "this user may not write there, it is no folder, or its disk is read-only",
            "data.build.cache_dir=FOLDER that is writable",
        ) from e
    return load_corpus(folder, verify)


def check_input(data: DataConfig, report: Report = print) -> None:
    """Raise InputError for what `prepare` would refuse before it builds anything.

    That is a path that is not there, a domain that no source has, a tokenizer that cannot be read,
    a corpus that is there and damaged, or what would run the tasks of one that is not there yet.
    """
    if not data.build.sources:
        _finished(data, "size")
        return
    refuse_unusable(data)
    domains = domains_of(data)
    data = resolve_auto(data)
    _check_executor_early(data)
    sources = open_all(data, domains, report)
    fingerprint = fingerprint_of(data, sources, weights_of(data, domains))
    folder = _folder(Path(data.build.cache_dir).expanduser(), data, fingerprint)
    if folder.exists():
        load_corpus(folder, "size")
    else:
        check_executor(data.build.executor)


def check_sources(data: DataConfig, report: Report = print) -> None:
    """Raise InputError for sources that are not there, where it is not known yet which tokenizer
    encodes them."""
    _, problems = open_sources(resolve_auto(data), domains_of(data), report)
    if problems:
        raise InputError(problems)


def may_be_built(data: DataConfig) -> bool:
    """Say whether the cache has a corpus that `data` may describe; a listing of its sources
    tells."""
    cache = Path(data.build.cache_dir).expanduser()
    names = {data.name, data.corpus_name, as_folder(data.corpus_name)}
    return any(path.is_dir() for name in names for path in cache.glob(f"{escape(name)}-*"))


def _check_executor_early(data: DataConfig) -> None:
    """Raise InputError if nothing here can run the tasks, before packages are fetched or folders
    listed; unless the corpus may be there already."""
    if not may_be_built(data):
        check_executor(data.build.executor)


def _folder(cache: Path, data: DataConfig, fingerprint: str) -> Path:
    """Return the folder of a corpus; what was built or begun under the name of the preset, or under
    one that is not made safe, as all were until 2026-11-29, stays where it is."""
    formers = [cache / f"{name}-{fingerprint}" for name in (data.name, data.corpus_name)]
    there = (f for f in formers if is_there(f) or is_there(_work_of(f)))
    return next(there, cache / f"{as_folder(data.corpus_name)}-{fingerprint}")


def _work_of(folder: Path) -> Path:
    """Return the work folder of a corpus: hidden, since the documents may lie in a folder above."""
    return folder.with_name(f".{folder.name}.work")


def _remove_work(work: Work, folder: Path, report: Report) -> None:
    """Remove the work of a corpus whose builder was killed just after giving it its name."""
    if work.folder.exists() and not work.data.build.keep_work:
        with (
            contextlib.suppress(OSError),
            _lock(folder, report),
        ):
            shutil.rmtree(work.folder, ignore_errors=True)


def _finished(data: DataConfig, verify: Verify) -> Corpus:
    if joined_corpora(data):
        return open_joined(data, verify)
    if not isinstance(data.path, str) or not data.path.strip():
        raise InputError.of(
            f"data.build.sources is empty and data.path is {as_override(data.path)}",
            "without sources, the path must be one finished corpus folder",
            "data.path=FOLDER, or data=sample",
        )
    folder = folder_of(data)
    # before every byte is read
    check_domains(folder, read_manifest(folder), list(domains_of(data)))
    return load_corpus(folder, verify)


def _lock(folder: Path, report: Report) -> AbstractContextManager[None]:
    """Hold the lock of a corpus, waiting for a process that builds it."""
    return hold(
        folder.with_name(f"{folder.name}.lock"),
        lambda holder: report(f"data: waiting for process {holder}, which builds {folder}"),
    )


def _build(work: Work, sources: Sequence[Source], folder: Path, report: Report) -> None:
    """Run every stage that is not done and give the corpus its name; the caller holds the lock."""
    start = time.monotonic()
    work.refuse_other_format()
    continues = not work.missing(Listed.stage, 1)
    report(f"data: {'continuing' if continues else 'building'} {folder}")
    work = with_rules(work, sources).take_over(
        lambda: report("data: waiting for the last tasks of a build that was killed")
    )
    if not continues:  # here, since sources stay in this process
        Task(work, Listed, partial(list_parts, sources=sources))(0)
        if line := former_line(folder, work.result(Listed).sources):
            report(line)
    executor = _executor(work)
    for stage in stages_of(work):
        _run_stage(work, stage, executor, report)
    finished = work.done(Finished)
    finished.file(work.corpus / MANIFEST)
    for line in finished.result.told:
        report(f"data: {line}")
    tallies = (
        [done.result.tallies[-1] for done in work.all_done(Rendered)]
        if work.data.build.is_chat
        else [done.result.tallies[-1] for done in work.all_done(Counted)]
    )
    if line := changes_line(tallies, work.result(Tokenizer).normaliser):
        report(line)
    if not work.data.build.is_chat and (
        line := missing_shares(work.data, work.result(Planned).languages)
    ):
        report(line)
    work.corpus.rename(folder)
    sync_folder(folder.parent)
    if not work.data.build.keep_work:
        shutil.rmtree(work.folder)
    report(f"data: {folder.name} is complete after {time.monotonic() - start:.1f} s")


def _executor(work: Work) -> ExecutorConfig:
    """Return where tasks run; little is done by this process alone."""
    config = work.data.build.executor
    if config.kind == "local" and not config.workers and work.result(Listed).size < _SMALL_BYTES:
        return dataclasses.replace(config, workers=1)
    return config


def _run_stage(work: Work, stage: Stage, executor: ExecutorConfig, report: Report) -> None:
    """Run the tasks of a stage that are not done, and say what they cost."""
    tasks = stage.tasks(work)
    missing = work.missing(stage.name, tasks)
    if not missing:
        return
    start = time.monotonic()
    first = tasks - len(missing)
    if first:
        report(f"data: {stage.title}: done before: {first} of {counted(tasks, 'task')}")
    folder = work.marker(stage.name, 0).parent
    with watched(stage.title, tasks, lambda: len(list(folder.glob("*.json"))), report):
        task = Task(work, stage.kind, stage.run)
        run_tasks(task, missing, executor, stage.name, work.folder / "logs" / stage.name)
    dropped: Counter[str] = Counter()
    costs: list[Cost] = []
    faults: list[str] = []
    for done in work.all_done(stage.kind):
        costs.append(done.cost)
        dropped.update(done.left_out)
        faults += done.faults
    report(described(stage.title, time.monotonic() - start, total_cost(costs)))
    if line := left_out(dropped):
        report(line)
    for line in faults:
        report(f"data:   {line}")
