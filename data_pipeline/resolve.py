"""What a config asks for: domains and their weights, what is installed, sources that open, and the
fingerprint of it all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers
import xxhash

from data_pipeline.balance.names import unknown_shares
from data_pipeline.chat.template import check_template, template_digest
from data_pipeline.decontam.match import BUILTIN, open_index
from data_pipeline.filters import RULES_VERSION
from data_pipeline.langid.classifier import LanguageClassifier
from data_pipeline.langid.names import LABELS_VERSION, members_of
from data_pipeline.readers import open_source
from data_pipeline.readers.base import Source
from data_pipeline.tasks.progress import Report, silent
from data_pipeline.tasks.work import Work
from data_pipeline.tokenizer import fim
from data_pipeline.tokenizer.imported import import_tokenizer
from data_pipeline.tokenizer.repositories import FILE_SEP, REPO_NAME
from loopcoder.config.build import SourceConfig
from loopcoder.config.chat import CHECKPOINT
from loopcoder.config.check_build import check_build
from loopcoder.config.check_names import check_names
from loopcoder.config.data import DataConfig
from loopcoder.config.identity import corpus_fields
from loopcoder.config.mixture import DOMAINS, lowest_terms, without
from loopcoder.data.manifest import FORMAT_VERSION
from loopcoder.data.places import tokenizer_file
from loopcoder.errors import InputError, Problem
from loopcoder.storage.digest import file_digest

_READING = 3
"""Raised whenever other documents, or others' ids, come of the same files."""
_RENDERING = 6
"""Raised whenever other conversations come of the same rows, or other tokens, masks or sequences of
the same conversations."""


def refuse_unusable(data: DataConfig) -> None:
    """Raise InputError for names that stand for nothing and values that no corpus can be built
    with, before anything is opened or read."""
    problems = [*check_names(data), *check_build(data)]
    problems += [] if data.build.is_chat else unknown_shares(data)
    if problems:
        raise InputError(problems)
    if data.build.tokenizer == CHECKPOINT:
        raise InputError.of(
            f"data.build.tokenizer={CHECKPOINT}, and no checkpoint is named",
            "the conversations are encoded by its tokenizer, in its template",
            "checkpoint.init_from=RUN, or data.build.tokenizer=FOLDER of a checkpoint or of a "
            "model for transformers",
        )


def domains_of(data: DataConfig) -> tuple[str, ...]:
    """Return the domains of all mixtures, text before code."""
    wanted = set(data.mixture).union(*(stage.mixture or {} for stage in data.stages))
    unknown = sorted(wanted - set(DOMAINS))
    if not wanted:
        raise InputError.of(
            "data.mixture names no domain",
            f"the domains of a corpus built here are {', '.join(DOMAINS)}",
            "'data.mixture={text:1,code:1}'",
        )
    # a finished corpus may have others
    return (*(d for d in DOMAINS if d in wanted), *unknown)


def weights_of(data: DataConfig, domains: Sequence[str]) -> dict[str, int]:
    """Return the tokens of each domain in lowest terms: those of the mixture; a domain that only a
    stage names, as much as it has there."""
    mixture = dict(data.mixture)
    for stage in data.stages:
        mixture = (stage.mixture or {}) | mixture
    return lowest_terms({domain: mixture[domain] for domain in domains})


def resolve_auto(data: DataConfig) -> DataConfig:
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


def open_sources(
    data: DataConfig, domains: Sequence[str], report: Report = silent
) -> tuple[list[Source], list[Problem]]:
    """Open every source, whatever encodes what it has; return them, and what is wrong."""
    sources: list[Source] = []
    problems: list[Problem] = []
    for index, config in enumerate(data.build.sources):
        try:
            sources.append(_open(config, index, data, report))
        except InputError as e:
            problems += e.problems
    if not problems:
        found = frozenset().union(*(source.domains for source in sources))
        problems = [
            Problem(
                f"no source has documents of the domain {domain!r}",
                "data.mixture takes tokens from it; the sources hold "
                f"{' and '.join(sorted(found))}"
                + (f"; {members}" if (members := members_of(domain)) else ""),
                f"add a source with {domain}, set its domain or language_field"
                + (f", or {rest}" if (rest := without(data.mixture, domain)) else ""),
            )
            for domain in domains
            if domain not in found
        ]
    return sources, problems


def open_all(data: DataConfig, domains: Sequence[str], report: Report = silent) -> list[Source]:
    """Open every source; all problems are raised at once, before anything is read."""
    sources, problems = open_sources(data, domains, report)
    unusable = _problems_of(lambda: _check_tokenizer(data))
    if data.build.is_chat and not unusable:
        unusable = _problems_of(lambda: check_template(data))
    problems += unusable
    problems += _problems_of(lambda: _check_repository(data, domains))
    problems += _problems_of(lambda: _check_near_dedup(data))
    problems += _problems_of(lambda: open_index(data.build.decontaminate))
    if data.build.language_classifier:
        problems += _problems_of(
            lambda: LanguageClassifier.load(str(data.build.language_classifier))
        )
    if problems:
        raise InputError(problems)
    return sources


def _open(config: SourceConfig, index: int, data: DataConfig, report: Report) -> Source:
    config = _with_defaults(config, data)
    paths = [config.path] if isinstance(config.path, str) else config.path or []
    if config.kind != "sample" and not all(path.strip() for path in paths):
        raise InputError.of(
            f"source {index}-{config.kind} has an empty path",
            "it would be the current folder; a variable of the shell that is not set looks like it",
            "data.path=FOLDER, or data.path=. for the current folder",
        )
    return open_source(config, index, data.build.unreadable, report)


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
        tokenizer_file(Path(data.build.tokenizer)), data.build.tokenizer_backend
    )
    uses = (
        (
            data.build.fim.rate > 0,
            (fim.PREFIX, fim.MIDDLE, fim.SUFFIX, fim.END),
            f"data.build.fim.rate is {data.build.fim.rate}",
            "documents for filling in the middle are made of these tokens",
            "data.build.fim.rate=0",
        ),
        (
            data.build.repository.enabled,
            (REPO_NAME, FILE_SEP),
            "data.build.repository.enabled=true",
            "these tokens separate the files of a repository",
            "data.build.repository.enabled=false",
        ),
    )
    for is_used, markers, fact, why, fix in uses:
        missing = [marker for marker in markers if marker not in encoder.markers]
        if is_used and missing:
            raise InputError.of(
                f"{fact}, and {data.build.tokenizer} has no {', '.join(missing)}",
                why,
                f"{fix}, or a tokenizer that has them",
            )


def _check_repository(data: DataConfig, domains: Sequence[str]) -> None:
    if data.build.repository.enabled and "code" not in domains:
        raise InputError.of(
            "data.build.repository.enabled=true, and data.mixture has no code",
            "the code files of a repository are joined, prose stays as it is",
            "data.build.repository.enabled=false, or 'data.mixture={text:1,code:1}'",
        )


def _check_near_dedup(data: DataConfig) -> None:
    if data.build.near_dedup.enabled and not _has("rensa"):
        raise InputError.of(
            "data.build.near_dedup.enabled=true",
            "near copies are found by the package rensa, which is not installed",
            "pip install '.[data]', or data.build.near_dedup.enabled=false",
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


def fingerprint_of(data: DataConfig, sources: Sequence[Source], weights: dict[str, int]) -> str:
    """Hash everything that determines the corpus; 16 hex digits."""
    fields = corpus_fields(data)
    for name in ("mixture", "stages", "path"):  # they are in `weights` and in the sources
        fields.pop(name, None)
    if data.build.tokenizer == "train":
        # another release of the library may break ties between pairs in another way
        fields["tokenizer"] = ["train", data.build.tokenizer_vocab_size, tokenizers.__version__]
    else:
        fields["tokenizer"] = ["import", file_digest(tokenizer_file(Path(data.build.tokenizer)))]
    if data.build.is_chat:
        fields["chat_template"] = [_RENDERING, template_digest(data)]
        own = fields.setdefault("build", {}).setdefault("chat", {})
        own.pop("template", None)  # a path, perhaps: its text counts
    if data.build.shards is not None or data.build.is_chat:
        fields.pop("worker_bytes")
    benchmarks = [Path(b) for b in data.build.decontaminate.benchmarks if b not in BUILTIN]
    fields["sources"] = [[_plain(source.config), source.identity] for source in sources]
    files = [
        *benchmarks,
        *([Path(data.build.language_classifier)] if data.build.language_classifier else []),
    ]
    digests = [file_digest(path.expanduser()) for path in files]
    parts = [FORMAT_VERSION, LABELS_VERSION, RULES_VERSION, weights, fields, digests]
    return xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _plain(config: SourceConfig) -> dict[str, Any]:
    plain = dataclasses.asdict(config)
    if config.kind != "hf":
        plain.pop("path")  # where files are kept is of no account: the identity has their places
        plain["reading"] = _READING
    if config.repository_field is not None:
        plain["whole_numbers_name_repositories"] = True
    for name in ("repository_field", "messages_field", "tools_field"):
        if plain[name] is None:  # they came later, and rename no corpus
            plain.pop(name)
    if plain["markup"] == "read":
        plain.pop("markup")
    return plain


def with_rules(work: Work, sources: Sequence[Source]) -> Work:
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
