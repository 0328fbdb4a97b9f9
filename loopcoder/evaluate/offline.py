"""Packages of Hugging Face without the network."""

from __future__ import annotations

import os
import sys

_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_READ_ALREADY = ("huggingface_hub.constants", "datasets.config")
"""Modules that keep what HF_HUB_OFFLINE was when they were imported."""


def offline() -> None:
    """Keep those packages from the network, and their bars of progress from files."""
    os.environ |= dict.fromkeys(_VARIABLES, "1") | {"TOKENIZERS_PARALLELISM": "false"}
    for name in _READ_ALREADY:
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    if not sys.stderr.isatty():
        os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
