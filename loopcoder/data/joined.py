"""Several corpora that are read as one (`data.corpora`).

A joined corpus has the domains NAME/DOMAIN of its members (config/corpora.py says how they are
named and weighed), and everything that reads a corpus by domain, a reader, held-out documents,
losses, positions, the ledger, reads it as any other. Nothing is copied: a domain is read from the
member that has it (`Corpus.part`), by that member's own rules.

The order of a domain's sequences follows from its member's fingerprint (`Corpus.seed`): what it is
read together with, under which name and from which folder, changes nothing of it. So a corpus that
a later data stage adds, or leaves out, moves no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopcoder.config.corpora import SEPARATOR, entries, joined_corpora
from loopcoder.config.data import CorpusConfig, DataConfig
from loopcoder.config.fields import typed
from loopcoder.data.corpus import Corpus, Verify, load_corpus
from loopcoder.data.labels import Label
from loopcoder.data.manifest import read_manifests
from loopcoder.data.mirror import folder_at
from loopcoder.data.places import TOKENIZER
from loopcoder.errors import InputError, Problem


@dataclass(frozen=True)
class JoinedCorpus(Corpus):
    """Corpora that are read as one; its folder is that of the first, whose tokenizer all have."""

    parts: Mapping[str, Corpus] = field(repr=False, kw_only=True)
    """By name, in the order in which a run names them."""

    @property
    def members(self) -> tuple[Corpus, ...]:
        return tuple(self.parts.values())

    @property
    def place(self) -> str:
        return ", ".join(member.place for member in self.members)

    def part(self, domain: str) -> tuple[Corpus, str]:
        name, _, own = domain.rpartition(SEPARATOR)
        return self.parts[name], own

    def seed(self, domain: str) -> tuple[int, ...]:
        member, own = self.part(domain)
        digest = hashlib.sha256(member.fingerprint.encode()).digest()
        return (*member.seed(own), int.from_bytes(digest[:8], "little"))

    def first_label(self, domain: str) -> int:
        name = domain.rpartition(SEPARATOR)[0]
        before = list(self.parts).index(name)
        return sum(len(member.labels) for member in self.members[:before])

    def label_tokens(self, split: str) -> NDArray[np.int64]:
        return np.concatenate([member.label_tokens(split) for member in self.members])

    @property
    def has_digests(self) -> bool:
        return all(member.has_digests for member in self.members)


def joined_fingerprint(parts: Mapping[str, Corpus]) -> str:
    """Return the hash of everything that determines the content of some corpora, in any order."""
    members = sorted(f"{name} {member.fingerprint}" for name, member in parts.items())
    return hashlib.sha256("\n".join(members).encode()).hexdigest()[:16]


def trained_part(corpus: Corpus, before: DataConfig) -> str:
    """Return the fingerprint of those corpora that a run has read so far; later stages may add
    more.

    Args:
        corpus: What it reads now.
        before: Its data until then.
    """
    names = joined_corpora(before)
    if not isinstance(corpus, JoinedCorpus) or not names.keys() <= corpus.parts.keys():
        return corpus.fingerprint
    return joined_fingerprint({name: corpus.parts[name] for name in names})


def open_joined(data: DataConfig, verify: Verify) -> JoinedCorpus:
    """Open the corpora of all data stages as one.

    Args:
        verify: What of each is compared with its manifest.

    Raises:
        InputError: with everything that is missing, damaged, or in other tokens.
    """
    check_joined_folders(data)
    opened: dict[str, Corpus] = {}
    problems: list[Problem] = []
    for name, corpus in joined_corpora(data).items():
        try:
            opened[name] = load_corpus(folder_at(corpus.path, data), verify)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return _join(opened)


def check_joined_folders(data: DataConfig) -> dict[str, dict[str, Any]]:
    """Return the manifests of the corpora of `data.corpora`, by name; nothing else is read.

    Raises:
        InputError: with every corpus that is not there, lacks a domain that is to be read of it, or
            has another tokenizer than the first.
    """
    corpora = joined_corpora(data)
    keys = {corpus.called: key for key, corpus in reversed(entries(data).items())}
    folders = {name: folder_at(corpus.path, data) for name, corpus in corpora.items()}

    def not_there(name: str) -> Problem:
        key = keys[name]
        return Problem(
            f"{key}.path={corpora[name].path}: there is no finished corpus",
            "each of them is a folder that `loopcoder data` has built and printed",
            f"{key}.path=FOLDER {key}.name={name} where it is now, or leave it out",
        )

    manifests, problems = read_manifests(folders, not_there)
    problems += [*_other_tokens(corpora, manifests, folders), *_copies(corpora, manifests)]
    for name, manifest in manifests.items():
        there = list(manifest["domains"])
        if missing := [d for d in corpora[name].domains or [] if d not in there]:
            problems.append(
                Problem(
                    f"corpus {corpora[name].path} has {' and '.join(there)}, not "
                    f"{' or '.join(missing)}",
                    "domains names those that are read of it",
                    f"{keys[name]}.domains=[{','.join(there)}], or leave domains out",
                )
            )
    if problems:
        raise InputError(problems)
    return manifests


def _other_tokens(
    corpora: Mapping[str, CorpusConfig],
    manifests: Mapping[str, Mapping[str, Any]],
    folders: Mapping[str, Path],
) -> Iterator[Problem]:
    hashes = {n: m.get("tokenizer", {}).get("xxh3_128") for n, m in manifests.items()}
    first = next(iter(hashes), "")
    for name, found in hashes.items():
        if found != hashes[first]:
            tokenizer = folders[first] / TOKENIZER
            yield Problem(
                f"{corpora[name].path} has another tokenizer than {corpora[first].path}",
                "the same ids mean other text",
                "loopcoder data data=files path=DOCUMENTS "
                f"{typed(f'data.build.tokenizer={tokenizer}')} builds it in the same tokens",
            )


def _copies(
    corpora: Mapping[str, CorpusConfig], manifests: Mapping[str, Mapping[str, Any]]
) -> Iterator[Problem]:
    known: dict[str, str] = {}
    for name, manifest in manifests.items():
        other = known.setdefault(manifest["fingerprint"], name)
        if other != name:
            yield Problem(
                f"{corpora[name].path} and {corpora[other].path} are the same corpus",
                "its sequences would be given once by each",
                f"leave one of them out, and give the weight of both to {other}",
            )


def _join(opened: Mapping[str, Corpus]) -> JoinedCorpus:
    first = next(iter(opened.values()))
    named = [(name, member) for name, member in opened.items()]
    labels = [
        Label(
            f"{name}{SEPARATOR}{label.domain}",
            label.language,
            None if label.source is None else f"{name}{SEPARATOR}{label.source}",
        )
        for name, member in named
        for label in member.labels
    ]
    domains = {
        f"{name}{SEPARATOR}{domain}": stats
        for name, member in named
        for domain, stats in member.manifest["domains"].items()
    }
    manifest: dict[str, Any] = {
        "domains": domains,
        "sources": [s for _, member in named for s in member.manifest.get("sources", [])],
    }
    return JoinedCorpus(
        dir=first.dir,
        domains=tuple(domains),
        tokenizer_path=first.tokenizer_path,
        tokenizer_hash=first.tokenizer_hash,
        vocab_size=first.vocab_size,
        eod_id=first.eod_id,
        fingerprint=joined_fingerprint(opened),
        labels=tuple(labels),
        manifest=manifest,
        parts=dict(opened),
    )
