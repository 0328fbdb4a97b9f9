"""What a run may be like that reads corpora which are packed for one sequence length (mask.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from loopcoder.config.corpora import SEPARATOR
from loopcoder.config.fields import as_override
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.joined import JoinedCorpus
from loopcoder.data.places import CHAT_TEMPLATE
from loopcoder.errors import InputError, Problem, counted

_CUT = "its sequences are whole conversations, and another length would cut them"


def check_packed(config: Config, corpus: Corpus) -> None:
    """Raise InputError with everything for which a run cannot read a corpus as it is packed."""
    if not corpus.is_packed:
        return
    named = corpus.parts if isinstance(corpus, JoinedCorpus) else {"": corpus}
    manifests = {name: member.manifest for name, member in named.items()}
    if problems := list(packed_problems(config, manifests)):
        raise InputError(problems)


def packed_problems(
    config: Config, manifests: Mapping[str, Mapping[str, Any]]
) -> Iterator[Problem]:
    """Yield why a run cannot read corpora as they are packed.

    Args:
        manifests: Of sound corpora, by their names in `data.corpora`; of a single one by "".
    """
    packed = {n: m["packed"]["seq_length"] for n, m in manifests.items() if "packed" in m}
    data = config.data
    if not packed:
        return
    for index, stage in enumerate(config.stages):
        key = f"data.stages.{index}.seq_length" if data.stages else "data.seq_length"
        for name in dict.fromkeys(domain.rpartition(SEPARATOR)[0] for domain in stage.mixture):
            length = packed.get(name, stage.seq_length)
            if length != stage.seq_length:
                yield _other_length(key, stage.seq_length, name, length)
    if data.reader == "megatron":
        yield Problem(
            "data.reader=megatron with a corpus that has a mask",
            "megatron-core's GPTDataset does not read it, and cuts conversations at random",
            "data.reader=shuffled",
        )
    for field in ("isolate_documents", "mask_document_start"):
        if not getattr(data, field):
            yield Problem(
                f"data.{field}=false with a corpus that is packed for chat",
                "each conversation of a sequence is trained as if it stood alone",
                f"data.{field}=true",
            )
    yield from _further_lengths(config, packed.values())
    yield from _other_templates(manifests)


def refuse_length(corpus: Corpus, domain: str, seq_length: int) -> None:
    """Raise InputError unless a domain can be read in sequences of a length."""
    packed = corpus.packed_for(domain)
    if packed is not None and packed != seq_length:
        raise InputError([_other_length("data.seq_length", seq_length, str(corpus.dir), packed)])


def refuse_further_lengths(config: Config, corpus: Corpus, domains: Iterable[str]) -> None:
    """Raise InputError unless domains can be evaluated at all of `eval.lengths`."""
    packed = [length for d in domains if (length := corpus.packed_for(d)) is not None]
    if problems := list(_further_lengths(config, packed)):
        raise InputError(problems)


def own_problems(config: Config, name: str, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield why a set of `eval.corpora` cannot be evaluated as it is packed.

    Args:
        name: Of the set.
        manifest: Of a sound corpus.
    """
    if "packed" not in manifest:
        return
    length, parallel = manifest["packed"]["seq_length"], config.parallel
    fact = f"eval.corpora.{name} is packed for {counted(length, 'token')}"
    most = config.model.max_position_embeddings
    build = "build it again with data.seq_length="
    if length > most:
        why = f"{_CUT}; model.max_position_embeddings={most} has no place for one"
        yield Problem(fact, why, f"{build}{most} or less")
    if parallel.sp and length % parallel.tp:
        why = f"{_CUT}; parallel.sp=true deals one out in {parallel.tp} equal parts"
        yield Problem(fact, why, f"{build}{length - length % parallel.tp}, or parallel.sp=false")
    if others := [n for n in config.eval.lengths or [] if n != length]:
        given = as_override(config.eval.lengths)
        yield Problem(f"{fact}, eval.lengths={given} has {others[0]}", _CUT, "eval.lengths=null")


def _further_lengths(config: Config, packed: Collection[int]) -> Iterator[Problem]:
    """Yield that what is packed for some lengths is to be evaluated at others."""
    lengths = config.eval.lengths or []
    for length in lengths:
        if other := next((n for n in packed if n != length), None):
            kept = [n for n in lengths if set(packed) == {n}]
            yield Problem(
                f"eval.lengths={as_override(lengths)}: a corpus is packed for "
                f"{counted(other, 'token')}, not {length:,}",
                _CUT,
                f"eval.lengths={as_override(kept or None)}",
            )
            return


def _other_length(key: str, asked: int, name: str, packed: int) -> Problem:
    return Problem(
        f"{key}={asked}, and the corpus{f' {name}' if name else ''} is packed for "
        f"{counted(packed, 'token')}",
        _CUT,
        f"{key}={packed}, or the corpus built again with data.seq_length={asked}",
    )


def _other_templates(manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    hashes = {
        name: manifest["files"][CHAT_TEMPLATE]["xxh3_128"]
        for name, manifest in manifests.items()
        if CHAT_TEMPLATE in manifest["files"]
    }
    first = next(iter(hashes), "")
    for name, found in hashes.items():
        if found != hashes[first]:
            yield Problem(
                f"the corpora {first} and {name} were rendered with other chat templates",
                "a model is asked in one, which its checkpoints and exports say",
                f"{name} built again with data.build.chat.template=FILE, the {CHAT_TEMPLATE} of "
                f"{first}",
            )
