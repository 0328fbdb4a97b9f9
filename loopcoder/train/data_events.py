"""What changes in the data of a run from one step to the next, for its record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import Config
from loopcoder.data.blend import blend_at
from loopcoder.data.corpus import Corpus
from loopcoder.data.loader import StepData
from loopcoder.data.sampler import Position
from loopcoder.errors import counted


def data_events(
    config: Config, corpus: Corpus, position: Position, data: StepData
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kind and the fields of the events of a step.

    Args:
        position: Where the run stood after the step before.
    """
    if position.stage > 0 and position.sample == 0:
        text = stage_begins(config, corpus, position)
        yield "data_stage", {"stage": position.stage, "step": data.after.step, "text": text}
    for skipped in data.before.skipped[len(position.skipped) :]:
        yield "samples_skipped", asdict(skipped)


def stage_begins(config: Config, corpus: Corpus, position: Position) -> str:
    """Return what to say at the first sample of a stage that is not the first one."""
    stage = config.stages[position.stage]
    mixture = ", ".join(f"{d} {n}" for d, n in lowest_terms(stage.mixture).items())
    number = f"data stage {position.stage + 1} of {len(config.stages)}"
    said = [f"{number}: {mixture}; sequences of {counted(stage.seq_length, 'token')}"]
    for domain, left_out in blend_at(config, corpus, position).left_out.items():
        before = (position.before or {}).get(domain, ())
        if before and left_out and before[-1][0] != stage.seq_length:
            length, sequences = left_out[-1]
            said.append(
                f"{domain} goes on with its next stretch, {counted(sequences, 'sequence')} of "
                f"{counted(length, 'token')} left out in this epoch"
            )
    return "; ".join(said)
