"""loopcoder pretrains looped code models (Parallel Loop Transformers) on Megatron-core.

In a notebook or a script:

    import loopcoder

    run = loopcoder.load("runs/plt_tiny-r2-cc8f20c8a9")   # a run's folder, or a checkpoint
    run.config, run.step, run.metrics()                   # what was trained, and how it went
    run.logits("def main():")                             # [S, vocabulary]
    run.loss("def main():")                               # [R, S-1]: each token, after each loop
    run.generate("def main():", max_tokens=64).text       # what it writes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loopcoder.loaded import LoadedRun, load

__all__ = ["LoadedRun", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds, and the processes of the data pipeline must not have it.
    if name in ("LoadedRun", "load"):
        from loopcoder import loaded

        return getattr(loaded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
