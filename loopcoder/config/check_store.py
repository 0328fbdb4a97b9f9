"""Rules of the store that a run copies its checkpoints to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loopcoder.config.schema import Config
from loopcoder.errors import Problem
from loopcoder.storage.remote import is_stored


def check_store(config: Config) -> Iterator[Problem]:
    """Yield what of `checkpoint.store` cannot be honoured, as far as the config says."""
    asked = config.checkpoint
    if asked.store is None:
        if asked.store_keep is not None:
            yield Problem(
                f"checkpoint.store_keep={asked.store_keep} checkpoint.store=null",
                "there is no store whose copies could go",
                "checkpoint.store=URL, or checkpoint.store_keep=null",
            )
        return
    if not is_stored(asked.store):
        path = Path(asked.store).expanduser().absolute()
        yield Problem(
            f"checkpoint.store={asked.store}",
            "copies go to a URL, in whose place a folder could be one by mistake",
            f"checkpoint.store=s3://BUCKET/RUN, or checkpoint.store=file://{path} for a folder",
        )
        return
    protocol, _, place = asked.store.partition("://")
    if protocol in ("file", "local") and config.run_dir is not None:
        store, run_dir = Path(place).resolve(), Path(config.run_dir).expanduser().resolve()
        if store.is_relative_to(run_dir) or run_dir.is_relative_to(store):
            inner, outer = f"checkpoint.store={asked.store}", f"run_dir={config.run_dir}"
            if not store.is_relative_to(run_dir):
                inner, outer = outer, inner
            yield Problem(
                f"{inner} is in {outer}",
                "what takes the one would take the other",
                "checkpoint.store=URL of another disk",
            )
