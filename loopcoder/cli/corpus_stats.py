"""What a finished corpus holds, and how often a run would go through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopcoder.backends import detect
from loopcoder.cli.shares import NO_LABELS, formatted, in_one, shares, summed
from loopcoder.config.check_data import check_stages
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.data.corpus import Corpus
from loopcoder.data.manifest import check_domains
from loopcoder.data.sampler import Position, enter_stage, position_at
from loopcoder.errors import InputError, counted
from loopcoder.storage.files import in_words
from loopcoder.storage.signals import ended_at_once

_NUMBERS = ("documents", "sequences", "shards", "held_out_tokens")


@dataclass(frozen=True)
class Epochs:
    """How often a run would go through each domain."""

    steps: int
    tokens: int
    """Of the whole run."""
    domains: dict[str, float]


def epochs_of(corpus: Corpus, overrides: Sequence[str], config_dir: Path | None) -> Epochs | None:
    """Return how often a run with these overrides would go through a corpus; None: there are none.

    Raises:
        InputError: it could not be trained on this corpus.
    """
    if not overrides and config_dir is None:
        return None
    given = ["data=corpus", f"path={corpus.place}", *overrides]
    config = resolve(compose(given, config_dir), detect())
    if problems := list(check_stages(config)):
        raise InputError(problems)
    wanted = {domain: None for stage in config.stages for domain in stage.mixture}
    check_domains(corpus.dir, corpus.manifest, list(wanted))
    with ended_at_once():
        from loopcoder.data.blend import Blend, blend_at
    for stage in config.stages:
        Blend.check(corpus, stage)
    begin = enter_stage(config.stages, Position())
    end = position_at(config, begin, config.train.max_steps)
    return Epochs(end.step, end.tokens, blend_at(config, corpus, end).epochs(end.sample))


class Contents:
    """Describes a corpus."""

    def __init__(self, corpus: Corpus, epochs: Epochs | None):
        self.corpus, self.epochs = corpus, epochs

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON can say it."""
        corpus, manifest = self.corpus, self.corpus.manifest
        found: dict[str, Any] = {
            "corpus": corpus.place,
            "fingerprint": corpus.fingerprint,
            "created": manifest.get("created"),
            "seq_length": manifest.get("seq_length"),
            "vocab_size": corpus.vocab_size,
            "bytes": self._bytes(),
            "domains": {domain: self._domain(domain) for domain in corpus.domains},
            "languages": dict(self._languages()),
            "sources": dict(self._sources()),
        }
        if corpus.has_labels:
            labels = zip(corpus.labels, corpus.label_tokens("train").tolist(), strict=True)
            found["labels"] = [{**label._asdict(), "tokens": count} for label, count in labels]
        if self.epochs is not None:
            told = {"steps": self.epochs.steps, "tokens": self.epochs.tokens}
            found["epochs"] = {**told, "domains": self.epochs.domains}
        return found

    def as_text(self) -> str:
        """Return what a person reads."""
        found, epochs = self.as_json(), self.epochs
        columns = [
            (name.replace("_", " "), self._column(found["domains"], name)) for name in _NUMBERS
        ]
        if epochs is not None:
            columns.append(("epochs", formatted(epochs.domains, "{:.3g}".format)))
        tokens = {domain: row["tokens"] for domain, row in found["domains"].items()}
        parts = [shares("domain", tokens, *columns)]
        parts += [
            shares(kind, counts)
            for kind, counts in (("language", found["languages"]), ("source", found["sources"]))
            if counts
        ]
        built = f"{counted(found['seq_length'] or 0, 'token')} per sequence, "
        built += f"{counted(self.corpus.vocab_size, 'token id')}, {in_words(found['bytes'])}"
        lines = [f"{self.corpus.place}, built {found['created']}: {built}\n", in_one(parts)]
        if not self.corpus.has_labels:
            lines.append(f"\n{NO_LABELS}: a run counts its tokens by domain only")
        if epochs is not None:
            lines.append(
                f"\nepochs: after {counted(epochs.steps, 'step')}, "
                f"{counted(epochs.tokens, 'token')}"
            )
        return "\n".join(lines)

    def _column(self, domains: Mapping[str, Mapping[str, int]], name: str) -> dict[str, str]:
        return {domain: f"{row[name]:,}" for domain, row in domains.items()}

    def _bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.corpus.manifest["files"].values())

    def _domain(self, domain: str) -> dict[str, int]:
        corpus = self.corpus
        length = int(corpus.manifest.get("seq_length") or 0)
        shards = corpus.shard_tokens(domain, "train")
        return {
            "tokens": corpus.tokens(domain, "train"),
            "documents": corpus.documents(domain, "train"),
            "sequences": sum((tokens - 1) // length for tokens in shards) if length else 0,
            "shards": len(shards),
            "held_out_tokens": corpus.tokens(domain, "val"),
            "held_out_documents": corpus.documents(domain, "val"),
        }

    def _languages(self) -> Iterator[tuple[str, int]]:
        """Yield the languages with their training tokens, most first."""
        found: Counter[str] = Counter()
        for domain in self.corpus.domains:
            for name, stats in self.corpus.languages(domain, "train").items():
                found[name] += int(stats["tokens"])
        yield from found.most_common()

    def _sources(self) -> Iterator[tuple[str, int]]:
        """Yield the sources with their training tokens, most first."""
        if self.corpus.has_labels:
            tokens = self.corpus.label_tokens("train").tolist()
            counts = zip(self.corpus.labels, tokens, strict=True)
            yield from summed(counts, "source").most_common()
