"""The processes of a run: they meet, agree on what it starts from, train, and say who was lost."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException  # a BaseException

from loopcoder.backends import Backends
from loopcoder.checkpoint.agreed import Decision, agree, of_rank_0
from loopcoder.checkpoint.copies.fetching import fetch_together, forget_later
from loopcoder.checkpoint.copies.lacking import copy_rest
from loopcoder.checkpoint.pruning import prune_reporting
from loopcoder.checkpoint.rewind import forget_rewinds, with_rewinds
from loopcoder.checkpoint.start import (
    Reached,
    check_fits,
    find_start,
    finished_at,
    notes_of_schedules,
    with_kept_reader,
)
from loopcoder.checkpoint.verify import verified
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, in_use, lost, with_reader
from loopcoder.data.own_sets import own_folders
from loopcoder.errors import EXIT_DONE, EXIT_RETRY, LoopcoderError, ProcessLost
from loopcoder.metrics.summary import print_finished
from loopcoder.metrics.writer import append_event
from loopcoder.model.vocabulary import padded_vocabulary
from loopcoder.parallel import mcore
from loopcoder.parallel.peers import interruption_of, was_lost
from loopcoder.storage.run_lock import only_run_in
from loopcoder.train.deterministic import use_deterministic_algorithms
from loopcoder.train.loop import Run
from loopcoder.train.provenance import Launch, same_on_all
from loopcoder.train.signals import StopSignal
from loopcoder.train.watch import COPY, FETCH, START, Watch, in_one_line


def train(
    config: Config,
    corpus: Corpus,
    backends: Backends,
    run_dir: Path,
    launch: Launch,
) -> int:
    """Train, and return an exit code.

    The world is given by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; every rank
    calls this. Raises LoopcoderError with what mends it.
    """
    rank = int(os.environ.get("RANK", "0"))
    with ExitStack() as held:
        if rank == 0:
            held.enter_context(only_run_in(run_dir))
        for folder in (*(m.dir for m in corpus.members), *own_folders(config).values()):
            held.enter_context(in_use(folder))
        stop = StopSignal(is_starting=True)
        watch = Watch(run_dir, rank, config.parallel, launch.began)
        held.callback(watch.close)
        if config.train.deterministic:
            use_deterministic_algorithms()
        parallel = config.parallel
        peers = mcore.start_processes(
            parallel.timeout_s, parallel.report_after_s, partial(same_on_all, config, backends)
        )
        held.callback(mcore.shutdown)
        if peers is not None:
            watch.meet(peers)
        try:
            return _train_together(config, corpus, backends, run_dir, launch, stop, watch)
        except KeyboardInterrupt as error:
            watch.leaves(in_one_line(error), EXIT_RETRY)
            raise
        except LoopcoderError as error:
            watch.leaves(in_one_line(error), error.exit_code)
            raise
        except (Exception, CheckpointException) as error:  # of megatron-core, numpy or the system
            if (asked := interruption_of(error)) is not None:
                watch.leaves(in_one_line(asked), EXIT_RETRY)
                raise asked from error
            if taken_away := lost(corpus):
                watch.leaves(in_one_line(taken_away), taken_away.exit_code)
                raise taken_away from error
            if peers is not None and was_lost(error):
                raise _who_was_lost(watch, error) from error
            watch.leaves(f"{type(error).__name__}: {in_one_line(error)}", 1)
            raise


def _train_together(
    config: Config,
    corpus: Corpus,
    backends: Backends,
    run_dir: Path,
    launch: Launch,
    stop: StopSignal,
    watch: Watch,
) -> int:
    vocab_size = padded_vocabulary(config.model, corpus.vocab_size, corpus.tokenizer_path)
    decide = partial(_decide, config, corpus, run_dir, vocab_size)
    fetched = fetch_together(
        config.checkpoint, run_dir, _say_on_rank_0, lambda: watch.enter(FETCH, 0)
    )
    watch.enter(START, 0)
    within_s = config.checkpoint.visible_within_s
    decision = agree(run_dir, corpus.fingerprint, within_s, decide)
    is_main = os.environ.get("RANK", "0") == "0"
    if (done := decision.done) is not None:
        _copy_rest(config, run_dir, done, watch)
        if is_main:
            report = partial(append_event, run_dir)
            prune_reporting(run_dir / "checkpoints", done.kept, done.spared, done.step, report)
            print_finished(run_dir, done.step, config.train.max_steps, done.max_steps)
        return EXIT_DONE
    # what the command line has printed, which did not know the reader yet
    unread = replace(config, data=replace(config.data, reader="auto"))
    said = notes_of_schedules(unread, decision.start) if is_main else []
    data = replace(config.data, reader=decision.reader, skip=list(decision.skip))  # type: ignore[arg-type]
    config = replace(config, data=data)
    later = list[str]()  # on rank 0, which says it
    whole, aside = verified(
        decision.start, config, lambda: later.extend(forget_later(config.checkpoint, run_dir))
    )
    notes = list(decision.notes)
    if whole is not None and whole != decision.start:
        notes = check_fits(whole, config, vocab_size, corpus) + notes_of_schedules(config, whole)
    if is_main and (whole is None or not whole.resumes):
        forget_rewinds(run_dir)
    run = Run(config, corpus, backends, run_dir, vocab_size, whole, stop, launch, watch)
    run.go([*fetched, *said], [*fetched, *later, *notes], aside)
    return EXIT_DONE


def _copy_rest(config: Config, run_dir: Path, done: Reached, watch: Watch) -> None:
    """Let rank 0 copy what the store of a finished run lacks; the others wait as long as it
    moves."""
    report = partial(append_event, run_dir)
    rest = copy_rest(config.checkpoint, run_dir, _say_on_rank_0, report, done.spared)
    watch.enter(COPY, done.step)
    while of_rank_0(lambda: next(rest, False)):
        watch.enter(COPY, done.step)


def _say_on_rank_0(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def _decide(config: Config, corpus: Corpus, run_dir: Path, vocab_size: int) -> Decision:
    """Return what the run starts from, by the view of this rank."""
    start = find_start(config, run_dir, sizes=True, loads=True)
    config = with_rewinds(config, run_dir)
    config = with_reader(with_kept_reader(config, start), corpus)
    notes = [] if start is None else check_fits(start, config, vocab_size, corpus)
    notes += notes_of_schedules(config, start)
    return Decision(
        start,
        finished_at(config, run_dir),
        corpus.fingerprint,
        config.data.reader,
        tuple(notes),
        tuple(config.data.skip),
    )


def _who_was_lost(watch: Watch, error: BaseException) -> ProcessLost:
    """Name the ranks that are gone; the exit code is that with which the first of them ended."""
    gone, code = watch.lost()
    lost_ranks = ProcessLost.of(
        "; ".join(gone) or f"lost the other ranks: {in_one_line(error)}",
        "every rank waits for all others in every step",
        "start the same command again: it continues from the newest checkpoint",
    )
    lost_ranks.exit_code = code
    watch.leaves(in_one_line(lost_ranks), code)
    return lost_ranks
