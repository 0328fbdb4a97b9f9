"""`loopcoder diagnose`: what each loop of trained models does, and what it costs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.nodes import meeting_point, refuse_other_launch
from launch.slurm_env import adopt_slurm
from launch.torchrun import start_workers
from loopcoder.backends import Backends, detect, refuse_missing
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.cli.arguments import fields_of, parse_arguments, rank, say_aside, section_of
from loopcoder.cli.asked import Asked
from loopcoder.cli.run_names import run_of
from loopcoder.config.check import check_layout
from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.config.schema import Config, ParallelConfig
from loopcoder.config.this_machine import for_this_machine
from loopcoder.data.corpus import Corpus, in_use
from loopcoder.diagnose.measurable import domains_to_measure, loops_to_measure, precision_of
from loopcoder.errors import EXIT_DONE, InputError, LoopcoderError
from loopcoder.metrics.drawing import require_matplotlib
from loopcoder.storage.folders import make_folder
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

if TYPE_CHECKING:
    from loopcoder.diagnose.results import Diagnosis

HELP = """\
Diagnose checkpoints on held-out documents: what each loop does and what it costs, by domain,
language, loop and layer, with 95% intervals; a table, a recommendation and an HTML report.

usage: loopcoder diagnose checkpoint=DIR|URL [checkpoint=...] [diagnosis=FILE ...] [--json]
                          [output=DIR] [diagnose.KEY=VALUE ...] [key=value ...]

  loopcoder diagnose checkpoint=runs/plt_tiny-r2-cc8f20c8a9      the newest checkpoint of a run
  loopcoder diagnose checkpoint=R1 checkpoint=R2 checkpoint=R3   several, beside each other
  loopcoder diagnose diagnosis=diagnosis/a.json diagnosis=diagnosis/b.json
                                                  compare what was measured before
  loopcoder diagnose checkpoint=DIR diagnose.loops=4             with further loops than trained
  loopcoder diagnose checkpoint=DIR data=files path=~/src        on other data, with its tokenizer
  loopcoder diagnose checkpoint=DIR parallel=tp2                 a model that one GPU does not hold

  output=DIR                 where NAME.json of each and the report are written; ./diagnosis
{fields}

Everything else is as the run had it. Fields that may be given: precision, train.micro_batch_size,
parallel.*, data.*. The same command again keeps what is finished. docs/diagnostics.md defines what
is measured."""

_ALLOWED = ("precision", "train.micro_batch_size", "parallel.*")
_OUTPUT = "diagnosis"
_Subject = tuple[str, Checkpoint, Config, Corpus]
"""Its name, and what `loopcoder.diagnose.kept.Subject` has."""


def run(argv: list[str]) -> int:
    """Diagnose, or start the processes that do."""
    arguments = parse_arguments([a for a in argv if a != "--json"], takes=["--json"])
    if arguments.help:
        print(HELP.format(fields=fields_of("diagnose", DiagnoseConfig)))
        return EXIT_DONE
    interrupted_by_signals(
        "before the end; checkpoints that are finished are kept, start it again for the others"
    )
    given = _Given.of(arguments.overrides)
    refuse_missing()
    settings, others = section_of(given.others, "diagnose", DiagnoseConfig)
    if "model.num_loops" in (other.partition("=")[0] for other in others):
        raise InputError.of(
            "model.num_loops", "loops are run besides those of training", "diagnose.loops=N"
        )
    output = Path(given.output).expanduser()
    require_matplotlib()
    if not given.checkpoints:
        _refuse_unused(others, settings)
    before = _read(given.diagnoses)
    if not given.checkpoints:
        make_folder(output, "output")
        _show(before, output, as_json="--json" in argv)
        return EXIT_DONE
    _refuse_fp8(others)
    asked = Asked(others, arguments.config_dir, _ALLOWED)
    backends = detect()
    adopt_slurm(os.environ)
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    size = _processes(asked.parallel, launched=launched)
    from loopcoder.hf.opened import checkpoint_at

    with ExitStack() as held:

        def subjects_of(places: Sequence[str]) -> list[_Subject]:
            found = [checkpoint_at(place, asked.cache) for place in places]
            subjects = []
            for name, checkpoint in zip(_names(found, settings.name), found, strict=True):
                config, corpus = asked.of(checkpoint)
                config = replace(config, parallel=asked.parallel)
                _check(config, corpus, settings, size, backends, checkpoint.place)
                subjects.append((name, checkpoint, config, corpus))
            for *_, corpus in subjects:
                for member in corpus.members:
                    held.enter_context(in_use(member.dir))
            return subjects

        subjects = subjects_of(given.checkpoints)
        make_folder(output, "output")
        if not launched and size > 1:
            command = ("diagnose", *_with_places(argv, [one[1].place for one in subjects]))
            return start_workers(subjects[0][2], size, command)
        diagnosed = _measure(subjects, subjects_of, settings, output)
    if rank() == 0:
        _show([*diagnosed, *before], output, as_json="--json" in argv)
    return EXIT_DONE


def _with_places(argv: Sequence[str], places: Sequence[str]) -> list[str]:
    """Return the arguments with the checkpoints that were found: a run that trains meanwhile has
    another newest one soon."""
    others = [a for a in argv if not a.startswith("checkpoint=")]
    return [*others, *(f"checkpoint={place}" for place in places)]


@dataclass(frozen=True)
class _Given:
    """What stood behind the verb."""

    checkpoints: list[str]
    diagnoses: list[Path]
    output: str
    others: list[str]

    @classmethod
    def of(cls, overrides: Sequence[str]) -> _Given:
        def values(key: str) -> list[str]:
            found = [o.partition("=")[2] for o in overrides if o.startswith(f"{key}=")]
            if "" in found:
                raise InputError.of(f"{key}=", "it names nothing", f"{key}=PATH")
            return found

        keys = "checkpoint", "diagnosis", "output"
        checkpoints, diagnoses, output = map(values, keys)
        others = [o for o in overrides if o.partition("=")[0] not in keys]
        bare = next((o for o in others if "=" not in o), "DIR")
        if not checkpoints and not diagnoses:
            raise InputError.of(
                "loopcoder diagnose " + " ".join(overrides),
                "one checkpoint is named, or several, each by checkpoint=",
                f"loopcoder diagnose checkpoint={bare}",
            )
        if len(output) > 1:
            raise InputError.of(
                " ".join(f"output={o}" for o in output), "there is one", f"output={output[-1]}"
            )
        paths = [Path(place).expanduser() for place in diagnoses]
        return cls(checkpoints, paths, output[0] if output else _OUTPUT, others)


def _refuse_unused(others: Sequence[str], settings: DiagnoseConfig) -> None:
    """Refuse settings of a measurement where nothing is measured."""
    if others or settings != DiagnoseConfig():
        given = " ".join(others) or "diagnose.*"
        why = "what was measured before is shown as it is"
        raise InputError.of(given, why, "leave it out, or add checkpoint=DIR")


def _refuse_fp8(others: Sequence[str]) -> None:
    """Refuse a number format in which nothing is measured."""
    for other in others:
        if other.startswith(("precision=fp8", "precision.name=fp8")):
            raise InputError.of(other, "measures are taken in fp32 or bf16", "precision=bf16")


def _processes(parallel: ParallelConfig, *, launched: bool) -> int:
    """Return how many processes take part."""
    if launched:
        refuse_other_launch(parallel, os.environ)
        return int(os.environ["WORLD_SIZE"])
    if parallel.nodes > 1:
        meeting_point(parallel)
    model = parallel.tp * parallel.pp * parallel.cp
    return parallel.nodes * (parallel.nproc_per_node or -(-model // parallel.nodes))


def _check(
    config: Config,
    corpus: Corpus,
    settings: DiagnoseConfig,
    size: int,
    backends: Backends,
    place: str = "",
) -> None:
    """Refuse what cannot be measured of the checkpoint at `place`, and a layout that does not fit
    the model or this machine."""
    loops_to_measure(config.model, settings, place)
    if config.parallel.sp:
        raise InputError.of(
            "parallel.sp=true",
            "tokens are compared with the one before them, so each rank has whole sequences",
            "parallel.sp=false",
        )
    runs = for_this_machine(config, backends, None, precision_of(config), config.parallel)
    check_layout(runs, size, backends)
    domains_to_measure(config, corpus, settings)


def _names(found: Sequence[Checkpoint], name: str | None) -> list[str]:
    """Name each checkpoint after its run and its step."""
    if name is not None and len(found) > 1:
        raise InputError.of(
            f"diagnose.name={name} for {len(found)} checkpoints",
            "each has a file and a name of its own",
            "leave it out: they are named after their runs",
        )
    if name is not None:
        return [name]
    names = [f"{run_of(checkpoint)}-{checkpoint.step}" for checkpoint in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        same = [c.place for n, c in zip(names, found, strict=True) if n == twice]
        raise InputError.of(
            f"{' and '.join(same)} are both called {twice}",
            "each has a file of its own below output=",
            "a command for each, with diagnose.name=NAME; then diagnosis=FILE of both",
        )
    return names


def _measure(
    subjects: list[_Subject],
    subjects_of: Callable[[Sequence[str]], list[_Subject]],
    settings: DiagnoseConfig,
    output: Path,
) -> list[Diagnosis]:
    parallel = subjects[0][2].parallel
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with ended_at_once():
        from loopcoder.parallel import mcore

        mcore.prepare()  # before anything imports megatron-core
        from loopcoder.diagnose.kept import Subject, diagnose_all

    mcore.start_processes(parallel.timeout_s, parallel.report_after_s)
    try:
        subjects = _agreed(subjects, subjects_of)
        ranks = mcore.initialise(parallel, seed=0)
        named = [Subject(*subject) for subject in subjects]
        return diagnose_all(named, settings, ranks, output, say_aside)
    finally:
        mcore.shutdown()


def _agreed(
    subjects: list[_Subject], subjects_of: Callable[[Sequence[str]], list[_Subject]]
) -> list[_Subject]:
    """Return this rank's subjects if they are of rank 0's checkpoints, else those of rank 0's: the
    newest of a run that trains may be another one for each. All ranks must call it."""
    from loopcoder.checkpoint.agreed import of_rank_0, same_error_on_all

    own, unseen = [one[1].place for one in subjects], None
    places = of_rank_0(lambda: own)
    if places != own:
        try:
            subjects = subjects_of(places)
        except LoopcoderError as error:
            unseen = error
    same_error_on_all(unseen)
    return subjects


def _read(paths: Sequence[Path]) -> list[Diagnosis]:
    from loopcoder.diagnose.results import read

    return read(paths)


def _show(diagnoses: Sequence[Diagnosis], output: Path, *, as_json: bool) -> None:
    """Print what was found, and write the report."""
    from loopcoder.diagnose.reading import labels
    from loopcoder.diagnose.recommend import recommend
    from loopcoder.diagnose.report import write_report
    from loopcoder.diagnose.text import COLUMNS, table

    if as_json:
        for diagnosis in diagnoses:
            print(json.dumps(asdict(diagnosis)))
    else:
        print(table(diagnoses))
        for name, diagnosis in zip(labels(diagnoses, COLUMNS), diagnoses, strict=True):
            print(f"{name}: {recommend(diagnosis).text}")
            for note in diagnosis.notes:
                print(f"  note: {note}")
    say_aside(f"report     {write_report(diagnoses, output)}")
