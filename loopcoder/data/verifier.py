"""Compares training shards with the manifest while a run trains on them.

Where each block has a digest, the reader compares it before it is used (blocks.py). Shards without
digests, and all of them with `data.verify=background`, would otherwise cost a run hours before its
first step. They are hashed in a thread instead, by one process of every node, since nodes may have
copies of their own. What was used before its shard was compared is said; a damaged shard stops the
run before its next checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from loopcoder.config.data import DataConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, rebuild, unreadable
from loopcoder.errors import InputError, LoopcoderError
from loopcoder.storage.files import fault_of


def unverified(config: Config, corpus: Corpus) -> list[str]:
    """Return the training shards, by their prefixes, that nothing compares before they are used;
    domains take turns."""
    domains = {domain: None for stage in config.stages for domain in stage.mixture}
    by_domain = [
        [
            str(Path(prefix).relative_to(corpus.dir))
            for shard, prefix in enumerate(corpus.prefixes(domain, "train"))
            if _left_to_the_background(config.data, corpus, domain, shard)
        ]
        for domain in domains
    ]
    return [p for p in chain.from_iterable(zip_longest(*by_domain)) if p is not None]


def _left_to_the_background(data: DataConfig, corpus: Corpus, domain: str, shard: int) -> bool:
    if data.verify == "background":
        return True
    by_blocks = corpus.digests(domain, shard) is not None
    return data.verify == "hash" and data.reader == "packed" and not by_blocks


class Verifier:
    """A thread that compares shards with the manifest, one after the other."""

    def __init__(self, corpus: Corpus, prefixes: list[str], suffixes: tuple[str, ...]):
        """
        Args:
            prefixes: Of the shards.
            suffixes: Of their files that training reads.
        """
        self._corpus, self._prefixes, self._suffixes = corpus, prefixes, suffixes
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
        return self.done == len(self._prefixes)

    def wait(self) -> None:
        """Return when it has finished or found a fault."""
        self._thread.join()

    def close(self) -> None:
        """Compare no further shard; the one in work ends with the process."""
        self._stop.set()

    def _run(self) -> None:
        try:
            for prefix in self._prefixes:
                for name in self._files(prefix):
                    if self._stop.is_set():
                        return
                    self._compare(name)
                self.done += 1
        except LoopcoderError as error:
            self.fault = error
        except OSError as error:
            self.fault = unreadable(error.filename or self._corpus.dir, error)

    def _files(self, prefix: str) -> Iterator[str]:
        return (prefix + suffix for suffix in self._suffixes)

    def _compare(self, name: str) -> None:
        fact = fault_of(self._corpus.dir / name, self._corpus.manifest["files"][name])
        if fact is not None:
            raise InputError.of(
                fact,
                "it was cut off or changed after it was built; the newest checkpoint may have been "
                "trained on it",
                rebuild(self._corpus.dir),
            )
