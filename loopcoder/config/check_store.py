"""Rules of the store that a run copies its checkpoints to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loopcoder.config.schema import Config
from loopcoder.errors import Problem


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
    if "://" not in asked.store:
        path = Path(asked.store).expanduser().absolute()
        yield Problem(
            f"checkpoint.store={asked.store}",
            "copies go to a URL, in whose place a folder could be one by mistake",
            f"checkpoint.store=s3://BUCKET/RUN, or checkpoint.store=file://{path} for a folder",
        )
    elif asked.store.startswith("file://") and config.run_dir is not None:
        folder = Path(asked.store.removeprefix("file://")).resolve()
        if folder.is_relative_to(Path(config.run_dir).expanduser().resolve()):
            yield Problem(
                f"checkpoint.store={asked.store} is in run_dir={config.run_dir}",
                "what takes the one would take the other",
                "checkpoint.store=URL of another disk",
            )
