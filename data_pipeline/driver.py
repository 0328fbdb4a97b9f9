"""`prepare`: the corpus that a config describes, built once however many processes ask for it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import xxhash

from data_pipeline.build import build
from data_pipeline.done_folder import atomically
from data_pipeline.encoder import Encoder
from data_pipeline.ingest import Report
from data_pipeline.manifest import FORMAT_VERSION, Corpus, Verify, load_corpus
from data_pipeline.readers import open_source
from data_pipeline.readers.base import Source
from data_pipeline.schema import DOMAINS
from loopcoder.checkpoint.digest import file_digest
from loopcoder.config.schema import DataConfig, SourceConfig
from loopcoder.errors import InputError, Problem

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(data: DataConfig, *, report: Report = print, verify: Verify = "hash") -> Corpus:
    """Return the corpus that `data` describes, after building it if it is not there yet.

    Any number of processes on one machine may call this at once: the first builds, the others wait.
    A folder under its final name is always complete; a builder that was killed leaves a folder
    ending in .tmp, which the next one removes.

    Args:
        data: What to build from; without sources, `data.path` is a finished corpus folder.
        report: Receives a line for each stage.
        verify: What of a finished corpus is compared with its manifest; one process in a run that
            hashes it is enough.

    Raises:
        InputError: the input, the config or an existing folder is unusable, or the disk is full.
    """
    if not data.sources:
        return _finished(data, verify)
    domains = _domains(data)
    sources = _open_all(data, domains)
    fingerprint = _fingerprint(data, sources, domains)
    cache = Path(data.cache_dir).expanduser()
    folder = cache / f"{data.name}-{fingerprint}"
    # outside the lock, so that a cache that one may only read serves as well
    if folder.exists():
        return load_corpus(folder, verify)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{folder.name}.lock", folder, report):
            if not folder.exists():
                start = time.monotonic()
                report(f"data: building {folder}")
                _build_atomically(
                    data,
                    sources=sources,
                    domains=domains,
                    fingerprint=fingerprint,
                    folder=folder,
                    report=report,
                )
                report(f"data: {folder.name} is complete after {time.monotonic() - start:.1f} s")
    except OSError as e:
        if e.errno in _DISK_FULL:
            free = shutil.disk_usage(cache).free
            raise InputError.of(
                f"no space left for the corpus in {cache}: {e}",
                "a corpus takes up to twice the size of its documents, and "
                f"{free:,} bytes are free now that what was begun is removed",
                "free some space, or data.cache_dir=FOLDER on a larger disk",
            ) from e
        if isinstance(e, PermissionError | FileExistsError | NotADirectoryError):
            raise InputError.of(
                f"cannot build the corpus in {cache}: {e}",
                "this user may not write there, or it is no folder",
                "data.cache_dir=FOLDER that is writable",
            ) from e
        raise
    return load_corpus(folder, verify)


def _finished(data: DataConfig, verify: Verify) -> Corpus:
    if not isinstance(data.path, str):
        raise InputError.of(
            f"data.sources is empty and data.path is {data.path!r}",
            "without sources, the path must be one finished corpus folder",
            "data.path=FOLDER, or data=sample",
        )
    corpus = load_corpus(data.path, verify)
    missing = [d for d in _domains(data) if d not in corpus.domains]
    if missing:
        raise InputError.of(
            f"corpus {corpus.dir} has the domains {list(corpus.domains)}, not {missing}",
            "data.mixture draws from every domain that it names",
            f"data.mixture={{{', '.join(f'{d}: 1' for d in corpus.domains)}}}",
        )
    return corpus


def _domains(data: DataConfig) -> tuple[str, ...]:
    """Return the domains of all mixtures, text before code."""
    wanted = set(data.mixture).union(*(stage.mixture or {} for stage in data.stages))
    unknown = sorted(wanted - set(DOMAINS))
    # a finished corpus may have others
    if (unknown and data.sources) or not wanted:
        raise InputError.of(
            f"data.mixture names {sorted(wanted)}",
            f"the sides of a corpus built here are {', '.join(DOMAINS)}",
            "data.mixture={text: 1, code: 1}",
        )
    return (*(d for d in DOMAINS if d in wanted), *unknown)


def _open_all(data: DataConfig, domains: Sequence[str]) -> list[Source]:
    """Open every source; all problems are raised at once, before anything is read."""
    sources: list[Source] = []
    problems: list[Problem] = []
    for index, config in enumerate(data.sources):
        try:
            sources.append(open_source(_with_defaults(config, data), index))
        except InputError as e:
            problems += e.problems
    if not problems:
        found = frozenset().union(*(source.domains for source in sources))
        problems = [
            Problem(
                f"no source has documents of the side {domain!r}",
                f"data.mixture takes tokens from it; the sources hold {sorted(found)}",
                f"add a source with {domain}, set its domain or language_field, "
                f"or '~data.mixture.{domain}'",
            )
            for domain in domains
            if domain not in found
        ]
    if data.tokenizer != "train":
        try:
            Encoder(Path(data.tokenizer).expanduser(), backend=data.tokenizer_backend)
        except InputError as e:
            problems += e.problems
    if problems:
        raise InputError(problems)
    return sources


def _with_defaults(config: SourceConfig, data: DataConfig) -> SourceConfig:
    """Fill in what a source takes from `data`."""
    takes_path = config.path is None and config.kind != "sample"
    return dataclasses.replace(
        config,
        path=data.path if takes_path else config.path,
        invalid_utf8=config.invalid_utf8 or data.invalid_utf8,
    )


def _fingerprint(data: DataConfig, sources: Sequence[Source], domains: Sequence[str]) -> str:
    """Hash everything that determines the tokens; 16 hex digits."""
    if data.tokenizer == "train":
        # another release of the library may break ties between pairs in another way
        tokenizer: list[Any] = ["train", data.tokenizer_vocab_size, tokenizers.__version__]
    else:
        tokenizer = ["import", file_digest(Path(data.tokenizer).expanduser())]
    parts = {
        "format": FORMAT_VERSION,
        "domains": list(domains),
        "val_fraction": data.val_fraction,
        "tokenizer": tokenizer,
        "sources": [[_plain(source.config), source.identity] for source in sources],
    }
    return xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _plain(config: SourceConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


@contextlib.contextmanager
def _lock(path: Path, folder: Path, report: Report) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it when its holder dies, however it dies.

    The file itself stays: whoever removed it could remove one that another process has just locked.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            report(f"data: waiting for process {file.read().strip()}, which builds {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _build_atomically(
    data: DataConfig,
    *,
    sources: Sequence[Source],
    domains: Sequence[str],
    fingerprint: str,
    folder: Path,
    report: Report,
) -> None:
    """Build beside `folder` and rename; the caller holds the lock."""
    temporary = folder.with_name(folder.name + ".tmp")
    if temporary.exists():
        report(f"data: removing {temporary.name}, left behind by a builder that was killed")
    with atomically(folder) as temporary:
        build(
            data,
            sources=sources,
            domains=domains,
            fingerprint=fingerprint,
            folder=temporary,
            report=report,
        )
