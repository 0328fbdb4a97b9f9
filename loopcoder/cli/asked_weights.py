"""How a verb that decodes is to run weights, where that is not as they were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from loopcoder.config.compose import compose
from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import InputError

_CACHE_DIR = "data.build.cache_dir"
_ALLOWED = ("model.num_loops", "precision", "parallel", _CACHE_DIR)
_PARALLEL = ("tp", "nproc_per_node", "timeout_s", "report_after_s")
"""Fields of `parallel` that change something here; the others lay out training."""


@dataclass(frozen=True)
class AskedWeights:
    """What a command line says besides which weights."""

    num_loops: int | None
    """None: as many as were trained."""
    precision: Literal["fp32", "bf16"] | None
    """None: what suits this machine."""
    parallel: ParallelConfig
    cache: Path
    """Where what has a URL is fetched to."""

    @classmethod
    def of(cls, overrides: Sequence[str], config_dir: Path | None = None) -> AskedWeights:
        """Read what stands behind a verb.

        Raises:
            InputError: an override is wrong, or would change nothing here.
        """
        given = {override.lstrip("+~").partition("=")[0]: override for override in overrides}
        for key, override in given.items():
            if key not in _ALLOWED and not key.startswith("parallel."):
                raise InputError.of(
                    override,
                    f"a model is run as it was trained, but for model.num_loops, precision and "
                    f"parallel.tp; and {_CACHE_DIR} is where weights from a store are kept",
                    "leave it out",
                )  # fmt: skip
        asked = compose(overrides, config_dir)
        if "precision" in given and asked.precision.name not in ("fp32", "bf16"):
            why = "weights are run in 32 or 16 bits"
            raise InputError.of(given["precision"], why, "precision=bf16")
        p = asked.parallel
        wanted = replace(ParallelConfig(), tp=p.tp, nproc_per_node=p.tp)
        others = [
            override
            for key, override in given.items()
            if key.startswith("parallel.") and key.removeprefix("parallel.") not in _PARALLEL
        ]
        others = others or [
            f"parallel.{key}={str(getattr(p, key)).lower()}"
            for key in ("pp", "cp", "sp", "nodes", "nproc_per_node")
            if getattr(p, key) not in (None, getattr(wanted, key))
        ]
        if others:
            raise InputError.of(
                " ".join(others),
                "for decoding a model is split by its heads alone, over the GPUs of one machine",
                "parallel.tp=N, and no more of it",
            )
        precision = cast(Literal["fp32", "bf16"], asked.precision.name)
        return cls(
            num_loops=asked.model.num_loops if "model.num_loops" in given else None,
            precision=precision if "precision" in given else None,
            parallel=p,
            cache=Path(asked.data.build.cache_dir).expanduser(),
        )


def place_in(overrides: Sequence[str], verb: str, example: str = "") -> tuple[str, list[str]]:
    """Return what `checkpoint=` names, and the other overrides.

    Args:
        example: What the verb needs besides, for the message.

    Raises:
        InputError: none is named, or several.
    """
    given = [o.partition("=")[2] for o in overrides if o.startswith("checkpoint=")]
    others = [o for o in overrides if not o.startswith("checkpoint=")]
    if len(given) == 1 and given[0]:
        return given[0], others
    bare = next((o for o in others if "=" not in o), "DIR")
    raise InputError.of(
        f"loopcoder {verb} {' '.join(overrides)}",
        "one checkpoint or folder of weights is named, by checkpoint=",
        f"loopcoder {verb} checkpoint={bare} {example}".rstrip(),
    )
