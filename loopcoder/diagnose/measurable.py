"""What can be measured of a checkpoint; without torch, so that it is known before anything is."""

from __future__ import annotations

from typing import Any, Literal

from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.config.schema import Config, ModelConfig
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError, counted


def loops_to_measure(model: ModelConfig, settings: DiagnoseConfig, place: str = "") -> int:
    """Return how many loops are measured.

    Args:
        place: Of the checkpoint, for the message.

    Raises:
        InputError: the model cannot run so many.
    """
    loops = settings.loops or model.num_loops
    if model.num_loops == 1 and loops > 1:
        raise InputError.of(
            f"diagnose.loops={loops} of {place or 'a model'}, which was trained with one loop",
            "later loops mix two attentions by gates, and it has none",
            "diagnose.loops=1, or leave it out"
            + (f"; or a command without checkpoint={place}, and diagnosis=FILE" if place else ""),
        )
    return loops


def domains_to_measure(config: Config, corpus: Corpus, settings: DiagnoseConfig) -> list[str]:
    """Return the domains of a corpus that a run was trained on.

    Raises:
        InputError: fewer sequences are asked for than there are domains.
    """
    trained = {domain for stage in config.stages for domain in stage.mixture}
    domains = [domain for domain in corpus.domains if domain in trained]
    if settings.sequences < len(domains):
        raise InputError.of(
            f"diagnose.sequences={settings.sequences} of {counted(len(domains), 'domain')}",
            f"there is one of each at least: {', '.join(domains)}",
            f"diagnose.sequences={len(domains)}",
        )
    return domains


def precision_of(config: Config) -> Literal["fp32", "bf16"] | None:
    """Return the number format of a diagnosis; None: what suits the machine, for a run in FP8."""
    name: Any = config.precision.name
    return name if name in ("fp32", "bf16") else None
