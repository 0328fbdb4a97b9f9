"""What the continuations of a run's evaluations begin with (`eval.samples`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import read_document
from loopcoder.data.mask import MASK, read_mask
from loopcoder.data.places import rebuild
from loopcoder.errors import InputError, counted
from loopcoder.storage.files import parsing


@dataclass(frozen=True)
class Prompt:
    """Tokens that are continued."""

    ids: tuple[int, ...]
    domain: str | None = None
    """Of the held-out document that they are of; None: the text was given."""
    rest: tuple[int, ...] = ()
    """How that document goes on, up to the end of an answer, for as many tokens as a continuation
    has."""


def prompts_of(config: Config, corpus: Corpus, tokenizer: Any) -> list[Prompt]:
    """Return what is continued: `eval.samples` prompts, or as many as there are held-out documents.

    They depend on the corpus and the run's seed alone, and more of them begin with the same ones.

    Raises:
        InputError: a given text is too long, or has no tokens; a mask is damaged.
    """
    if config.eval.sample_prompts is None:
        return list(islice(_beginnings(config, corpus), config.eval.samples))
    given = [_given(config, tokenizer, text) for text in config.eval.sample_prompts]
    return [given[index % len(given)] for index in range(config.eval.samples)]


def _given(config: Config, tokenizer: Any, text: str) -> Prompt:
    ids = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    most, new = config.model.max_position_embeddings, config.eval.sample_tokens
    fact = f"{text!r:.60} of eval.sample_prompts has {counted(len(ids), 'token')}"
    if not ids:
        why = "the tokenizer makes nothing of it, and a continuation needs a beginning"
        raise InputError.of(fact, why, "eval.sample_prompts with another text")
    if len(ids) + new > most:
        raise InputError.of(
            fact,
            f"with eval.sample_tokens={new} they are more than the model's {most:,} positions",
            "a shorter text, or a smaller eval.sample_tokens",
        )
    return Prompt(ids)


def _beginnings(config: Config, corpus: Corpus) -> Iterator[Prompt]:
    """Yield beginnings of held-out documents of the domains that are trained, each in turn; of a
    conversation all that is before its first answer."""
    trained = {domain for stage in config.stages for domain in stage.mixture}
    domains = [domain for domain in corpus.domains if domain in trained]
    for one_of_each in zip_longest(*(_of_domain(config, corpus, d) for d in domains)):
        yield from (prompt for prompt in one_of_each if prompt is not None)


def _of_domain(config: Config, corpus: Corpus, domain: str) -> Iterator[Prompt]:
    begin, new = config.eval.sample_prompt_tokens, config.eval.sample_tokens
    member, own = corpus.part(domain)
    (prefix,) = member.prefixes(own, "val")
    generator = np.random.default_rng([config.seed, *corpus.seed(domain)])
    for document in generator.permutation(member.documents(own, "val")):
        size, packed = member.vocab_size, member.packed_for(own)
        most = packed or max(2 * begin, begin + new)
        ids = read_document(Path(prefix), int(document), vocab_size=size, most=most).tolist()
        end = min(begin, max(1, len(ids) // 2))
        if packed is not None:
            why = "it says where an answer begins and ends"
            with parsing(Path(prefix + MASK), why, rebuild(member.dir)):
                trained = read_mask(Path(prefix), int(document), most=most)
            end = int(trained.argmax())
            if end == 0 or end + new > config.model.max_position_embeddings:
                continue  # the empty document behind the sequences, or an answer without room
            ids = ids[: end + int(trained[end:].argmin())]
        yield Prompt(tuple(ids[:end]), domain, tuple(ids[end : end + new]))
