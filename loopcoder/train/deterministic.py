"""Kernels that give the same bits each time (`train.deterministic`).

On a CPU every kernel does. On a GPU those that sum with atomics do not, which is the default of
attention backwards in Transformer Engine; ours have none.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils import deterministic

from loopcoder.errors import InputError

_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "NCCL_ALGO": ("Ring", "Tree"),
}
"""What cuBLAS, Transformer Engine and NCCL have to be told, before they start. The first is taken
where none is set; sums of NCCL's other algorithms depend on what arrives first."""


def use_deterministic_algorithms() -> None:
    """Use kernels that give the same bits each time, in this process from now on.

    An operation of PyTorch that has none raises RuntimeError when it is reached. Call it before
    anything runs on the GPU.

    Raises:
        InputError: the environment asks for the opposite.
    """
    for name, allowed in _VARIABLES.items():
        if os.environ.setdefault(name, allowed[0]) not in allowed:
            raise InputError.of(
                f"train.deterministic=true, and the environment has {name}={os.environ[name]}",
                "with that setting sums differ from one time to the next",
                f"unset {name}, or train.deterministic=false",
            )
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory that it has not written; filling it would cost bandwidth
    settings: Any = deterministic
    settings.fill_uninitialized_memory = False
