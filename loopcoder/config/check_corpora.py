"""What is wrong with finished corpora that a config names, before any of them is opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from loopcoder.config.corpora import SEPARATOR, entries, joined_corpora, place_of
from loopcoder.config.data import CorpusConfig, DataConfig, StageConfig
from loopcoder.config.fields import as_override, typed
from loopcoder.config.schema import Config
from loopcoder.config.types import NAME
from loopcoder.errors import Problem
from loopcoder.storage.remote import is_url

_FIELDS = ("loss", "bpb", "weighting", "unigram_entropy")
"""What stands behind `val/` in the name of a field that is no set of one's own."""


def check_own_sets(config: Config) -> Iterator[Problem]:
    """Yield why the sets of `eval.corpora` cannot have the names, or be the folders, that they are
    given."""
    for name, path in config.eval.corpora.items():
        given = f"eval.corpora={{{name}:{path}}}"
        other = typed(f"eval.corpora={{own:{path}}}")
        if name in _FIELDS:
            yield Problem(given, f"val/{name} is a field of every run already", other)
        elif not re.fullmatch(NAME, name):
            why = f"the field is val/{name}/loss: letters, digits and . _ - + = , @ make a name"
            yield Problem(given, why, other)
        if not path.strip():
            why = "a validation set is the folder of a finished corpus"
            yield Problem(given, why, typed(f"eval.corpora={{{name}:FOLDER}}"))


def check_joined(config: Config) -> Iterator[Problem]:
    """Yield why the corpora of `data.corpora` cannot be read as one."""
    data = config.data
    if not joined_corpora(data):
        return
    if data.build.sources:
        why = "they are finished corpora, and this preset builds one of its sources"
        where = next(iter(entries(data))).rpartition(".")[0]
        yield Problem(f"data={data.name} with {where}", why, "data=corpus")
    if data.path is not None:
        why = "data.corpora names all that is read, and its entries have a path each"
        fix = f"path=null, or {{path:{data.path},weight:1}} as an entry of data.corpora"
        yield Problem(f"data.path={data.path} with data.corpora", why, fix)
    yield from _names(data)
    for index, (stage, resolved) in enumerate(
        zip(data.stages or [StageConfig()], config.stages, strict=True)
    ):
        where = f"data.stages.{index}." if data.stages else "data."
        corpora = data.corpora if stage.corpora is None else stage.corpora
        if not corpora:
            yield Problem(
                f"{where}corpora=[] in a run with corpora in other stages",
                "this stage has none to read",
                typed(f"{where}corpora=[{{path:FOLDER,weight:1}}]"),
            )
        else:
            yield from _shares(where, stage.mixture or data.mixture, corpora, resolved.mixture)


def _names(data: DataConfig) -> Iterator[Problem]:
    known = joined_corpora(data)
    seen: set[tuple[str, str]] = set()
    for entry, corpus in entries(data).items():
        name, place = corpus.called, place_of(corpus)
        in_list = entry.rpartition(".")[0], name
        if not re.fullmatch(NAME, name):
            why = "it is part of the names of its losses: letters, digits and . _ - + = , @"
            yield Problem(f"{entry} is called {name!r}", why, f"{entry}.name=NAME")
        elif in_list in seen and place == place_of(known[name]):
            why = "its sequences would be given once by each"
            fix = "leave one of them out, and give its weight to the other"
            yield Problem(f"{entry} is {name} again, {corpus.path}", why, fix)
        elif in_list in seen or place != place_of(known[name]):
            why = "a position, and a loss, goes by the name of its corpus"
            fact = f"{entry} and another corpus are called {name}"
            yield Problem(fact, why, f"{entry}.name=OTHER")
        seen.add(in_list)
        if is_url(corpus.path) and corpus.domains is None:
            why = "the mixture follows from the config alone, before anything is fetched"
            fact = f"{entry}.path={corpus.path} {entry}.domains=null"
            yield Problem(fact, why, f"{entry}.domains=[text,code], or those of them that it has")
        yield from check_url(f"{entry}.path", corpus.path, data)


def check_url(key: str, path: str, data: DataConfig) -> Iterator[Problem]:
    """Yield why the finished corpus at a URL, which the field `key` names, cannot be read."""
    if not is_url(path):
        return
    given = f"{key}={as_override(path)}"
    if data.reader == "megatron":
        why = "megatron-core's GPTDataset reads files of this machine"
        fix = f"data.reader=shuffled, or {key}=FOLDER of a local copy"
        yield Problem(f"{given} data.reader=megatron", why, fix)
    if data.verify == "background":
        why = "every byte would be read from the store by every node"
        fix = "data.verify=hash, which compares each block when it is read"
        yield Problem(f"{given} data.verify=background", why, fix)


def _shares(
    where: str,
    mixture: Mapping[str, float],
    corpora: Sequence[CorpusConfig],
    joined: Mapping[str, float],
) -> Iterator[Problem]:
    """Yield what of a mixture no corpus has, and which corpus would give nothing."""
    there = {
        f"{corpus.called}{SEPARATOR}{domain}": domain
        for corpus in corpora
        for domain in corpus.domains or []
    }
    if any(corpus.domains is None for corpus in corpora):
        return  # one of them cannot be read: opening it says why
    plain = dict.fromkeys(dict.fromkeys(there.values()), 1)
    for name in mixture:
        if name not in there and name not in plain:
            yield Problem(
                f"{where}mixture={as_override(mixture)}: no corpus of {where}corpora has {name!r}",
                f"they have {', '.join(there)}; what is no domain has a weight if it is a corpus "
                "of its own",
                f"{typed(f'{where}mixture={as_override(plain)}')}, or an entry "
                "{path:FOLDER,weight:1} in data.corpora for it",
            )
    weighs_names = any(SEPARATOR in name for name in mixture)
    for corpus in corpora if not weighs_names else ():
        if not any(name.rpartition(SEPARATOR)[0] == corpus.called for name in joined):
            yield Problem(
                f"{where}corpora has {corpus.called}, and {where}mixture={as_override(mixture)} "
                "none of its domains",
                f"it has {' and '.join(corpus.domains or [])}, so that nothing would be read of it",
                f"leave it out, or {typed(f'{where}mixture={as_override(plain)}')}",
            )
