"""The end of every build: what all corpora have beside their shards, and the manifest, last."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data_pipeline.report import write_report
from data_pipeline.shuffle.validate import manifest_problems
from data_pipeline.tasks.work import Result, Work
from data_pipeline.tokenizer.count import Tokenizer, encoder_of
from loopcoder.data.corpus import REPORT
from loopcoder.data.manifest import MANIFEST
from loopcoder.data.places import TOKEN_BYTES, TOKENIZER
from loopcoder.errors import InputError
from loopcoder.storage.files import write_bytes, write_json


@dataclass(frozen=True)
class Finished(Result):
    """The corpus is complete."""

    stage: ClassVar[str] = "finish"
    told: list[str]
    """What the user should know of the corpus, a line each."""


def seal(work: Work, manifest_of: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Add the tokenizer and the report to the folder of a corpus, then its manifest; return that.

    Args:
        manifest_of: Makes the manifest, once all other files are there.

    Raises:
        InputError: the corpus is not what it should be.
    """
    folder = work.corpus
    shutil.copyfile(work.done(Tokenizer).file(work.tokenizer), folder / TOKENIZER)
    # through a buffer: on a full disk np.save raises an OSError without errno
    buffer = io.BytesIO()
    np.save(buffer, encoder_of(work).token_bytes)
    write_bytes(folder / TOKEN_BYTES, buffer.getvalue())
    manifest = manifest_of()
    fix = f"delete {work.folder} and start the same command again"
    problems = manifest_problems(folder, manifest, fix)
    if problems:
        raise InputError(problems)
    # left out of the files: it is for people, and may be written anew
    write_report(manifest, folder / REPORT)
    write_json(folder / MANIFEST, manifest)
    return manifest
