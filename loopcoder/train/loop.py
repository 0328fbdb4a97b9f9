"""The train loop: build, restore, then step by step until done or asked to stop.

corpus + config -> Loader (a thread) -> microbatches -> forward_backward -> update -> metrics
                                                     -> evaluation, checkpoint, plots when due
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from loopcoder.backends import Backends
from loopcoder.checkpoint.choice import SetAside
from loopcoder.checkpoint.copies.copying import Copies
from loopcoder.checkpoint.load import load
from loopcoder.checkpoint.pinned import companions, record
from loopcoder.checkpoint.put_off import made_up, put_off, stage_put_off
from loopcoder.checkpoint.save import Saver
from loopcoder.checkpoint.start import Start, ledger_of, warmup_of
from loopcoder.checkpoint.state import CheckpointState, with_template
from loopcoder.checkpoint.verify import report
from loopcoder.config.identity import config_hash
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.loader import Loader, StepData
from loopcoder.data.sampler import Position, enter_stage
from loopcoder.errors import OutOfMemory, Preempted, TrainingDiverged
from loopcoder.metrics.goodput import TimeRecord
from loopcoder.model.step_objective import loops_of_step
from loopcoder.optim.optimizer import update
from loopcoder.optim.schedule import branching_step, learning_rate, vocabulary_share
from loopcoder.parallel import mcore
from loopcoder.parallel.peers import END
from loopcoder.train import due
from loopcoder.train.accounts import Accounts
from loopcoder.train.data_events import data_events
from loopcoder.train.evaluation import Evaluation
from loopcoder.train.graph import CapturedStep, use_own_stream
from loopcoder.train.graph_choice import choose_graphs
from loopcoder.train.health import Health
from loopcoder.train.labels import label_losses
from loopcoder.train.measures import NOTHING, measures_of
from loopcoder.train.out_of_memory import named_out_of_memory, smaller_step
from loopcoder.train.outlook import outlook
from loopcoder.train.profiling import StepProfiler
from loopcoder.train.provenance import Launch, provenance
from loopcoder.train.records import open_writer, print_end, throughput_of
from loopcoder.train.rewinding import what_ends
from loopcoder.train.signals import StopSignal
from loopcoder.train.silent_errors import SilentError, compare_replicas, replay
from loopcoder.train.state import build_state
from loopcoder.train.step import StepResult, forward_backward
from loopcoder.train.stragglers import Stragglers, gather, places_of
from loopcoder.train.verification import Verification
from loopcoder.train.watch import (
    COMPLETION,
    COPY,
    DATA,
    EVALUATION,
    FIRST_STEP,
    SAVE,
    STEP,
    Watch,
)
from loopcoder.train.window import Window, peak_memory


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
        watch: Watch,
    ):
        self.ranks = mcore.initialise(config.parallel, config.seed)
        self.config, self.corpus, self.run_dir = config, corpus, run_dir
        self.backends, self.start, self.stop, self.launch = backends, start, stop, launch
        self.vocab_size, self.watch = vocab_size, watch
        self.began_as = start.checkpoint.state() if start is not None else None
        graphs = self.graphs = choose_graphs(config, self.ranks.world_size, backends)
        if graphs.uses:
            use_own_stream(self.ranks.device)
        self.state = build_state(config, self.ranks, vocab_size)
        self._by_label = label_losses(corpus, config.logging.max_labels, self.ranks.device)
        self.captured: CapturedStep | None = None
        if graphs.uses:
            self.captured = CapturedStep(
                self.state,
                config,
                len(corpus.domains),
                self._by_label,
                insists=graphs.insists,
                say=self._note,
                out_of_memory_fix=smaller_step(config, run_dir),
            )
        self.health = Health(config.faults, self.ranks.device)
        began_with = None if self.began_as is None else self.began_as.specials
        self.specials = with_template(began_with, corpus.chat_template)
        self.evaluation = Evaluation(config, corpus, run_dir, self.specials)
        self.profiler = StepProfiler(config.profile, run_dir, self.ranks.rank)
        resumed = start.checkpoint.state() if start is not None and start.resumes else None
        position = start.checkpoint.state().position if start and start.goes_on else Position()
        self.position = enter_stage(config.stages, position)
        self.resumes = resumed is not None
        self.stragglers = Stragglers(config.faults, places_of(self.ranks), self.position.step)
        self.accounts = Accounts(ledger_of(start), corpus.labels, self.ranks)
        self.warmup = warmup_of(start, config)
        spared = branching_step(config.optim, config.train.max_steps, self.warmup)
        self.copies = Copies(config.checkpoint, run_dir, self.event, spared)
        self.saver = Saver(config, run_dir, self.event, companions(run_dir), self.copies)
        self._last_saved = self.position.step
        self._owes_save = False
        resume_step = resumed.step if resumed else None
        is_main = self.ranks.is_main
        self.writer = open_writer(config, backends, run_dir, resume_step) if is_main else None
        anew = not self.resumes and config.checkpoint.resume == "never"
        where = run_dir if is_main else None
        self.times = TimeRecord(where, watch.spent, from_step=self.position.step, anew=anew)
        self._throughput = partial(throughput_of, config, backends, self.ranks, vocab_size)

    def go(self, said: list[str], notes: list[str], aside: Sequence[SetAside] = ()) -> None:
        """Restore, train to the end, and leave everything closed; `said` are notes that the command
        line has printed already."""
        try:
            report(self.run_dir, aside, self.event, self.say)
            self._restore(said, notes)
            stage, is_main = self.position.stage, self.ranks.is_main
            self.evaluation.prepare(stage, self._note, self.say, is_main=is_main)
            self.copies.make_up(self.position.step)
            self.verification = Verification(self.config, self.corpus, self.say)
            self.stop.started()
            self._make_up()
            _keep_what_is_built()
            self._train()
            with self.watch.within(SAVE):
                self.saver.finish()
            if self._last_saved != self.position.step:
                self.saver.keep_ledger(self.accounts.ledger(self.position), self.position)
            self._wait_for_copies()
            self.watch.enter(END, self.position.step)
            self._conclude()
        except TrainingDiverged:
            self.event("run_diverged", step=self.position.step)  # a sweep goes on after it
            raise
        finally:
            self.saver.close()
            self.copies.close()
            self.times.close(self.position.step)
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
            self.watch.enter(DATA, self.position.step + 1)
            for data in window.waiting_for(loader.steps(self._may_leave)):
                step = data.after.step
                self.watch.enter(FIRST_STEP if window.is_new else STEP, step)
                for kind, fields in data_events(config, self.corpus, self.position, data):
                    self.event(kind, **fields)
                if due.replays_before(config, step):
                    loops = loops_of_step(config, step)
                    replay(self.state, data, len(self.corpus.domains), self.event, loops)
                evaluate, logged = due.evaluates_after(config, step), due.logs_after(config, step)
                with self.profiler.step(step):
                    result = self._step(data, logged)
                window.add(data, result.loops)
                self.position = data.after
                self.accounts.add(data.label_tokens)
                if due.compares_after(config, step):
                    compare_replicas(self.state, step, self.event)
                self._poll()
                if self.verification.found_fault:
                    self.stop.name = "a damaged shard"
                if loader.error is not None:  # what is trained is saved before it is raised
                    self.stop.name = "no data"
                # a logged step waits for the device anyway
                stopping = self.stop.requested(self.ranks.device, now=logged)
                put_off = evaluate and stopping
                if logged or stopping:
                    put_off |= not self._log(result, data, window, evaluate and not stopping)
                stopping |= put_off
                self._owes_save |= due.saves_after(config, step, self.warmup)
                if self._owes_save or stopping:
                    with window.excluding():
                        self._save(only_sound=not stopping and step < last)
                    stopping = stopping or self.stop.requested(self.ranks.device, now=True)
                if stopping and (step < last or put_off):
                    self._leave(loader.error, data.before.stage if put_off else None)
                self.watch.enter(DATA, step + 1)
            if self.position.step < last:
                self._leave(loader.error)
            self.verification.refuse_damaged(self.ranks.device)
        except Exception as error:
            self._keep_what_is_sound(error, loader)
            raise
        finally:
            loader.close()
            self.verification.close(self.event)

    def _keep_what_is_sound(self, error: Exception, loader: Loader) -> None:
        """Save or complete, before an error ends the run, what it does not touch."""
        # not what only this rank knows of: others may wait for it
        if error is loader.error and self.ranks.world_size == 1:
            self._save()
            self.saver.finish()
        if isinstance(error, SilentError):  # what is being saved was compared before it
            with self.watch.within(SAVE):
                self.saver.finish()

    def _poll(self) -> None:
        """Complete and record what has gone on beside the step."""
        self.times.tick(self.position.step)
        self.saver.prepare(self.state.network, self.state.optimizer)
        with self.watch.within(COMPLETION):
            self.saver.poll()
        self.copies.poll()

    def _may_leave(self) -> bool:
        """Say whether to stop without the data that is waited for: other ranks may have theirs, and
        wait for this one."""
        return self.stop.name is not None and self.ranks.world_size == 1

    def _leave(self, error: BaseException | None, put_off_in: int | None = None) -> NoReturn:
        """Save and end before the last step, or before its evaluation.

        Args:
            error: why there is no more data; None: the run was asked to stop.
            put_off_in: data stage of an evaluation that was due.
        """
        self._save()
        step, last = self.position.step, self.config.train.max_steps
        if put_off_in is not None and self.ranks.is_main:
            put_off(self.run_dir, step, put_off_in)
            self.event("evaluation_put_off", step=step)
        with self.watch.within(SAVE):
            self.saver.finish()
        if error is not None:
            raise error
        raise Preempted.of(
            f"stopped after step {step} of {last}: its checkpoint is complete",
            "the run was asked to stop; nothing is lost",
            "start the same command again to continue",
        )

    def _make_up(self) -> None:
        """Evaluate where the run was stopped before it could."""
        stage = stage_put_off(self.run_dir, self.position.step) if self.resumes else None
        asked = torch.tensor([-1 if stage is None else stage], device=self.ranks.device)
        dist.broadcast(asked, 0)  # as rank 0 sees it
        if (found := int(asked)) < 0:
            return
        if not self._evaluate(found):
            self._leave(None, found)
        if self.writer is not None:
            self.writer.log({"step": self.position.step, **self.evaluation.fields(found)})
            made_up(self.run_dir)

    def _step(self, data: StepData, logged: bool) -> StepResult:
        """Train one step; loss and gradient norm stay on the device until they are logged."""
        config, optim = self.config, self.config.optim
        step = data.after.step
        loops = loops_of_step(config, step)
        measures = NOTHING
        if logged:
            measures = measures_of(config, self.ranks, step, loops, self._by_label)
        theta = config.stages[data.before.stage].rope_theta
        self.state.network.set_rope_theta(theta)
        lr = learning_rate(optim, step, config.train.max_steps, self.warmup)
        share = vocabulary_share(optim, step)
        short = named_out_of_memory(f"step {step}", smaller_step(config, self.run_dir))
        if self.captured is not None:
            is_traced = self.profiler.traces(step)
            with short:
                sums, grad_norm, measures = self.captured(
                    data.microbatches, lr, share, measures, eagerly=is_traced
                )
            self.health.note(data, sums, grad_norm)
            return StepResult(sums, grad_norm, lr, measures, loops)
        with short, self.state.compute.step():
            domains = len(self.corpus.domains)
            sums = forward_backward(self.state, data.microbatches, domains, measures, loops)
        loss, tp_size = sums[0].sum(), config.parallel.tp
        grad_norm = update(
            self.state.optimizer, optim, lr, sums[1].sum(), share, loss=loss, tp_size=tp_size
        )
        self.health.note(data, sums, grad_norm)
        return StepResult(sums, grad_norm, lr, measures, loops)

    def _log(self, result: StepResult, data: StepData, window: Window, evaluate: bool) -> bool:
        """Write a line; return False where its evaluation was broken off by a signal."""
        self._check_health()
        fields = result.fields(self.corpus.domains)
        timing = window.measure(self._throughput(data.before.stage, window.tokens_by_loops))
        device = self.ranks.device
        memory, compute = gather([peak_memory(device), self.state.compute.take()], device)
        for slow in self.stragglers.judge(data.after.step, compute):
            self.event("slow_rank", **vars(slow))
        self.verification.tell_finished(data.after.step, self.event)
        broken_off = False
        if evaluate:
            with window.excluding():
                broken_off = not self._evaluate(data.before.stage)
            evaluate = not broken_off
        if self.writer is not None:
            self.writer.log(
                {
                    "step": data.after.step,
                    "tokens": data.after.tokens,
                    **timing,
                    **self.times.fields(),
                    **fields,
                    **({"loops": result.loops} if self.config.objective.draws_loops else {}),
                    "samples": data.after.samples,
                    "stage": data.before.stage,
                    "batch_size": data.size,
                    "memory_bytes": int(max(memory)),
                    **self.stragglers.fields(compute),
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    **(self.evaluation.fields(data.before.stage) if evaluate else {}),
                }
            )
        return not broken_off

    def _evaluate(self, stage: int) -> bool:
        """Evaluate, and return whether that came to its end; what is trained is saved before it is
        said that memory does not suffice."""
        stopping = partial(self.stop.requested, self.ranks.device, now=True)
        try:
            with self.watch.within(EVALUATION):
                if not self.evaluation(self.state, stage, self.position, stopping):
                    return False
        except OutOfMemory:
            if self.ranks.world_size == 1:  # others may wait for this one in a collective
                self._save()
                self.saver.finish()
            raise
        if self.writer is not None:
            self.writer.samples(self.evaluation.samples)
        return True

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
        self.times.mark(self.position.step, sync=True)
        if self.writer is not None:
            self.writer.sync()  # lines up to this step are on disk before the checkpoint counts
        began_as = self.began_as
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
            tokens=None if began_as is None else began_as.tokens,
            specials=self.specials,
            reader=self.config.data.reader,  # type: ignore[arg-type]  # it is no longer auto
        )
        with self.watch.within(SAVE):
            self.saver.save(self.state.network, self.state.ddp, self.state.optimizer, state)
        self._last_saved = self.position.step

    def _check_health(self) -> None:
        """Record steps that were bad; raises where they were too many in a row."""
        trouble = self.health.check()
        for bad in self.health.taken():
            self.event("step_refused", **bad.fields())
        if trouble is not None:
            with self.watch.within(SAVE):
                self.saver.finish()
            raise what_ends(trouble, self.config, self.run_dir, self.position, self.event)

    def _restore(self, said: list[str], notes: list[str]) -> None:
        self.event(
            "run_started",
            **provenance(self.launch.overrides, self.backends, self.ranks.world_size),
        )
        if self.start is not None:
            checkpoint, resumes = self.start.checkpoint, self.start.resumes
            with_optimizer = resumes or self.config.checkpoint.init_optimizer
            optimizer = self.state.optimizer if with_optimizer else None
            load(checkpoint, self.state.network, optimizer, self.config, is_verified=True)
            if not with_optimizer:
                self.state.optimizer.reload_model_params()
            verb = "continues" if resumes else "starts"
            self.event(f"run_{verb}", path=str(checkpoint.path), step=checkpoint.step)
            self.say(f"{verb} from {checkpoint.path}, step {checkpoint.step}")
        for note in dict.fromkeys([*notes, *self.accounts.notes()]):
            self._note(note, is_said=note in said)
        if self.graphs.said is not None:
            self._note(self.graphs.said)
        if self.ranks.is_main:
            record(self.config, self.corpus, self.run_dir)
            for line in outlook(self.config, self.corpus, self.vocab_size, self.position):
                self.say(line)

    def _wait_for_copies(self) -> None:
        """Wait until the last checkpoint is in its store."""
        stopping = partial(self.stop.requested, self.ranks.device, now=True)
        self.copies.finish(lambda: self.watch.enter(COPY, self.position.step), stopping)

    def _conclude(self) -> None:
        """Draw the curves and say what came out."""
        if self.writer is None:
            return
        self.event("run_done", step=self.position.step)
        self.writer.close()
        losses = self.evaluation.loss, self.evaluation.unigram_entropy
        end = (self.config, self.backends, self.run_dir, self.launch, self.position)
        print_end(*end, *losses, self.times.account())

    def event(self, kind: str, **fields: Any) -> None:
        """Record an event (rank 0)."""
        if self.writer is not None:
            self.writer.event(kind, **fields)

    def _note(self, text: str, *, is_said: bool = False) -> None:
        """Record what is to be known of a run, and say it."""
        self.event("note", text=text)
        if not is_said:
            self.say(text)

    def say(self, text: str) -> None:
        if self.ranks.is_main:
            print(text, flush=True)


def _keep_what_is_built() -> None:
    """Spare collections what stays to the end: megatron-core starts one at every save, which went
    through all modules and parameters while training stood still."""
    gc.collect()
    gc.freeze()
