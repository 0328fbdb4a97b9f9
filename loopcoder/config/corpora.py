"""Several corpora in one run (`data.corpora`): what their domains are called, how they are weighed.

Names. A domain of a corpus is NAME/DOMAIN, such as `python/code`, where NAME is that of its entry:
`name`, or the name of its folder. That holds whatever it is read together with, so that neither
another corpus nor another order of the entries renames it; positions, ledger and losses go by it.

Weights. `data.mixture` has the shares of the domains, as with one corpus. Within a domain those
corpora that have it share it by their weights: two corpora of code with the weights 2 and 1 and one
of text give, with the mixture text 1 : code 1, 2/6, 1/6 and 3/6 of every batch. A mixture may also
weigh NAME/DOMAIN itself; that one then has this weight and no part in its domain's.

So the mixture of a data stage follows from the config alone, once `domains` is settled (`settled`),
and is the mixture of NAME/DOMAINs that everything else sees: batches, positions, validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path

from loopcoder.config.data import CorpusConfig, DataConfig
from loopcoder.config.renamed import translate_manifest
from loopcoder.storage.remote import is_url

SEPARATOR = "/"
"""Between the name of a corpus and its domain; neither has one."""
_MANIFEST = "manifest.json"


def joined_corpora(data: DataConfig) -> dict[str, CorpusConfig]:
    """Return every corpus that some data stage reads, by name; {}: there is one, at `data.path`."""
    found: dict[str, CorpusConfig] = {}
    for corpus in entries(data).values():
        found.setdefault(corpus.called, corpus)
    return found


def entries(data: DataConfig) -> dict[str, CorpusConfig]:
    """Return every entry of `data.corpora`, then those of the stages, by its dotted name."""
    lists = {"data.corpora": data.corpora} | {
        f"data.stages.{index}.corpora": stage.corpora or []
        for index, stage in enumerate(data.stages)
    }
    return {f"{key}.{i}": corpus for key, of in lists.items() for i, corpus in enumerate(of)}


def place_of(corpus: CorpusConfig) -> str:
    """Return where a corpus is, in one way of writing it."""
    if is_url(corpus.path):
        return corpus.path.rstrip("/")
    return str(Path(corpus.path).expanduser().resolve())


def joined_mixture(
    mixture: Mapping[str, float], corpora: Iterable[CorpusConfig]
) -> dict[str, float]:
    """Return the weight of each NAME/DOMAIN, in lowest terms.

    Args:
        mixture: Of domains, NAME/DOMAINs or both.
        corpora: Those of the data stage. Before the domains of all are known there are no weights
            but those of the mixture.
    """
    corpora = list(corpora)
    if any(corpus.domains is None for corpus in corpora):
        return dict(mixture)
    shares: dict[str, Fraction] = {}
    for domain, weight in mixture.items():
        if SEPARATOR in domain:
            shares[domain] = Fraction(str(weight))
            continue
        names = {
            f"{corpus.called}{SEPARATOR}{domain}": Fraction(str(corpus.weight))
            for corpus in corpora
            if domain in (corpus.domains or [])
        }
        names = {name: share for name, share in names.items() if name not in mixture}
        total = sum(names.values()) or Fraction(1)
        shares |= {n: Fraction(str(weight)) * share / total for n, share in names.items()}
    whole = lcm(*(share.denominator for share in shares.values()))
    divisor = gcd(*(int(share * whole) for share in shares.values())) or 1
    return {name: float(int(share * whole) // divisor) for name, share in shares.items()}


def plain_domain(domain: str) -> str:
    """Return the domain without the name of a corpus."""
    return domain.rpartition(SEPARATOR)[2]


def settled(data: DataConfig) -> DataConfig:
    """Fill in the domains of every corpus from its manifest; where that cannot be read, opening it
    says so."""
    if not joined_corpora(data):
        return data
    return replace(
        data,
        corpora=[_settled(corpus) for corpus in data.corpora],
        stages=[
            replace(stage, corpora=stage.corpora and [_settled(c) for c in stage.corpora])
            for stage in data.stages
        ],
    )


def _settled(corpus: CorpusConfig) -> CorpusConfig:
    if corpus.domains is not None:
        return corpus
    try:
        path = Path(corpus.path).expanduser() / _MANIFEST
        manifest = translate_manifest(json.loads(path.read_text(encoding="utf-8")))
        return replace(corpus, domains=list(manifest["domains"]))
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        return corpus
