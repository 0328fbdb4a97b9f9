"""Compares training shards with the manifest while a run trains on them.

Where each block has a digest, the reader compares it before it is used (blocks.py). Shards without
digests, and all of them with `data.verify=background`, would otherwise cost a run hours before its
first step. They are hashed in a thread instead, by one process of every node, since nodes may have
copies of their own. What was used before its shard was compared is said; a damaged shard stops the
run before its next checkpoint.
"""

from __future__ import annotations

import threading
from itertools import chain, zip_longest
from pathlib import Path

from loopcoder.config.data import DataConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.places import rebuild, unreadable
from loopcoder.errors import InputError, LoopcoderError
from loopcoder.storage.files import fault_of

Shard = tuple[Corpus, str]
"""Its corpus, and its prefix there."""


def unverified(config: Config, corpus: Corpus) -> list[Shard]:
    """Return the training shards that nothing compares before they are used; domains take turns."""
    domains = {domain: None for stage in config.stages for domain in stage.mixture}
    by_domain = [
        [
            _in_its_corpus(corpus, domain, prefix)
            for shard, prefix in enumerate(corpus.prefixes(domain, "train"))
            if _left_to_the_background(config.data, corpus, domain, shard)
        ]
        for domain in domains
    ]
    return [shard for shard in chain.from_iterable(zip_longest(*by_domain)) if shard is not None]


def _in_its_corpus(corpus: Corpus, domain: str, prefix: str) -> Shard:
    member = corpus.part(domain)[0]
    return member, str(Path(prefix).relative_to(member.dir))


def _left_to_the_background(data: DataConfig, corpus: Corpus, domain: str, shard: int) -> bool:
    if data.verify == "background":
        return True
    by_blocks = corpus.digests(domain, shard) is not None
    return data.verify == "hash" and data.reader != "megatron" and not by_blocks


class Verifier:
    """A thread that compares shards with the manifest, one after the other."""

    def __init__(self, shards: list[Shard], suffixes: tuple[str, ...]):
        """
        Args:
            suffixes: Of their files that training reads, where they have them.
        """
        self._shards, self._suffixes = shards, suffixes
        self._stop = threading.Event()
        self.fault: LoopcoderError | None = None
        """What is wrong with a shard."""
        self.done = 0
        """Shards that were compared and are whole."""
        self._thread = threading.Thread(target=self._run, name="loopcoder-verifier", daemon=True)
        self._thread.start()

    @property
    def is_finished(self) -> bool:
        """Whether all shards are whole."""
        return self.done == len(self._shards)

    def wait(self) -> None:
        """Return when it has finished or found a fault."""
        self._thread.join()

    def close(self) -> None:
        """Compare no further shard; the one in work ends with the process."""
        self._stop.set()

    def _run(self) -> None:
        try:
            for corpus, prefix in self._shards:
                for name in (prefix + suffix for suffix in self._suffixes):
                    if self._stop.is_set():
                        return
                    if name in corpus.manifest["files"]:
                        _compare(corpus, name)
                self.done += 1
        except LoopcoderError as error:
            self.fault = error
        except OSError as error:
            self.fault = unreadable(error.filename or "a shard", error)


def _compare(corpus: Corpus, name: str) -> None:
    fact = fault_of(corpus.dir / name, corpus.manifest["files"][name])
    if fact is not None:
        raise InputError.of(
            fact,
            "it was cut off or changed after it was built; the newest checkpoint may have been "
            "trained on it",
            rebuild(corpus.dir),
        )
