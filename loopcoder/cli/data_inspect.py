"""`loopcoder data inspect`: what the global batch of a step consists of."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from loopcoder.backends import detect
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.history import Stand, stand_before
from loopcoder.checkpoint.pinned import pinned_corpus
from loopcoder.checkpoint.start import check_start, find_start, with_kept_reader
from loopcoder.cli.arguments import Arguments, composed, say_aside
from loopcoder.cli.corpora import corpus_of_run
from loopcoder.cli.data_tools import cache_of
from loopcoder.cli.options import config_dir_of, parse_options, split_folders, whole
from loopcoder.cli.own_tokenizer import with_own_tokenizer
from loopcoder.cli.run_folders import runs_below
from loopcoder.config.check import check_batch
from loopcoder.config.check_data import check_data
from loopcoder.config.fields import typed
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, in_use, load_corpus, with_reader
from loopcoder.data.sampler import advance
from loopcoder.errors import EXIT_DONE, InputError, counted
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

if TYPE_CHECKING:
    from loopcoder.cli.batch_text import Shown

HELP = """\
Show what the global batch of a step consists of: sources, languages and domains, where documents
begin and end, and their text. Nothing is trained; no GPU is needed.

usage: loopcoder data inspect RUN step=N [options]
       loopcoder data inspect step=N [options] [--config-dir DIR] [key=value ...]

  loopcoder data inspect runs/plt_tiny-r2-cc8f20c8a9 step=100
                                          what a run trained at step 100, or will
  loopcoder data inspect step=1 data=files path=~/src
                                          what `loopcoder train` with the same words would
  loopcoder data inspect RUN step=100 --json | jq .labels

  --sequences N   of the batch that are shown (4; with --json all); the tables are of all of it
  --text LINES    of each document that are shown (3)
  --full          all sequences with all of their text
  --ranks N       say to which of N data-parallel ranks, and in which microbatch, a sequence goes
  --json          one object, with everything that the tables have
  --cache DIR     where the corpus of a run is looked for, if it is not where it was

Tokens are those that a sequence predicts, as the losses and the run's ledger count them. The first
document of a sequence mostly begins in another one."""

_USAGE = "loopcoder data inspect step=1, or loopcoder data inspect RUN step=1"
_VALUES = {
    "--sequences": "N",
    "--text": "LINES",
    "--ranks": "N",
    "--cache": "DIR",
    "--config-dir": "DIR",
}


def inspect(argv: list[str]) -> int:
    """Print what the global batch of a step consists of."""
    operands, options = parse_options(
        "data inspect", argv, flags=["--full", "--json"], values=_VALUES
    )
    if "--help" in options:
        print(HELP)
        return EXIT_DONE
    interrupted_by_signals("before the batch was shown; nothing is lost")
    step = _step([o for o in operands if o.partition("=")[0] == "step"])
    sequences, lines = _bounds(options)
    others = [o for o in operands if o.partition("=")[0] != "step"]
    run = _run(others)
    if run is None:
        stand, corpus = _as_trained(Arguments(others, config_dir_of(options)), step)
    else:
        stand, corpus = _of_run(run, step, cache_of(options))
    from loopcoder.cli.batch_text import Shown

    shown = Shown(sequences, lines, _ranks(options, stand))
    _show(stand, corpus, shown, as_json="--json" in options)
    return EXIT_DONE


def _bounds(options: dict[str, str]) -> tuple[int | None, int | None]:
    """Return how many sequences, and how many lines of each document, are shown; None: all."""
    sequences, lines = whole(options, "--sequences", 4), whole(options, "--text", 3)
    if "--full" in options:
        return None, None
    return None if "--json" in options and "--sequences" not in options else sequences, lines


def _show(stand: Stand, corpus: Corpus, shown: Shown, *, as_json: bool) -> None:
    """Print the batch of the step that a run stands before."""
    from loopcoder.cli.batch_text import Batches

    config, position = stand.config, stand.position
    for note in stand.notes:
        say_aside(note)
    if position.step >= config.train.max_steps:
        say_aside(
            f"train.max_steps={config.train.max_steps} ends the run before step "
            f"{position.step + 1}: this is what it would take"
        )
    batches = Batches(config, corpus, position, shown, is_read=not as_json)
    with ended_at_once():
        from loopcoder.data.composition import rows_of_step

        if config.data.reader == "megatron":
            from loopcoder.parallel.mcore import prepare

            prepare()
    with ExitStack() as held:
        for member in corpus.members:
            held.enter_context(in_use(member.dir))
        rows = rows_of_step(config, corpus, position)
        if as_json:
            print(json.dumps(batches.as_json(rows), indent=1))
        else:
            for text in batches.as_text(rows):
                print(text)


def _step(given: Sequence[str]) -> int:
    """Return the step that is asked for, from 1."""
    written = given[0].partition("=")[2] if given else ""
    if len(given) != 1 or not written.isdecimal() or int(written) < 1:
        raise InputError.of(
            f"loopcoder data inspect {' '.join(given)}".rstrip(),
            "it takes one step, counted from 1",
            _USAGE,
        )
    return int(written)


def _run(operands: Sequence[str]) -> Path | None:
    """Return the folder of the run that is meant; None: a config is.

    Raises:
        InputError: it is none, or more is given, which a run that is there does not take.
    """
    folders, _ = split_folders(operands)
    if not folders:
        only = operands[0].partition("=") if len(operands) == 1 else ("", "", "")
        named = Path(only[2]).expanduser()
        is_run = only[0] == "run_dir" and only[2] and (named / layout.CONFIG).is_file()
        return named if is_run else None
    folder = Path(folders[0]).expanduser()
    if len(operands) > 1:
        raise InputError.of(
            f"loopcoder data inspect {shlex.join(operands)}",
            f"{folder} is shown as it was trained, and other words describe another run",
            f"loopcoder data inspect {typed(str(folder))} step=1, or without the folder",
        )
    if (folder / layout.CONFIG).is_file() and not (folder / layout.STATE).is_file():
        return folder
    if (folder / layout.STATE).is_file():
        fact, found = f"{folder} is a checkpoint", folder.resolve().parents[1]
        meant: Path | None = found if (found / layout.CONFIG).is_file() else None
    else:
        fact = f"{folder} is no folder of a run"
        meant = next(iter(runs_below(folder)), None)
    raise InputError.of(
        fact,
        f"a run's folder has a {layout.CONFIG}, and says by it what it trains on",
        f"loopcoder data inspect {meant or 'RUN'} step=1; loopcoder runs lists runs",
    )


def _of_run(run_dir: Path, step: int, cache: Path) -> tuple[Stand, Corpus]:
    """Return where a run stood before a step, and its corpus."""
    stand = stand_before(run_dir, step)
    return stand, corpus_of_run(run_dir, stand.config, cache)


def _as_trained(arguments: Arguments, step: int) -> tuple[Stand, Corpus]:
    """Return where a run would stand before a step, and its corpus, as `loopcoder train` with the
    same words would find them.

    Raises:
        InputError: it would be refused, or its corpus is not built yet.
    """
    config = composed(arguments, detect())
    run_dir, parallel = Path(str(config.run_dir)), config.parallel
    one_copy = parallel.tp * parallel.pp * parallel.cp
    if problems := [*check_batch(config, one_copy), *check_data(config)]:
        raise InputError(problems)
    check_start(config, run_dir)
    pinned = pinned_corpus(config, run_dir, say_aside)
    corpus = _built(config, arguments) if pinned is None else load_corpus(pinned, "size")
    config = with_reader(with_kept_reader(config, find_start(config, run_dir)), corpus)
    check_start(config, run_dir, corpus)
    return stand_before(run_dir, step, config), corpus


def _built(config: Config, arguments: Arguments) -> Corpus:
    """Return the corpus of a config, which is not built for a look into it."""
    from data_pipeline.driver import may_be_built, prepare

    def refuse(_: Sequence[str] = ()) -> None:
        words = " ".join(map(typed, arguments.asked))
        raise InputError.of(
            "the corpus of this config is not built yet",
            "a batch consists of its sequences, and what they are follows from all of it",
            f"loopcoder data {words}".rstrip() + ", which builds it",
        )

    if config.data.build.sources and not may_be_built(config.data):
        refuse()
    data = with_own_tokenizer(config).data
    return prepare(data, report=say_aside, verify="size", before_build=refuse)


def _ranks(options: dict[str, str], stand: Stand) -> int | None:
    """Return the data-parallel ranks to tell; None: they are not asked for."""
    if "--ranks" not in options:
        return None
    ranks, micro = whole(options, "--ranks", 1), stand.config.train.micro_batch_size
    size = advance(stand.config, stand.position)[1]
    if ranks < 1 or size % (ranks * micro):
        most = size // micro
        fits = next(n for n in range(min(max(ranks, 1), most), 0, -1) if most % n == 0)
        raise InputError.of(
            f"--ranks {ranks}, of {counted(size, 'sequence')} with {micro} at once",
            "every rank takes as many microbatches as the others",
            f"--ranks {fits}",
        )
    return ranks
