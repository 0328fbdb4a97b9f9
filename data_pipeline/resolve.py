"""What a config asks for: domains and their weights, what is installed, sources that open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from data_pipeline.balance.quotas import lowest_terms
from data_pipeline.decontam.match import open_index
from data_pipeline.langid.classifier import LanguageModel
from data_pipeline.readers import open_source
from data_pipeline.readers.base import Source
from data_pipeline.schema import DOMAINS
from data_pipeline.tasks.work import Work
from data_pipeline.tokenizer import fim
from data_pipeline.tokenizer.encoder import Encoder
from data_pipeline.tokenizer.imported import import_tokenizer
from loopcoder.config.schema import DataConfig, SourceConfig
from loopcoder.errors import InputError, Problem


def domains_of(data: DataConfig) -> tuple[str, ...]:
    """Return the domains of all mixtures, text before code."""
    wanted = set(data.mixture).union(*(stage.mixture or {} for stage in data.stages))
    unknown = sorted(wanted - set(DOMAINS))
    # a finished corpus may have others
    if (unknown and data.sources) or not wanted:
        raise InputError.of(
            f"data.mixture names {sorted(wanted)}",
            f"the domains of a corpus built here are {', '.join(DOMAINS)}",
            "data.mixture={text: 1, code: 1}",
        )
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
    filters, near = data.filters, data.near_dedup
    if filters.linguist_generated == "auto":
        filters = dataclasses.replace(filters, linguist_generated=_has("enry"))
    if near.enabled == "auto":
        near = dataclasses.replace(near, enabled=_has("rensa"))
    return dataclasses.replace(data, filters=filters, near_dedup=near)


def _has(package: str) -> bool:
    return find_spec(package) is not None


def open_all(data: DataConfig, domains: Sequence[str]) -> list[Source]:
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
    rules = data.decontaminate
    problems += _problems_of(
        lambda: open_index(rules.benchmarks, share=rules.share, ngram=rules.ngram)
    )
    if data.language_model:
        problems += _problems_of(lambda: LanguageModel.load(str(data.language_model)))
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
    if data.tokenizer == "train":
        return
    path = Path(data.tokenizer).expanduser()
    try:
        encoder = Encoder(path, backend=data.tokenizer_backend)
    except InputError:
        import_tokenizer(path)  # knows other kinds of files, and says what is wrong with them
        raise
    missing = [m for m in (fim.PREFIX, fim.MIDDLE, fim.SUFFIX, fim.END) if m not in encoder.markers]
    if data.fim.rate and missing:
        raise InputError.of(
            f"data.fim.rate is {data.fim.rate}, and {data.tokenizer} has no {', '.join(missing)}",
            "documents for filling in the middle are made of these tokens",
            "data.fim.rate=0, or a tokenizer that has them",
        )


def _check_near_dedup(data: DataConfig) -> None:
    if data.near_dedup.enabled and not _has("rensa"):
        raise InputError.of(
            "data.near_dedup.enabled=true",
            "near copies are found by the package rensa, which is not installed",
            "pip install 'loopcoder[data]', or data.near_dedup.enabled=false",
        )


def _with_defaults(config: SourceConfig, data: DataConfig) -> SourceConfig:
    """Fill in what a source takes from `data`."""
    path = config.path
    if path is None and config.kind in ("debian", "npm"):
        path = str(Path(data.cache_dir).expanduser() / "packages")
    elif path is None and config.kind != "sample":
        path = data.path
    invalid_utf8 = config.invalid_utf8 or data.invalid_utf8
    return dataclasses.replace(config, path=path, invalid_utf8=invalid_utf8)


def with_rules(work: Work, sources: Sequence[Source]) -> Work:
    """Add to the filters what the sources know: their folders and licences."""
    filters = work.data.filters
    licences = {s.name: s.config.licence for s in sources if s.config.licence}
    filters = dataclasses.replace(
        filters,
        path_roots=[*filters.path_roots, *(root for s in sources for root in s.roots)],
        source_licences=licences | filters.source_licences,
    )
    return dataclasses.replace(work, data=dataclasses.replace(work.data, filters=filters))
