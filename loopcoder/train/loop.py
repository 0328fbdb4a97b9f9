"""The train loop: build, restore, then step by step until done or asked to stop.

corpus + config -> Loader (a thread) -> microbatches -> forward_backward -> update -> metrics
                                                     -> evaluation, checkpoint, plots when due
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopcoder.backends import Backends
from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.load import load
from loopcoder.checkpoint.pinned import companions, record
from loopcoder.checkpoint.rewind import forget_rewinds
from loopcoder.checkpoint.save import Saver
from loopcoder.checkpoint.start import (
    Start,
    check_fits,
    early_notes,
    find_start,
    finished_at,
    ledger_of,
    warmup_of,
    with_kept_reader,
)
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.identity import config_hash
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, in_use, lost, with_reader
from loopcoder.data.loader import Loader, StepData
from loopcoder.data.sampler import Position, enter_stage
from loopcoder.data.unigram import entropies_of
from loopcoder.errors import EXIT_DONE, LoopcoderError, OutOfMemory, Preempted, TrainingDiverged
from loopcoder.metrics.plots import plot_run
from loopcoder.metrics.summary import next_command, print_finished, print_summary
from loopcoder.metrics.throughput import peak_flops
from loopcoder.model.probe import probe_of
from loopcoder.model.vocabulary import padded_vocabulary
from loopcoder.optim.optimizer import update
from loopcoder.optim.schedule import branching_step, learning_rate, vocabulary_share
from loopcoder.parallel import mcore
from loopcoder.storage.run_lock import only_run_in
from loopcoder.train.accounts import Accounts
from loopcoder.train.data_events import data_events
from loopcoder.train.health import Health
from loopcoder.train.labels import label_losses
from loopcoder.train.out_of_memory import named_out_of_memory, smaller_step
from loopcoder.train.outlook import outlook
from loopcoder.train.profiling import StepProfiler
from loopcoder.train.provenance import Launch, provenance
from loopcoder.train.records import open_writer, throughput_of
from loopcoder.train.rewinding import what_ends
from loopcoder.train.signals import StopSignal
from loopcoder.train.silent_errors import compare_replicas, replay
from loopcoder.train.state import build_state
from loopcoder.train.step import StepResult, forward_backward
from loopcoder.train.validation import Evaluator, mixture_mean
from loopcoder.train.verification import Verification
from loopcoder.train.window import Window, reduce_peak_memory


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
    with ExitStack() as held:
        if os.environ.get("RANK", "0") == "0":
            held.enter_context(only_run_in(run_dir))
        held.enter_context(in_use(corpus.dir))
        try:
            return _train_alone(config, corpus, backends, run_dir, launch)
        except LoopcoderError:
            raise
        except Exception as error:  # of megatron-core, numpy or the system
            if taken_away := lost(corpus):
                raise taken_away from error
            raise


def _train_alone(
    config: Config, corpus: Corpus, backends: Backends, run_dir: Path, launch: Launch
) -> int:
    vocab_size = padded_vocabulary(config.model, corpus.vocab_size, corpus.tokenizer_path)
    start, said = find_start(config, run_dir), early_notes(config, run_dir)
    config = with_reader(with_kept_reader(config, start), corpus)
    notes = [] if start is None else check_fits(start, config, vocab_size, corpus)
    notes += early_notes(config, run_dir)
    if (done := finished_at(config, run_dir)) is not None:
        if os.environ.get("RANK", "0") == "0":
            print_finished(run_dir, done.step, config.train.max_steps, done.max_steps)
        return EXIT_DONE
    stop = StopSignal()
    mcore.start_processes()
    try:
        Run(config, corpus, backends, run_dir, vocab_size, start, stop, launch).go(said, notes)
    finally:
        mcore.shutdown()
    return EXIT_DONE


class Run:
    """One process of a run: its state, its data and, on rank 0, its records."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        backends: Backends,
        run_dir: Path,
        vocab_size: int,
        start: Start | None,
        stop: StopSignal,
        launch: Launch,
    ):
        self.ranks = mcore.initialise(config.parallel, config.seed)
        self.config, self.corpus, self.run_dir = config, corpus, run_dir
        self.backends, self.start, self.stop, self.launch = backends, start, stop, launch
        self.vocab_size = vocab_size
        self.state = build_state(config, self.ranks, vocab_size)
        self._by_label = label_losses(corpus, config.logging.max_labels, self.ranks.device)
        self.health = Health(config.faults, self.ranks.device)
        self.evaluator = Evaluator(config, corpus, run_dir)
        self.saver = Saver(config, run_dir, self.event, companions(run_dir))
        self.profiler = StepProfiler(config.profile, run_dir, self.ranks.rank)
        resumed = start.checkpoint.state() if start is not None and start.resumes else None
        position = start.checkpoint.state().position if start and start.goes_on else Position()
        self.position = enter_stage(config.stages, position)
        self.accounts = Accounts(ledger_of(start), corpus.labels, self.ranks)
        self.warmup = warmup_of(start, config)
        self._last_saved = self.position.step
        self._owes_save = False
        self.writer = (
            open_writer(config, backends, run_dir, resumed.step if resumed else None)
            if self.ranks.is_main
            else None
        )
        name = backends.gpu_name if self.ranks.device.type == "cuda" else None
        peak = peak_flops(config.hardware, name, config.precision.name)  # type: ignore[arg-type]
        sizes = vocab_size, peak, self.ranks.world_size
        self._throughput = lambda stage: throughput_of(config, stage, *sizes)
        self._val: dict[str, float] = {}
        self._unigram_entropies: dict[str, float] = {}
        self._unigram_entropy: float | None = None

    def go(self, said: list[str], notes: list[str]) -> None:
        """Restore, train to the end, and leave everything closed; `said` are notes that the command
        line has printed already."""
        try:
            self._restore(said, notes)
            self._prepare_validation()
            self.verification = Verification(self.config, self.corpus, self.say)
            self._train()
            self.saver.finish()
            if self._last_saved != self.position.step:
                self.saver.keep_ledger(self.accounts.ledger(self.position), self.position)
            self._conclude()
        except TrainingDiverged:
            self.event("run_diverged", step=self.position.step)  # a sweep goes on after it
            raise
        finally:
            if self.writer is not None:
                self.writer.close()

    def _train(self) -> None:
        config, last = self.config, self.config.train.max_steps
        loader = Loader(
            config,
            self.corpus,
            self.position,
            self.ranks.dp_rank,
            self.ranks.dp_size,
            self.ranks.device.type == "cuda",
        )
        window = Window()
        try:
            for data in window.waiting_for(iter(loader)):
                step = data.after.step
                for kind, fields in data_events(config, self.corpus, self.position, data):
                    self.event(kind, **fields)
                evaluate = _due(step, config.eval.interval) or (step == last and config.eval.at_end)
                logged = _due(step, config.logging.interval) or evaluate or step == last
                if _due(step, config.faults.replay_interval):
                    replay(self.state, data, len(self.corpus.domains), self.event)
                with self.profiler.step(step):
                    result = self._step(data, logged)
                window.add(data)
                self.position = data.after
                self.accounts.add(data.label_tokens)
                if _due(step, config.faults.compare_interval):
                    compare_replicas(self.state, step, self.event)
                self.saver.poll()
                if self.verification.found_fault:
                    self.stop.name = "a damaged shard"
                if loader.error is not None:  # what is trained is saved before it is raised
                    self.stop.name = "no data"
                stopping = self.stop.requested(self.ranks.device)
                if logged or stopping:
                    self._log(result, data, window, evaluate)
                self._owes_save |= self._saves_after(step)
                if self._owes_save or stopping:
                    with window.excluding():
                        self._save(only_sound=not stopping and step < last)
                if stopping and step < last:
                    self.saver.finish()
                    if loader.error is not None:
                        raise loader.error
                    raise Preempted.of(
                        f"stopped after step {step} of {last}: its checkpoint is complete",
                        "the run was asked to stop; nothing is lost",
                        "start the same command again to continue",
                    )
            self.verification.refuse_damaged(self.ranks.device)
        except Exception as error:
            if error is loader.error and self.ranks.world_size == 1:  # others may wait for this one
                self._save()
                self.saver.finish()
            raise
        finally:
            loader.close()
            self.verification.close(self.event)

    def _step(self, data: StepData, logged: bool) -> StepResult:
        """Train one step; loss and gradient norm stay on the device until they are logged."""
        config, optim = self.config, self.config.optim
        probe = probe_of(config, self.ranks.device) if logged else None
        by_label = self._by_label if logged else None
        theta = config.stages[data.before.stage].rope_theta
        self.state.network.set_rope_theta(theta)
        step = data.after.step
        with named_out_of_memory(f"step {step}", smaller_step(config, self.run_dir)):
            domains = len(self.corpus.domains)
            sums = forward_backward(self.state, data.microbatches, domains, probe, by_label)
        lr = learning_rate(optim, step, config.train.max_steps, self.warmup)
        share = vocabulary_share(optim, step)
        loss, tokens = sums.sum(1)
        grad_norm = update(self.state.optimizer, optim, lr, tokens, share, loss)
        self.health.note(data, sums, grad_norm)
        return StepResult(sums, grad_norm, lr, probe, by_label)

    def _log(self, result: StepResult, data: StepData, window: Window, evaluate: bool) -> None:
        self._check_health()
        fields = result.fields(self.corpus.domains)
        timing = window.measure(self._throughput(data.before.stage))
        memory = reduce_peak_memory(self.ranks.device)
        self.verification.tell_finished(data.after.step, self.event)
        if evaluate:
            with window.excluding():
                self._val = self._evaluate(data.before.stage)
        if self.writer is not None:
            self.writer.log(
                {
                    "step": data.after.step,
                    "tokens": data.after.tokens,
                    **timing,
                    **fields,
                    "samples": data.after.samples,
                    "stage": data.before.stage,
                    "batch_size": data.size,
                    "memory_bytes": memory,
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    **(self._validation(data.before.stage) if evaluate else {}),
                }
            )

    def _evaluate(self, stage: int) -> dict[str, float]:
        """Evaluate; what is trained is saved before it is said that memory does not suffice."""
        try:
            return self.evaluator(self.state, stage)
        except OutOfMemory:
            if self.ranks.world_size == 1:  # others may wait for this one in a collective
                self._save()
                self.saver.finish()
            raise

    def _validation(self, stage: int) -> dict[str, Any]:
        """Return the fields of an evaluation on rank 0."""
        mixture = self.config.stages[stage].mixture
        self._unigram_entropy = mixture_mean(self._unigram_entropies, mixture)
        return {
            **self._val,
            "val/weighting": "mixture",
            "val/unigram_entropy": self._unigram_entropy,
        }

    def _saves_after(self, step: int) -> bool:
        """Say whether there is a checkpoint of a step: at intervals, where a wsd run begins to
        decay, and at the end."""
        saved, last = self.config.checkpoint, self.config.train.max_steps
        if step == last and saved.save_at_end:
            return True
        if saved.interval is None:
            return False
        branching = branching_step(self.config.optim, last, self.warmup)
        return step == branching or _due(step, saved.interval)

    def _save(self, only_sound: bool = False) -> None:
        """Save, unless that is done; `only_sound`: or the newest steps are suspicious, after which
        there will be a save or no run."""
        if self._last_saved == self.position.step:
            return
        self.verification.refuse_damaged(self.ranks.device)
        self._check_health()
        if only_sound and self.health.is_suspicious:
            return
        self._owes_save = False
        if self.config.faults.compare_interval is not None:
            compare_replicas(self.state, self.position.step, self.event)
        if self.writer is not None:
            self.writer.sync()  # lines up to this step are on disk before the checkpoint counts
        state = CheckpointState(
            position=self.position,
            ledger=self.accounts.ledger(self.position),
            num_loops=self.config.model.num_loops,
            vocab_size=self.vocab_size,
            tokenizer_hash=self.corpus.tokenizer_hash,
            tokenizer_path=str(self.corpus.tokenizer_path),
            corpus=self.corpus.fingerprint,
            corpus_dir=self.corpus.place,
            config_hash=config_hash(self.config),
            world_size=self.ranks.world_size,
            warmup_steps=self.warmup,
            reader=self.config.data.reader,  # type: ignore[arg-type]  # it is no longer auto
        )
        self.saver.save(self.state.network, self.state.ddp, self.state.optimizer, state)
        self._last_saved = self.position.step

    def _check_health(self) -> None:
        """Record steps that were bad; raises where they were too many in a row."""
        trouble = self.health.check()
        for bad in self.health.taken():
            self.event("step_refused", **bad.fields())
        if trouble is not None:
            self.saver.finish()
            raise what_ends(trouble, self.config, self.run_dir, self.position, self.event)

    def _restore(self, said: list[str], notes: list[str]) -> None:
        self.event(
            "run_started",
            **provenance(self.launch.overrides, self.backends, self.ranks.world_size),
        )
        if self.ranks.is_main and (self.start is None or not self.start.resumes):
            forget_rewinds(self.run_dir)
        for path in checkpoints.incomplete(self.run_dir / "checkpoints"):
            self.event("checkpoint_incomplete", path=str(path))
            self.say(f"{path.name} has no manifest: a save was interrupted; it is not used")
        if self.start is not None:
            checkpoint, resumes = self.start.checkpoint, self.start.resumes
            with_optimizer = resumes or self.config.checkpoint.init_optimizer
            optimizer = self.state.optimizer if with_optimizer else None
            load(checkpoint, self.state.network, optimizer, self.config)
            if not with_optimizer:
                self.state.optimizer.reload_model_params()
            verb = "continues" if resumes else "starts"
            self.event(f"run_{verb}", path=str(checkpoint.path), step=checkpoint.step)
            self.say(f"{verb} from {checkpoint.path}, step {checkpoint.step}")
        for note in dict.fromkeys([*said, *notes, *self.accounts.notes()]):
            self.event("note", text=note)
            if note not in said:
                self.say(note)
        if self.ranks.is_main:
            record(self.config, self.corpus, self.run_dir)
            for line in outlook(self.config, self.corpus, self.vocab_size, self.position):
                self.say(line)

    def _prepare_validation(self) -> None:
        """Say what is short of held-out sequences, and get what the loss is compared with."""
        if not self.config.eval.happens:
            return
        for note in self.evaluator.shortages():
            self.event("note", text=note)
            self.say(note)
        if self.ranks.is_main:
            cache = Path(self.config.data.build.cache_dir).expanduser()
            self._unigram_entropies = entropies_of(self.corpus, cache, self.say)

    def _conclude(self) -> None:
        """Draw the curves and say what came out."""
        if self.writer is None:
            return
        self.event("run_done", step=self.position.step)
        self.writer.close()
        plots = self.config.logging.plots and self.backends.has("matplotlib")
        print_summary(
            self.run_dir,
            steps=self.position.step,
            tokens=self.position.tokens,
            # beside a branch a sweep from scratch says nothing
            advice=None
            if self.launch.is_point or self.config.checkpoint.init_from
            else next_command(self.config, self.launch.overrides),
            val_loss=self._val.get("val/loss"),
            unigram_entropy=self._unigram_entropy,
            plots=plot_run(self.run_dir) if plots else [],
        )

    def event(self, kind: str, **fields: Any) -> None:
        """Record an event (rank 0)."""
        if self.writer is not None:
            self.writer.event(kind, **fields)

    def say(self, text: str) -> None:
        if self.ranks.is_main:
            print(text, flush=True)


def _due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0
