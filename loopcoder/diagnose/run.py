"""Through the held-out sequences of a checkpoint: from its folder to a `Diagnosis`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, cast

import torch
import torch.distributed as dist

from loopcoder import __version__
from loopcoder.backends import detect
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.config.schema import Config, ModelConfig
from loopcoder.config.this_machine import for_this_machine
from loopcoder.data.corpus import Corpus
from loopcoder.data.sampler import trained_stage
from loopcoder.diagnose.capture import Capture
from loopcoder.diagnose.measurable import loops_to_measure, precision_of
from loopcoder.diagnose.passing import run_loops
from loopcoder.diagnose.results import Diagnosis
from loopcoder.diagnose.sequences import HeldOutData
from loopcoder.diagnose.series import Groups, exits_of, series_of
from loopcoder.diagnose.table import Merged, Table
from loopcoder.errors import counted
from loopcoder.loaded import LoadedRun, load_part
from loopcoder.origin import commit_of
from loopcoder.parallel.mcore import Ranks
from loopcoder.train.out_of_memory import named_out_of_memory
from loopcoder.train.window import peak_memory

Say = Callable[[str], None]


def diagnose(
    checkpoint: Checkpoint,
    config: Config,
    corpus: Corpus,
    settings: DiagnoseConfig,
    ranks: Ranks,
    name: str,
    say: Say,
) -> Diagnosis | None:
    """Measure a checkpoint. All ranks must call it; it returns what was found on rank 0.

    Args:
        config: Of its run, with the data, precision and layout that were asked for.
        corpus: Its held-out documents are gone through.
        name: How reports call it.
        say: Tells how far it is.

    Raises:
        InputError: the checkpoint is damaged, or something cannot be measured as asked.
        OutOfMemory: a batch did not fit.
    """
    loops = loops_to_measure(config.model, settings)
    run = load_part(checkpoint, runnable(config, loops), ranks)
    return measure(run, config, corpus, settings, name, say)


def measure(
    run: LoadedRun,
    config: Config,
    corpus: Corpus,
    settings: DiagnoseConfig,
    name: str,
    say: Say,
) -> Diagnosis | None:
    """Measure a model that is loaded with the config `runnable`; see `diagnose`."""
    began, ranks, checkpoint = time.perf_counter(), run.state.ranks, run.checkpoint
    loops = loops_to_measure(config.model, settings)
    saved = checkpoint.state()
    position = saved.position
    stage = trained_stage(config.stages, position)
    run.model.set_rope_theta(config.stages[stage].rope_theta)
    data = HeldOutData.of(config, corpus, settings, stage)
    tables = _gone_through(run, config, data, loops, say)
    if tables is None:
        return None
    merged = tables[0].merged(tables[1:])
    groups = Groups(data.domains, data.languages, data.mixture)
    series, missing = series_of(merged, groups, loops)
    return Diagnosis(
        name=name,
        checkpoint=checkpoint.place,
        step=checkpoint.step,
        trained_tokens=position.tokens,
        model=asdict(config.model) | {"vocab_size": saved.vocab_size},
        training={
            "objective": asdict(run.trained.objective),
            "optim": asdict(run.trained.optim),
            "seed": run.trained.seed,
            "corpus": saved.corpus,
            "tokens": position.tokens,
        },
        loops=loops,
        data=data.described(corpus) | {"tokens": _tokens(merged)},
        made={
            "version": __version__,
            "commit": commit_of(),
            "precision": run.config.precision.name,
            "device": _device_name(ranks.device),
            "processes": ranks.world_size,
            "layout": {k: getattr(config.parallel, k) for k in ("tp", "pp")},
            "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_bytes": peak_memory(ranks.device),
        },
        series=series,
        exits=exits_of(merged, groups),
        notes=[*data.notes(), *_notes(config.model, loops), *missing],
    )


def runnable(config: Config, loops: int) -> Config:
    """Return a config whose network has a loop more than is run: after its last loop a network
    reads the head of all tokens at once."""
    model = config.model
    if model.num_loops == 1:  # no gates, and its only loop is that of any model
        model = replace(model, kv_sharing="own")
    runnable = replace(config, model=model)
    return for_this_machine(
        runnable,
        detect(),
        _loops_run(config.model, loops) + 1,
        precision_of(config),
        config.parallel,
    )


def _loops_run(model: ModelConfig, loops: int) -> int:
    """One more than is measured, for the gap to a fixed point, where there can be one more."""
    return loops if model.num_loops == 1 else loops + 1


@torch.no_grad()
def _gone_through(
    run: LoadedRun, config: Config, data: HeldOutData, loops: int, say: Say
) -> list[Table] | None:
    """Return the tables of all ranks, on rank 0."""
    ranks, table = run.state.ranks, Table()
    capture = Capture(config.model, loops, ranks, table)
    micro = config.train.micro_batch_size
    fix = "train.micro_batch_size=1" if micro > 1 else "parallel=tp2, or a GPU with more memory"
    with named_out_of_memory(f"a diagnosis ({counted(micro, 'sequence')} at once)", fix):
        for done, (domain, batch) in enumerate(data.batches(ranks, micro)):
            subsets = data.subsets(domain, batch, ranks.device)
            there = batch.to(ranks.device)
            languages = data.language_of.to(ranks.device)[there.label_ids]
            capture.begin(there, domain, batch.sample_ids, languages, subsets)
            run_loops(run.model, there, _loops_run(config.model, loops), capture, ranks)
            capture.end()
            data.tell(done + 1, micro * ranks.dp_size, say)
    if ranks.world_size == 1:
        return [table]
    tables: list[Any] | None = [None] * ranks.world_size if ranks.is_main else None
    dist.gather_object(table, tables)
    return cast("list[Table] | None", tables)


def _tokens(merged: Merged) -> int:
    """Return how many tokens were measured."""
    losses = [i for c, i in merged.columns.items() if (c.measure, c.loop) == ("loss", 1)]
    return int(merged.counts[:, losses].sum())


def _notes(model: ModelConfig, loops: int) -> Iterator[str]:
    if model.num_loops == 1:
        yield (
            "R = 1: there is one loop, so no gate, no change from loop to loop, and no further "
            "loop whose distance would be the fixed-point gap"
        )
    elif loops == 1:
        yield "one loop is measured: nothing that compares loops is defined"
    if model.num_loops > 1 and loops > model.num_loops:
        yield f"loops {model.num_loops + 1} to {loops} are more than the model was trained with"
    if not model.has_gates and model.num_loops > 1:
        yield "model.kv_sharing=own: every loop attends to its own keys and values; no gate"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
