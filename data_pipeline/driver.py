"""`prepare`: the corpus that a config describes, built once however many processes ask for it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers
import xxhash

from data_pipeline.decontam.match import BUILTIN, open_index
from data_pipeline.finish import finish
from data_pipeline.langid.classifier import LanguageClassifier
from data_pipeline.readers import open_source
from data_pipeline.readers.base import Source
from data_pipeline.schema import DOMAINS
from data_pipeline.stages import STAGES, Stage
from data_pipeline.tasks.execute import Executor, run_ranks
from data_pipeline.tasks.markers import disk_errors, read_marker, write_marker
from data_pipeline.tasks.progress import Report, described, left_out, total_cost, watched
from data_pipeline.tasks.work import Task, Work
from data_pipeline.tokenizer import fim
from data_pipeline.tokenizer.imported import import_tokenizer
from loopcoder.config.build import SourceConfig
from loopcoder.config.data import DataConfig
from loopcoder.config.identity import corpus_fields
from loopcoder.config.mixture import lowest_terms
from loopcoder.data.corpus import FORMAT_VERSION, Corpus, Verify, load_corpus
from loopcoder.data.corpus_files import MANIFEST
from loopcoder.errors import InputError, Problem
from loopcoder.storage.digest import file_digest, fingerprint
from loopcoder.storage.files import sync_folder
from loopcoder.storage.lock import hold

_SMALL_BYTES = 200_000_000
"""Of input; less is done by this process alone unless data.build.executor.workers says
otherwise."""


def prepare(data: DataConfig, *, report: Report = print, verify: Verify = "hash") -> Corpus:
    """Return the corpus that `data` describes, after building it if it is not there yet.

    Any number of processes on one machine may call this at once: the first builds, the others wait.
    A folder under its final name is always complete. What a builder that was killed had finished
    lies in a hidden folder beside it, and the next one continues there.

    Args:
        data: What to build from; without sources, `data.path` is a finished corpus folder.
        report: Receives a line for each stage.
        verify: What of a finished corpus is compared with its manifest; one process in a run that
            hashes it is enough.

    Raises:
        InputError: the input, the config or an existing folder is unusable, or the disk is full.
    """
    if not data.build.sources:
        return _finished(data, verify)
    domains = _domains(data)
    data = _settled(data)
    sources = _open_all(data, domains)
    weights = _weights(data, domains)
    made_of = _fingerprint(data, sources, weights)
    cache = Path(data.build.cache_dir).expanduser()
    folder = cache / f"{data.name}-{made_of}"
    # hidden, since the documents may lie in a folder above
    work = Work(cache / f".{folder.name}.work", data, made_of, domains, weights)
    # outside the lock, so that a cache that one may only read serves as well
    if folder.exists():
        _tidy(work, folder, report)
        return load_corpus(folder, verify)
    try:
        with disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with _lock(folder, report):
                if not folder.exists():
                    _build(work, sources, folder, report)
    except (PermissionError, FileExistsError, NotADirectoryError) as e:
        raise InputError.of(
            f"cannot build the corpus in {cache}: {e}",
            "this user may not write there, or it is no folder",
            "data.build.cache_dir=FOLDER that is writable",
        ) from e
    return load_corpus(folder, verify)


def _tidy(work: Work, folder: Path, report: Report) -> None:
    """Remove the work of a corpus whose builder was killed just after giving it its name."""
    if work.folder.exists() and not work.data.build.keep_work:
        with (
            contextlib.suppress(OSError),
            _lock(folder, report),
        ):
            shutil.rmtree(work.folder, ignore_errors=True)


def _finished(data: DataConfig, verify: Verify) -> Corpus:
    if not isinstance(data.path, str):
        raise InputError.of(
            f"data.build.sources is empty and data.path is {data.path!r}",
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
    if (unknown and data.build.sources) or not wanted:
        raise InputError.of(
            f"data.mixture names {sorted(wanted)}",
            f"the domains of a corpus built here are {', '.join(DOMAINS)}",
            "data.mixture={text: 1, code: 1}",
        )
    return (*(d for d in DOMAINS if d in wanted), *unknown)


def _weights(data: DataConfig, domains: Sequence[str]) -> dict[str, int]:
    """Return the tokens of each domain in lowest terms: those of the mixture; a domain that only a
    stage names, as much as it has there."""
    mixture = dict(data.mixture)
    for stage in data.stages:
        mixture = (stage.mixture or {}) | mixture
    return lowest_terms({domain: mixture[domain] for domain in domains})


def _settled(data: DataConfig) -> DataConfig:
    """Replace `auto` by what is installed here."""
    filters, near = data.build.filters, data.build.near_dedup
    if filters.linguist_generated == "auto":
        filters = dataclasses.replace(filters, linguist_generated=_has("enry"))
    if near.enabled == "auto":
        near = dataclasses.replace(near, enabled=_has("rensa"))
    return dataclasses.replace(
        data, build=dataclasses.replace(data.build, filters=filters, near_dedup=near)
    )


def _has(package: str) -> bool:
    return find_spec(package) is not None


def _open_all(data: DataConfig, domains: Sequence[str]) -> list[Source]:
    """Open every source; all problems are raised at once, before anything is read."""
    sources: list[Source] = []
    problems: list[Problem] = []
    for index, config in enumerate(data.build.sources):
        try:
            sources.append(open_source(_with_defaults(config, data), index))
        except InputError as e:
            problems += e.problems
    if not problems:
        found = frozenset().union(*(source.domains for source in sources))
        problems = [
            Problem(
                f"no source has documents of the domain {domain!r}",
                f"data.mixture takes tokens from it; the sources hold {sorted(found)}",
                f"add a source with {domain}, set its domain or language_field, "
                f"or '~data.mixture.{domain}'",
            )
            for domain in domains
            if domain not in found
        ]
    problems += _problems_of(lambda: _check_tokenizer(data))
    problems += _problems_of(lambda: _check_near_dedup(data))
    problems += _problems_of(lambda: open_index(data.build.decontaminate))
    if data.build.language_classifier:
        problems += _problems_of(
            lambda: LanguageClassifier.load(str(data.build.language_classifier))
        )
    if problems:
        raise InputError(problems)
    return sources


def _problems_of(check: Callable[[], object]) -> list[Problem]:
    try:
        check()
    except InputError as e:
        return e.problems
    return []


def _check_tokenizer(data: DataConfig) -> None:
    if data.build.tokenizer == "train":
        return
    encoder = import_tokenizer(
        Path(data.build.tokenizer).expanduser(), data.build.tokenizer_backend
    )
    missing = [m for m in (fim.PREFIX, fim.MIDDLE, fim.SUFFIX, fim.END) if m not in encoder.markers]
    if data.build.fim.rate and missing:
        raise InputError.of(
            f"data.build.fim.rate is {data.build.fim.rate}, and {data.build.tokenizer} has no "
            f"{', '.join(missing)}",
            "documents for filling in the middle are made of these tokens",
            "data.build.fim.rate=0, or a tokenizer that has them",
        )


def _check_near_dedup(data: DataConfig) -> None:
    if data.build.near_dedup.enabled and not _has("rensa"):
        raise InputError.of(
            "data.build.near_dedup.enabled=true",
            "near copies are found by the package rensa, which is not installed",
            "pip install 'loopcoder[data]', or data.build.near_dedup.enabled=false",
        )


def _with_defaults(config: SourceConfig, data: DataConfig) -> SourceConfig:
    """Fill in what a source takes from `data`."""
    path = config.path
    if path is None and config.kind in ("debian", "npm"):
        path = str(Path(data.build.cache_dir).expanduser() / "packages")
    elif path is None and config.kind != "sample":
        path = data.path
    invalid_utf8 = config.invalid_utf8 or data.build.invalid_utf8
    return dataclasses.replace(config, path=path, invalid_utf8=invalid_utf8)


def _fingerprint(data: DataConfig, sources: Sequence[Source], weights: dict[str, int]) -> str:
    """Hash everything that determines the corpus; 16 hex digits."""
    fields = corpus_fields(data)
    for name in ("mixture", "stages", "path"):  # they are in `weights` and in the sources
        fields.pop(name, None)
    if data.build.tokenizer == "train":
        # another release of the library may break ties between pairs in another way
        fields["tokenizer"] = ["train", data.build.tokenizer_vocab_size, tokenizers.__version__]
    else:
        fields["tokenizer"] = ["import", file_digest(Path(data.build.tokenizer).expanduser())]
    if data.build.shards is not None:
        fields.pop("worker_bytes")
    benchmarks = [Path(b) for b in data.build.decontaminate.benchmarks if b not in BUILTIN]
    fields["sources"] = [[_plain(source.config), source.identity] for source in sources]
    files = [
        *benchmarks,
        *([Path(data.build.language_classifier)] if data.build.language_classifier else []),
    ]
    digests = [file_digest(path.expanduser()) for path in files]
    parts = [FORMAT_VERSION, weights, fields, digests]
    return xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _plain(config: SourceConfig) -> dict[str, Any]:
    plain = dataclasses.asdict(config)
    if config.kind in ("debian", "npm"):
        plain.pop("path")  # where packages are kept is of no account
    return plain


def _lock(folder: Path, report: Report) -> AbstractContextManager[None]:
    """Hold the lock of a corpus, waiting for a process that builds it."""
    return hold(
        folder.with_name(f"{folder.name}.lock"),
        lambda holder: report(f"data: waiting for process {holder}, which builds {folder}"),
    )


def _build(work: Work, sources: Sequence[Source], folder: Path, report: Report) -> None:
    """Run every stage that is not done and give the corpus its name; the caller holds the lock."""
    start = time.monotonic()
    continues = (work.folder / "done").exists()
    report(f"data: {'continuing' if continues else 'building'} {folder}")
    work = _with_rules(work, sources).own(
        lambda: report("data: waiting for the last tasks of a build that was killed")
    )
    size = _partition(work, sources)
    for stage in STAGES:
        _run_stage(work, stage, size, report)
    if not (work.corpus / MANIFEST).exists():
        finish(work, sources)
    work.corpus.rename(folder)
    sync_folder(folder.parent)
    if not work.data.build.keep_work:
        shutil.rmtree(work.folder)
    report(f"data: {folder.name} is complete after {time.monotonic() - start:.1f} s")


def _with_rules(work: Work, sources: Sequence[Source]) -> Work:
    """Add to the filters what the sources know: their folders and licences."""
    filters = work.data.build.filters
    licences = {s.name: s.config.licence for s in sources if s.config.licence}
    filters = dataclasses.replace(
        filters,
        path_roots=[*filters.path_roots, *(root for s in sources for root in s.roots)],
        source_licences=licences | filters.source_licences,
    )
    build = dataclasses.replace(work.data.build, filters=filters)
    return dataclasses.replace(work, data=dataclasses.replace(work.data, build=build))


def _partition(work: Work, sources: Sequence[Source]) -> int:
    """Write down the parts of the input, once; return its bytes."""
    made_of = fingerprint(work.fingerprint, "parts")
    path = work.folder / "parts.json"
    done = read_marker(path, made_of)
    if done is None:
        parts = [part for source in sources for part in source.parts(work.data.build.part_bytes)]
        work.write_parts(parts)
        size = sum(part.size for part in parts)
        done = write_marker(path, made_of, parts=len(parts), bytes=size)
    return int(done["bytes"])


def _run_stage(work: Work, stage: Stage, size: int, report: Report) -> None:
    """Run the tasks of a stage that are not done, and say what they cost."""
    tasks = stage.tasks(work)
    missing = work.missing(stage.name, tasks)
    if missing:
        start = time.monotonic()
        config = work.data.build.executor
        workers = config.workers
        if config.kind == "local" and not workers and size < _SMALL_BYTES:
            workers = 1
        executor = Executor(config.kind, workers, config.options)
        first = tasks - len(missing)
        if first:
            report(f"data: {stage.title}: {first} of {tasks} tasks were done before")
        folder = work.marker(stage.name, 0).parent
        with watched(stage.title, tasks, lambda: len(list(folder.glob("*.json"))), report):
            task = Task(work, stage.name, stage.run)
            run_ranks(task, missing, tasks, executor, work.folder / "logs" / stage.name)
        facts = work.facts(stage.name, tasks)
        cost = total_cost([f["cost"] for f in facts], sum(f.get("bytes_in", 0) for f in facts))
        report(described(stage.title, time.monotonic() - start, cost))
        # copies are told once, where it is decided which of them stays
        dropped = left_out(facts) if stage.name in ("read", "cluster") else None
        if dropped:
            report(dropped)
    if stage.after is not None:
        stage.after(work)
