"""The train loop: build, restore, then step by step until done or asked to stop.

corpus + config -> Loader (a thread) -> microbatches -> forward_backward -> update -> metrics
                                                     -> evaluation, checkpoint, plots when due
"""

from __future__ import annotations

import logging
import os
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from loopcoder.backends import Backends
from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.load import check_fits, find_start
from loopcoder.config.compose import save_config
from loopcoder.config.identity import config_hash
from loopcoder.config.schema import VOCAB_MULTIPLE, Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.loader import Loader, StepData
from loopcoder.data.sampler import Position, enter_stage
from loopcoder.errors import EXIT_DONE, InputError, Preempted
from loopcoder.metrics.plots import plot_run
from loopcoder.metrics.sinks import build_sinks
from loopcoder.metrics.throughput import Throughput, peak_flops
from loopcoder.metrics.writer import MetricsWriter
from loopcoder.model.probe import LoopProbe
from loopcoder.parallel import mcore
from loopcoder.train.lock import only_run_in
from loopcoder.train.signals import StopSignal


def train(config: Config, corpus: Corpus, backends: Backends, run_dir: Path) -> int:
    """Train, and return an exit code.

    The world is given by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; every rank
    calls this. Raises LoopcoderError with what mends it.
    """
    with ExitStack() as held:
        if os.environ.get("RANK", "0") == "0":
            held.enter_context(only_run_in(run_dir))
        return _train_alone(config, corpus, backends, run_dir)


def _train_alone(config: Config, corpus: Corpus, backends: Backends, run_dir: Path) -> int:
    vocab_size = padded_vocabulary(config, corpus)
    start, resumes = find_start(config, run_dir)
    notes = [] if start is None else check_fits(start, config, vocab_size, corpus, resumes=resumes)
    stop = StopSignal()
    _quieten()
    mcore.start_processes()
    try:
        Run(config, corpus, backends, run_dir, vocab_size, start if resumes else None, stop).go(
            start, notes
        )
    finally:
        mcore.shutdown()
    return EXIT_DONE


def padded_vocabulary(config: Config, corpus: Corpus) -> int:
    """Return the rows of embedding and head. Raises InputError if the tokenizer does not fit
    them."""
    wanted = -(-corpus.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    given = config.model.vocab_size
    if given is not None and given < corpus.vocab_size:
        raise InputError.of(
            f"model.vocab_size={given}, {corpus.tokenizer_path} has {corpus.vocab_size} tokens",
            "ids beyond the embedding have no row",
            f"model.vocab_size={wanted}, or model.vocab_size=null",
        )
    return given or wanted


class Run:
    """One process of a run: its state, its data and, on rank 0, its records."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        backends: Backends,
        run_dir: Path,
        vocab_size: int,
        resumed: Checkpoint | None,
        stop: StopSignal,
    ):
        # megatron-core is imported from here on, after the CPU shim that initialise() installs.
        self.ranks = mcore.initialise(config.parallel, config.seed)
        from loopcoder.checkpoint.save import Saver
        from loopcoder.optim.optimizer import Health
        from loopcoder.train.profiling import StepProfiler
        from loopcoder.train.state import build_state
        from loopcoder.train.validation import Evaluator

        self.config, self.corpus, self.run_dir = config, corpus, run_dir
        self.backends = backends
        self.vocab_size, self.stop = vocab_size, stop
        self.state = build_state(config, self.ranks, vocab_size)
        self.health = Health(config.optim, self.ranks.device)
        self.evaluator = Evaluator(config, corpus)
        self.saver = Saver(config, run_dir, self.event)
        self.profiler = StepProfiler(config.profile, run_dir, self.ranks.rank)
        self.position = enter_stage(config.stages, Position())
        if resumed is not None:
            self.position = Position(**resumed.state()["position"])
        self.writer = self._writer(resumed) if self.ranks.is_main else None
        name = backends.gpu_name if self.ranks.device.type == "cuda" else None
        self._peak_flops = peak_flops(config.hardware, name, config.precision.name)  # type: ignore[arg-type]
        self._last_saved = resumed.step if resumed else 0
        self._val: dict[str, float] = {}

    def go(self, start: Checkpoint | None, notes: list[str]) -> None:
        """Restore, train to the end, and leave everything closed."""
        try:
            self._restore(start, notes)
            self._train()
            self.saver.finish()
            self._conclude()
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
                evaluate = _due(step, config.eval.interval) or (step == last and config.eval.at_end)
                logged = _due(step, config.logging.interval) or evaluate or step == last
                with self.profiler.step(step):
                    record = self._step(data, self._probe() if logged else None)
                window.add(data)
                self.position = data.after
                self.saver.poll()
                stopping = self.stop.requested(self.ranks.device)
                if logged or stopping:
                    self._log(record, data, window, evaluate)
                save = _due(step, config.checkpoint.interval) or (
                    step == last and config.checkpoint.save_at_end
                )
                if save or stopping:
                    with window.excluding():
                        self._save()
                if stopping and step < last:
                    self.saver.finish()
                    raise Preempted(
                        f"stopped after step {step} of {last}: its checkpoint is complete\n"
                        "    why: the run was asked to stop; nothing is lost\n"
                        "    fix: start the same command again to continue"
                    )
        finally:
            loader.close()

    def _probe(self) -> LoopProbe | None:
        log = self.config.logging
        if not (log.loop_losses or log.loop_gradients):
            return None
        loops, device = self.config.model.num_loops, self.ranks.device
        return LoopProbe(loops, device, losses=log.loop_losses, gradients=log.loop_gradients)

    def _step(self, data: StepData, probe: LoopProbe | None) -> dict[str, Any]:
        """Train one step; loss and gradient norm stay on the device until they are logged."""
        from loopcoder.optim.optimizer import update
        from loopcoder.optim.schedule import learning_rate
        from loopcoder.train.step import forward_backward

        config = self.config
        theta = config.stages[data.before.stage].rope_theta
        self.state.network.set_rope_theta(theta)
        sums = forward_backward(self.state, data.microbatches, len(self.corpus.domains), probe)
        lr = learning_rate(config.optim, data.after.step, config.train.max_steps)
        grad_norm = update(self.state.optimizer, config.optim, lr, sums[1].sum())
        self.health.note(grad_norm, data.after.step)
        return {"sums": sums, "lr": lr, "grad_norm": grad_norm, "probe": probe}

    def _log(self, record: dict[str, Any], data: StepData, window: Window, evaluate: bool) -> None:
        self.health.check()
        loss, tokens = record.pop("sums").tolist()
        probe: LoopProbe | None = record.pop("probe")
        record["grad_norm"] = record["grad_norm"].item()
        by_domain = {
            f"loss/{d}": s / n
            for d, s, n in zip(self.corpus.domains, loss, tokens, strict=True)
            if n > 0
        }
        timing = window.measure(self._throughput(data.before.stage))
        memory = _memory_bytes(self.ranks.device)
        if evaluate:
            with window.excluding():
                self._val = self.evaluator(self.state)
        if self.writer is not None:
            self.writer.log(
                {
                    "step": data.after.step,
                    "loss": sum(loss) / max(sum(tokens), 1.0),
                    **record,
                    "tokens": data.after.tokens,
                    **timing,
                    **by_domain,
                    **(probe.fields(max(sum(tokens), 1.0)) if probe else {}),
                    "samples": data.after.samples,
                    "stage": data.before.stage,
                    "batch_size": data.size,
                    "memory_bytes": memory,
                    **(self._val if evaluate else {}),
                }
            )

    def _throughput(self, stage: int) -> Throughput:
        from loopcoder.model.flops import train_flops_per_token

        seq_length = self.config.stages[stage].seq_length
        causal, full = train_flops_per_token(self.config.model, self.vocab_size, seq_length)
        return Throughput(causal, full, self._peak_flops, self.ranks.world_size)

    def _save(self) -> None:
        if self._last_saved == self.position.step:
            return
        self.health.check()
        if self.writer is not None:
            self.writer.sync()  # lines up to this step are on disk before the checkpoint counts
        self.saver.save(
            self.state.network,
            self.state.ddp,
            self.state.optimizer,
            {
                "step": self.position.step,
                "position": self.position.as_dict(),
                "num_loops": self.config.model.num_loops,
                "vocab_size": self.vocab_size,
                "tokenizer_hash": self.corpus.tokenizer_hash,
                "tokenizer_path": str(self.corpus.tokenizer_path),
                "corpus": self.corpus.fingerprint,
                "config_hash": config_hash(self.config),
                "world_size": self.ranks.world_size,
            },
        )
        self._last_saved = self.position.step

    def _restore(self, start: Checkpoint | None, notes: list[str]) -> None:
        resumes = self._last_saved > 0
        for path in checkpoints.incomplete(self.run_dir / "checkpoints"):
            self.event("checkpoint_incomplete", path=str(path))
            self.say(f"{path.name} has no manifest: a save was interrupted; it is not used")
        if start is not None:
            from loopcoder.checkpoint.load import load

            with_optimizer = resumes or self.config.checkpoint.init_optimizer
            load(
                start,
                self.state.network,
                self.state.optimizer if with_optimizer else None,
                self.config,
            )
            if not with_optimizer:
                self.state.optimizer.reload_model_params()
            verb = "continues" if resumes else "starts"
            self.event(f"run_{verb}", path=str(start.path), step=start.step)
            self.say(f"{verb} from {start.path}")
        for note in notes:
            self.event("note", text=note)
            self.say(note)
        if self.ranks.is_main:
            save_config(self.config, self.run_dir / "config.yaml")

    def _writer(self, resumed: Checkpoint | None) -> MetricsWriter:
        step = resumed.step if resumed else None
        sinks = build_sinks(
            self.config.logging,
            self.backends,
            run_dir=self.run_dir,
            config=asdict(self.config),
            max_steps=self.config.train.max_steps,
            resume_step=step,
        )
        return MetricsWriter(self.run_dir, sinks=sinks, resume_step=step)

    def _conclude(self) -> None:
        """Draw the curves and say what came out and what to try next."""
        if self.writer is None:
            return
        self.event("run_done", step=self.position.step)
        self.writer.close()
        plots = self.config.logging.plots and self.backends.has("matplotlib")
        drawn = plot_run(self.run_dir) if plots else []
        print(f"\ndone: {self.position.step} steps, {self.position.tokens:,} tokens")
        if self._val:
            loss, entropy = self._val["val/loss"], self.evaluator.unigram_entropy()
            side = "under" if loss <= entropy else "over"
            print(
                f"validation loss {loss:.3f} nats a token, "
                f"{abs(entropy - loss):.2f} {side} the unigram entropy {entropy:.2f}"
            )
        for path in [*drawn, self.run_dir / "metrics.jsonl", self.run_dir / "checkpoints"]:
            print(f"  {path}")
        loops = self.config.model.num_loops
        print(
            f"next: loopcoder train -m model.num_loops={loops},{loops + 1}"
            "   (what does another loop bring?)"
        )

    def event(self, kind: str, **fields: Any) -> None:
        """Record an event (rank 0)."""
        if self.writer is not None:
            self.writer.event(kind, **fields)

    def say(self, text: str) -> None:
        if self.ranks.is_main:
            print(text, flush=True)


class Window:
    """Wall time, waiting for data and tokens since the last record; evaluation and saving do not
    count."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._tokens = self._steps = 0
        self._waited_s = self._excluded_s = 0.0

    def waiting_for(self, steps: Iterator[StepData]) -> Iterator[StepData]:
        """Yield the steps, adding up how long each takes to come."""
        while True:
            before = time.perf_counter()
            data = next(steps, None)
            if data is None:
                return
            self._waited_s += time.perf_counter() - before
            yield data

    def add(self, data: StepData) -> None:
        """Count a step."""
        self._steps += 1
        self._tokens += data.after.tokens - data.before.tokens

    @contextmanager
    def excluding(self) -> Iterator[None]:
        """Leave what happens inside out of the step time."""
        before = time.perf_counter()
        yield
        self._excluded_s += time.perf_counter() - before

    def measure(self, throughput: Throughput) -> dict[str, float]:
        """Return the timing fields of a record, and start anew."""
        seconds = max(time.perf_counter() - self._began - self._excluded_s, 1e-9)
        fields = {
            "step_time_s": seconds / max(self._steps, 1),
            "data_wait_s": self._waited_s / max(self._steps, 1),
            **throughput.measure(self._tokens, seconds),
        }
        self._reset()
        return fields


def _due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


def _memory_bytes(device: torch.device) -> int:
    """Peak memory so far of the rank that has most: of its GPU, or resident on a machine without
    one."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    most = torch.tensor(peak, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def _quieten() -> None:
    """Silence what megatron-core says at every import about packages that we resolve ourselves."""
    for module in ("megatron", "torch.distributed"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message="MLP requires ffn_hidden_size")
    for name in ("megatron.core", "torch.distributed.checkpoint", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
