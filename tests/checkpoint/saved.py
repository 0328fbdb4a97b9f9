"""Real checkpoints of a small model for tests, and changes that their manifest agrees to."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.storage.files import synced_entry
from tests.checkpoint.states import state_at
from tests.configs import small_config
from tests.dist.layouts import VOCAB
from tests.dist.test_checkpoints import steps


def build_small(**model: Any) -> tuple[Any, Any]:
    """Return a config and its state, in the world of one process of the fixture `ranks`."""
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state

    config = small_config(model)
    return config, build_state(config, mcore.initialise(config.parallel, 1), VOCAB)


def save_small(run_dir: Path, seed: int, *at: int) -> Any:
    """Train a small model and save it after these steps; return its config."""
    from loopcoder.checkpoint.save import Saver

    config, state = build_small()
    saver = Saver(config, run_dir, lambda *_, **__: None)
    done = 0
    for step in at or (2,):
        steps(config, state, range(done, step), seed)
        done = step
        about = state_at(step, vocab_size=VOCAB, num_loops=config.model.num_loops)
        saver.save(state.network, state.ddp, state.optimizer, about)
    return config


def load_small(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint of `save_small` with its optimizer; return the state."""
    from loopcoder.checkpoint.load import load

    config, state = build_small()
    load(checkpoint, state.network, state.optimizer, config)
    return state


def mend_manifest(folder: Path) -> None:
    """Make the manifest say of every file what it is now."""
    files = {p.name: synced_entry(p) for p in folder.iterdir() if p.name != layout.MANIFEST}
    (folder / layout.MANIFEST).write_text(json.dumps({"files": files}))


def change_metadata(folder: Path, change: Callable[[Any], Any]) -> None:
    """Write `.metadata` anew, as what `change` returns for what it held."""
    path = folder / ".metadata"
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))
    mend_manifest(folder)
