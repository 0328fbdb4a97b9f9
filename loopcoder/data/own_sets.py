"""Validation sets of the user's own (`eval.corpora`): finished corpora, in the tokens of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from loopcoder.config.evaluation import EvalConfig
from loopcoder.config.fields import typed
from loopcoder.config.schema import Config
from loopcoder.data.check_packed import own_problems
from loopcoder.data.corpus import Corpus, Verify, load_corpus
from loopcoder.data.manifest import read_manifests
from loopcoder.data.mirror import folder_at
from loopcoder.errors import InputError, Problem

_MOST_TOKENS = 1_000_000_000
"""Of a set that is evaluated whole: every rank holds it in memory, 9 bytes for each token."""


def own_folders(config: Config) -> dict[str, Path]:
    """Return the folder of every set on this machine, by its name.

    Raises:
        LoopcoderError: one has a URL and cannot be fetched.
    """
    return {name: folder_at(path, config.data) for name, path in config.eval.corpora.items()}


def open_own_sets(config: Config, corpus: Corpus, verify: Verify) -> dict[str, Corpus]:
    """Open the sets of `eval.corpora`, by their names.

    Args:
        corpus: What the run is trained on.
        verify: What of them is compared with their manifests.

    Raises:
        InputError: with every set that is no finished corpus, damaged, in other tokens, without
            held-out documents, or too large to be evaluated whole.
    """
    check_own_folders(config)
    opened, problems = {}, []
    for name, folder in own_folders(config).items():
        try:
            opened[name] = load_corpus(folder, verify)
        except InputError as error:
            problems += error.problems
        else:
            problems += _unfit(config.eval, name, opened[name], corpus)
    if problems:
        raise InputError(problems)
    return opened


def check_own_folders(config: Config) -> None:
    """Raise InputError with every set that is no finished corpus, or is packed for a length that
    cannot be evaluated: what needs no corpus of the run and reads nothing but manifests."""
    folders = own_folders(config)

    def not_there(name: str) -> Problem:
        return Problem(
            f"eval.corpora.{name}={folders[name]}: there is no finished corpus",
            "a validation set is a folder that `loopcoder data` has built and printed",
            f"{_build('TOKENIZER')}, or {_without(config.eval, name)}",
        )

    manifests, problems = read_manifests(folders, not_there)
    for name, manifest in manifests.items():
        problems += own_problems(config, name, manifest)
    if problems:
        raise InputError(problems)


def _unfit(config: EvalConfig, name: str, own: Corpus, corpus: Corpus) -> Iterator[Problem]:
    key = f"eval.corpora.{name}={own.dir}"
    if own.tokenizer_hash != corpus.tokenizer_hash:
        yield Problem(
            f"{key} has another tokenizer than {corpus.dir}",
            "the same ids mean other text",
            f"{_build(str(corpus.tokenizer_path))}, or {_without(config, name)}",
        )
    held_out = held_out_tokens(own)
    if max(held_out.values(), default=0) < 2:
        yield Problem(
            f"{key} has no held-out token to predict",
            "a validation set is evaluated on what is held out of it",
            f"{_build(str(corpus.tokenizer_path))}, or {_without(config, name)}",
        )
    if sum(held_out.values()) > _MOST_TOKENS and config.corpora_sequences is None:
        yield Problem(
            f"{key} has {sum(held_out.values()):,} held-out tokens",
            f"all would be held in memory by every process; {_MOST_TOKENS:,} are the most",
            "eval.corpora_sequences=1000",
        )


def held_out_tokens(corpus: Corpus) -> dict[str, int]:
    """Return the held-out tokens of every domain that has any to be predicted."""
    tokens = {domain: corpus.tokens(domain, "val") for domain in corpus.domains}
    return {domain: number for domain, number in tokens.items() if number > 1}


def _build(tokenizer: str) -> str:
    """Return the command that builds a validation set."""
    return (
        f"loopcoder data data=files path=DOCUMENTS {typed(f'data.build.tokenizer={tokenizer}')} "
        "data.build.val_fraction=0.9"
    )


def _without(config: EvalConfig, name: str) -> str:
    """Return the override that leaves a set out."""
    rest: Mapping[str, str] = {k: v for k, v in config.corpora.items() if k != name}
    written = ",".join(f"{other}:{path}" for other, path in rest.items())
    return typed(f"eval.corpora={{{written}}}")
