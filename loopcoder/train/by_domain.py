"""The fields of losses by domain: of one corpus, or of several that are read as one.

With several (`data.corpora`), `loss/<domain>` is over all of them, as with one, and
`loss/corpus/<name>/<domain>` over one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from loopcoder.config.corpora import SEPARATOR, plain_domain


def field_of(domain: str) -> str:
    """Return what a domain of a corpus is called behind `loss/`."""
    return f"corpus/{domain}" if SEPARATOR in domain else domain


def loss_fields(
    domains: Sequence[str], losses: Sequence[float], tokens: Sequence[float]
) -> dict[str, float]:
    """Return the mean training loss by domain, where there are tokens of it.

    Args:
        domains: Those of the corpus.
        losses: Sum over the tokens of each.
        tokens: How many there are of each.
    """
    sums: dict[str, tuple[float, float]] = {}
    for domain, loss, number in zip(domains, losses, tokens, strict=True):
        for field in dict.fromkeys((plain_domain(domain), field_of(domain))):
            had = sums.get(field, (0.0, 0.0))
            sums[field] = (had[0] + loss, had[1] + number)
    return {f"loss/{field}": loss / n for field, (loss, n) in sums.items() if n > 0}


def over_corpora(
    sums: Mapping[str, torch.Tensor], mixture: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Return for each domain what a mean token of it has, over the corpora that give it.

    Args:
        sums: By domain of the corpus, [n]; the number of tokens stands before the last.
        mixture: Weight of each in the data stage; a domain that it leaves out altogether is
            weighed by its tokens.

    Returns:
        {} where the corpus is a single one.
    """
    found: dict[str, torch.Tensor] = {}
    weighed = {plain_domain(name) for name in mixture if name in sums}
    for name, of_corpus in sums.items():
        domain, tokens = plain_domain(name), float(of_corpus[-2])
        weight = mixture.get(name, 0.0) if domain in weighed else tokens
        if SEPARATOR in name and tokens and weight:
            share = of_corpus * (weight / tokens)
            found[domain] = found[domain] + share if domain in found else share
    return found
