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
from loopcoder.checkpoint.copies.places import all_at
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.cli import evaluate_tasks
from loopcoder.cli.arguments import fields_of, parse_arguments
from loopcoder.cli.asked import Asked
from loopcoder.cli.asked_weights import place_in
from loopcoder.config.benchmarks import ChatTaskConfig, HumanEvalConfig, TasksConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, in_use
from loopcoder.data.own_sets import own_folders
from loopcoder.data.sampler import trained_stage
from loopcoder.errors import EXIT_DONE, InputError, counted
from loopcoder.metrics.words import OWN_SET
from loopcoder.storage.remote import is_stored
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

if TYPE_CHECKING:
    from loopcoder.loaded import LoadedRun

HELP = """\
Evaluate a checkpoint: its loss on held-out documents, by domain and loop, in nats per token and
bits per byte; or, with tasks=, what one or several reach in benchmarks. One process; no launcher is
needed.

usage: loopcoder evaluate checkpoint=DIR|URL [--all] [--json] [key=value ...]
       loopcoder evaluate checkpoint=DIR|URL [checkpoint=...] tasks=NAME[,NAME...] [output=DIR]
                          [model.num_loops=N[,N...]] [precision=...] [--json]
                          [tasks.KEY=VALUE ...] [human_eval.KEY=VALUE ...] [chat.KEY=VALUE ...]
       loopcoder evaluate server=URL tasks=...

  loopcoder evaluate checkpoint=runs/plt_tiny-r2-cc8f20c8a9      the newest checkpoint of a run
  loopcoder evaluate checkpoint=DIR/checkpoints/step_00001000    one of those that are kept
  loopcoder evaluate checkpoint=DIR --all                        every one that is kept
  loopcoder evaluate checkpoint=FOLDER data=files path=~/src     weights for transformers
  loopcoder evaluate checkpoint=s3://BUCKET/RUN                  from checkpoint.store of a run
  loopcoder evaluate checkpoint=DIR model.num_loops=3            with another number of loops
  loopcoder evaluate checkpoint=DIR data=files path=~/src        on other data, with its tokenizer
  loopcoder evaluate checkpoint=DIR eval.sequences_per_domain=512

Everything else is as the run had it. Fields that may be given: model.num_loops, precision,
train.micro_batch_size, eval.*, data.*. Without data=, path= or data.build.sources the data are the
run's, and only the fields that are given differ.

  loopcoder evaluate checkpoint=DIR tasks=human_eval             programs, run in a sandbox
  loopcoder evaluate checkpoint=A checkpoint=B tasks=my_task tasks.include_path=tasks
                                                 tasks of lm-eval, models side by side
  loopcoder evaluate checkpoint=DIR tasks=human_eval model.num_loops=1,2,3
  loopcoder evaluate checkpoint=DIR tasks=chat                   held-out conversations
  loopcoder evaluate server=http://127.0.0.1:8000 tasks=human_eval

  output=DIR                   where the plot and NAME/results.json of each are; ./evaluation
{fields}

Nothing is downloaded: the data of tasks have to be on this machine (docs/evaluation.md)."""

_AT_LENGTH = r"val/loss/len\d+"
"""Field of an evaluation at a length of `eval.lengths`."""
_BY_LABEL = re.compile(r"val/loss/(?:language|source)/")
"""Field of a language or a source."""


def run(argv: list[str]) -> int:
    """Evaluate, and print a table or, with --json, one object for each checkpoint."""
    rest = [a for a in argv if a not in ("--all", "--json")]
    arguments = parse_arguments(rest, takes=["--all", "--json"])
    if arguments.help:
        sections = ("tasks", TasksConfig), ("human_eval", HumanEvalConfig), ("chat", ChatTaskConfig)
        print(HELP.format(fields="\n".join(fields_of(*section) for section in sections)))
        return EXIT_DONE
    interrupted_by_signals("before the end of the evaluation; nothing is lost, start it again")
    if any(override.startswith("tasks=") for override in arguments.overrides):
        if "--all" in argv:
            why = "tasks are run for the checkpoints that are named"
            raise InputError.of("--all", why, "checkpoint=DIR of each")
        return evaluate_tasks.run(arguments.overrides, as_json="--json" in argv)
    _refuse_without_tasks(arguments.overrides)
    place, others = place_in(arguments.overrides, "evaluate")
    refuse_missing()
    asked = Asked(others, arguments.config_dir)
    found = checkpoints(place, "--all" in argv, asked.cache)
    config, corpus = asked.of(found[-1])
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


def _refuse_without_tasks(overrides: Sequence[str]) -> None:
    """Refuse settings of tasks where none is named: without tasks= a loss is measured."""
    sections = ("human_eval", "chat")
    of_tasks = [o for o in overrides if o.startswith(("tasks.", *(f"{s}." for s in sections)))]
    if of_tasks or any(o.startswith("server=") for o in overrides):
        given = " ".join(of_tasks) or "server=URL"
        own = (o.partition(".")[0] for o in of_tasks)
        named = next((section for section in own if section in sections), "NAME")
        raise InputError.of(
            f"{given} without tasks=",
            "it is about benchmarks, and none is named",
            f"tasks={named} besides, or leave it out for the loss on held-out documents",
        )


def checkpoints(place: str, every: bool, cache: Path) -> list[Checkpoint]:
    """Return the checkpoint that a path or a URL names, or every one of its folder.

    Args:
        cache: Where what has a URL is fetched to.
    """
    if every and is_stored(place):
        return all_at(place, cache)
    from loopcoder.hf.opened import checkpoint_at

    newest = checkpoint_at(place, cache)
    if not every or newest.path == Path(place).expanduser():
        return [newest]
    return layout.complete(newest.path.parent)


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
        stage = trained_stage(config.stages, checkpoint.state().position)
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
