"""`loopcoder evaluate`: the validation loss of a checkpoint, on any data and with any loops."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.backends import refuse_missing
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.places import all_at, find_at
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.pinned import gone, where_is
from loopcoder.cli.arguments import parse_arguments, say_aside
from loopcoder.config.check_corpora import check_joined, check_own_sets
from loopcoder.config.check_data import check_lengths, check_stages
from loopcoder.config.compose import changed, compose, load_config
from loopcoder.config.corpora import joined_corpora, settled
from loopcoder.config.data import DataConfig
from loopcoder.config.identity import corpus_fields
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, Verify, at_once, in_use, load_corpus
from loopcoder.data.manifest import check_domains
from loopcoder.data.own_sets import check_own_folders, own_folders
from loopcoder.data.places import TOKENIZER
from loopcoder.errors import EXIT_DONE, InputError, counted
from loopcoder.metrics.words import OWN_SET
from loopcoder.storage.remote import is_stored
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

if TYPE_CHECKING:
    from loopcoder.loaded import LoadedRun

HELP = """\
Evaluate a checkpoint: its loss on held-out documents, by domain and loop, in nats per token and
bits per byte. One process; no launcher is needed.

usage: loopcoder evaluate checkpoint=DIR|URL [--all] [--json] [key=value ...]

  loopcoder evaluate checkpoint=runs/plt_tiny-r2-cc8f20c8a9      the newest checkpoint of a run
  loopcoder evaluate checkpoint=DIR/checkpoints/step_00001000    one of those that are kept
  loopcoder evaluate checkpoint=DIR --all                        every one that is kept
  loopcoder evaluate checkpoint=s3://BUCKET/RUN                  from checkpoint.store of a run
  loopcoder evaluate checkpoint=DIR model.num_loops=3            with another number of loops
  loopcoder evaluate checkpoint=DIR data=files path=~/src        on other data, with its tokenizer
  loopcoder evaluate checkpoint=DIR eval.sequences_per_domain=512

Everything else is as the run had it. Fields that may be given: model.num_loops, precision,
train.micro_batch_size, eval.*, data.*. Without data=, path= or data.build.sources the data are the
run's, and only the fields that are given differ."""

_AT_LENGTH = r"val/loss/len\d+"
"""Field of an evaluation at a length of `eval.lengths`."""
_BY_LABEL = re.compile(r"val/loss/(?:language|source)/")
"""Field of a language or a source."""
_CACHE_DIR = "data.build.cache_dir"
"""Where corpora are, whichever it is."""
_OTHER_DATA = ("data", "path", "data.path")
"""Keys that name other documents than the run's, as those below `_SOURCES` do."""
_SOURCES = "data.build.sources"
_SINGLE = ("model.num_loops", "precision", "train.micro_batch_size")


def run(argv: list[str]) -> int:
    """Evaluate, and print a table or, with --json, one object for each checkpoint."""
    rest = [a for a in argv if a not in ("--all", "--json")]
    arguments = parse_arguments(rest, takes=["--all", "--json"])
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    interrupted_by_signals("before the end of the evaluation; nothing is lost, start it again")
    given = [o for o in arguments.overrides if o.startswith("checkpoint=")]
    others = [o for o in arguments.overrides if not o.startswith("checkpoint=")]
    if len(given) != 1 or given[0] == "checkpoint=":
        path = next((o for o in others if "=" not in o), "DIR")
        raise InputError.of(
            "loopcoder evaluate " + " ".join(argv),
            "one checkpoint is named, by checkpoint=",
            f"loopcoder evaluate checkpoint={path}",
        )
    refuse_missing()
    single = single_data(others)
    asked = compose([o for o in others if o not in single], arguments.config_dir)
    cache = Path(asked.data.build.cache_dir).expanduser()
    found = checkpoints(given[0].partition("=")[2], "--all" in argv, cache)
    trained = load_config(found[-1].path / layout.CONFIG)
    config = as_asked(trained, asked, others)
    config = replace(config, data=settled(config.data))
    wrong = []
    if config.data != trained.data:
        wrong += [*check_stages(config), *check_joined(config)]
    if config.eval != trained.eval:
        wrong += [*check_lengths(config), *check_own_sets(config)]
    if wrong:
        raise InputError(wrong)
    check_own_folders(config)
    verify = at_once(config.data) if "data.verify" in map(_key, others) else "size"
    if joined_corpora(config.data):
        corpus = corpus_of(found[-1], config.data, cache, verify)
    elif config.data == trained.data or (single and _same_build(config.data, trained.data)):
        corpus = corpus_of_the_run(found[-1], trained, cache, verify)
        if config.data != trained.data:
            domains = {domain for stage in config.stages for domain in stage.mixture}
            check_domains(corpus.dir, corpus.manifest, sorted(domains))
    else:
        corpus = corpus_of(found[-1], config.data, cache, verify)
    with ExitStack() as held:
        for folder in (*(m.dir for m in corpus.members), *own_folders(config).values()):
            held.enter_context(in_use(folder))
        results = evaluate(found, config, corpus)
    if "--json" in argv:
        for result in results:
            print(json.dumps(result))
    else:
        print(table(results))
    return EXIT_DONE


def checkpoints(place: str, every: bool, cache: Path) -> list[Checkpoint]:
    """Return the checkpoint that a path or a URL names, or every one of its folder.

    Args:
        cache: Where what has a URL is fetched to.
    """
    if every and is_stored(place):
        return all_at(place, cache)
    newest = find_at(place, cache)
    if not every or newest.path == Path(place).expanduser():
        return [newest]
    return layout.complete(newest.path.parent)


def single_data(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that set fields of the run's data; [] where other data are named, whose
    fields they set."""
    keys = [_key(override) for override in overrides]
    if any(key in _OTHER_DATA or key.startswith(_SOURCES) for key in keys):
        return []
    return [
        override
        for override, key in zip(overrides, keys, strict=True)
        if key.startswith("data.") and key != _CACHE_DIR
    ]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def as_asked(trained: Config, asked: Config, overrides: Sequence[str]) -> Config:
    """Return the config of a run with what the overrides change of it.

    Args:
        trained: The config of the run.
        asked: The composed overrides, without those of `single_data`.
        overrides: All of them.

    Raises:
        InputError: an override that would change nothing here, or a wrong one of `single_data`.
    """
    single = single_data(overrides)
    config = changed(trained, single) if single else trained
    for override in overrides:
        key = _key(override)
        section, _, field = key.partition(".")
        if key == _CACHE_DIR or override in single:
            continue
        if section in ("data", "path"):
            config = replace(config, data=asked.data)
        elif section == "eval" and field:
            config = changed(config, [override])
        elif key == "model.num_loops":
            config = replace(config, model=replace(config.model, num_loops=asked.model.num_loops))
        elif key == "precision":
            config = replace(config, precision=asked.precision)
        elif key == "train.micro_batch_size":
            size = asked.train.micro_batch_size
            config = replace(config, train=replace(config.train, micro_batch_size=size))
        else:
            raise InputError.of(
                override,
                "a checkpoint is evaluated as its run was trained, but for "
                + ", ".join([*_SINGLE, "eval.*", "data.*"]),
                "leave it out",
            )
    return config


def _same_build(data: DataConfig, trained: DataConfig) -> bool:
    """Whether a corpus of the run's data would be the run's; a finished one is opened as it is."""
    rebuilt = replace(trained, build=data.build)
    return not data.build.sources or corpus_fields(rebuilt) == corpus_fields(trained)


def corpus_of_the_run(
    checkpoint: Checkpoint, trained: Config, cache: Path, verify: Verify = "size"
) -> Corpus:
    """Return the corpus that a checkpoint was trained on.

    Args:
        trained: The config of the run.
        cache: Where corpora are today; the run's config may name another folder.
        verify: What of it is compared with its manifest.

    Raises:
        InputError: it is gone and has no sources, or they give other tokens today.
    """
    state = checkpoint.state()
    folder = where_is(state.corpus_dir, state.corpus, cache)
    if folder is not None:
        return load_corpus(folder, verify)
    fact, fix = gone(state.corpus_dir, state.corpus, cache)
    if not trained.data.build.sources:
        why = "a checkpoint is evaluated on the held-out documents of its corpus"
        raise InputError.of(fact, why, fix)
    say_aside(f"data: {fact}: built again from its sources; if it was moved, {fix}")
    return corpus_of(checkpoint, trained.data, cache, verify)


def corpus_of(
    checkpoint: Checkpoint, data: DataConfig, cache: Path, verify: Verify = "size"
) -> Corpus:
    """Return the corpus that `data` describes, in the tokens of a checkpoint.

    Args:
        cache: Where corpora are today.
        verify: What of it is compared with its manifest.

    Raises:
        InputError: it was tokenised by another tokenizer.
    """
    from data_pipeline.driver import prepare

    state = checkpoint.state()
    if data.build.sources:
        copied = checkpoint.path / TOKENIZER
        tokenizer = str(copied) if copied.is_file() else state.tokenizer_path
        build = replace(data.build, tokenizer=tokenizer, cache_dir=str(cache))
        data = replace(data, build=build)
    corpus = prepare(data, report=say_aside, verify=verify)
    if corpus.tokenizer_hash != state.tokenizer_hash:
        raise InputError.of(
            f"{corpus.dir} has another tokenizer than {checkpoint.path} was trained with",
            "the same ids mean other text",
            "data=files path=DOCUMENTS, which is tokenised as the checkpoint was, or no data=",
        )
    return corpus


def evaluate(found: Sequence[Checkpoint], config: Config, corpus: Corpus) -> list[dict[str, Any]]:
    """Return the fields `val/...` of each checkpoint, with its path, step and loops."""
    with ended_at_once():
        from loopcoder.loaded import load
        from loopcoder.train.own_sets import OwnSets
        from loopcoder.train.validation import Evaluator

    # None: what suits this machine, for a run in FP8
    precision: Any = config.precision.name if config.precision.name in ("fp32", "bf16") else None
    results = []
    for checkpoint in found:
        loops = config.model.num_loops
        run: LoadedRun = load(checkpoint.path, num_loops=loops, precision=precision)
        resolved = replace(config, model=run.config.model)
        stage = min(checkpoint.state().position.stage, len(config.stages) - 1)
        values = Evaluator(resolved, corpus)(run.state, stage)
        values |= OwnSets(resolved, corpus)(run.state, stage)
        results.append(
            {
                "checkpoint": str(checkpoint.path),
                "step": checkpoint.step,
                "num_loops": loops,
                "precision": run.config.precision.name,
                "corpus": corpus.place,
                **values,
            }
        )
    return results


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as text: a row for all domains, and one for each, each language and each
    source."""
    lines = []
    for result in results:
        lines.append(
            f"{result['checkpoint']}: step {result['step']}, R = {result['num_loops']}, "
            f"{result['precision']}, on {result['corpus']}"
        )
        rows = [["", "nats per token", "bits per byte", "by loop"]]
        rows += _rows(result, int(result["num_loops"]))
        for name in dict.fromkeys(found[1] for key in result if (found := OWN_SET.fullmatch(key))):
            own = f"val/{name}/"
            of_set = {
                f"val/{key.removeprefix(own)}": value
                for key, value in result.items()
                if key.startswith(own)
            }
            for label, *numbers in _rows(of_set, int(result["num_loops"])):
                rows.append([name if label == "all" else f"{name}: {label}", *numbers])
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines += [
            "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    return "\n".join(lines)


def _rows(result: Mapping[str, Any], loops: int) -> list[list[str]]:
    rows = []
    for at in _sections(result):
        by_loop = [
            f"{result[f'val/loss{at}/loop{r}']:.4f}"
            for r in range(loops)
            if f"val/loss{at}/loop{r}" in result
        ]
        bits = result.get(f"val/bpb{at}")
        shown = "" if bits is None else f"{bits:.4f}"
        rows.append([_label(at), f"{result[f'val/loss{at}']:.4f}", shown, " -> ".join(by_loop)])
    return rows


def _sections(result: Mapping[str, Any]) -> list[str]:
    """Return what stands behind `val/loss` of each row: that of all domains before each of them,
    first at the length of the data stage, there with languages and sources."""
    names = [key.removeprefix("val/bpb") for key in result if key.startswith("val/bpb/")]
    lengths = [key.removeprefix("val/loss") for key in result if re.fullmatch(_AT_LENGTH, key)]
    of_domains = {at: [n for n in names if _before_domain(n) == at] for at in ["", *lengths]}
    of_domains[""] += [key.removeprefix("val/loss") for key in result if _BY_LABEL.match(key)]
    return [section for at, domains in of_domains.items() for section in [at, *domains]]


def _before_domain(name: str) -> str:
    """Return the length that a name begins with, or nothing: a domain may have slashes."""
    found = re.match(r"/len\d+(?=/)", name)
    return found[0] if found else ""


def _label(section: str) -> str:
    """Name a row: domain, language or source, and the length unless it is the data stage's."""
    found = re.fullmatch(r"(?:/len(\d+))?(?:/(.+))?", section)
    length, domain = found.groups() if found else (None, section)
    return (domain or "all") + (f" at {counted(int(length), 'token')}" if length else "")
