"""Packages of Hugging Face without the network."""

from __future__ import annotations

import os
import sys

_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_READ_ALREADY = ("huggingface_hub.constants", "datasets.config")
"""Modules that keep what HF_HUB_OFFLINE was when they were imported."""


def offline() -> None:
    """Keep those packages from the network; before they are imported, if possible."""
    os.environ |= dict.fromkeys(_VARIABLES, "1") | {"TOKENIZERS_PARALLELISM": "false"}
    for name in _READ_ALREADY:
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
