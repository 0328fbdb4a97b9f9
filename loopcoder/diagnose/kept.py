"""Several checkpoints in one command; what is finished of them stays so when it is interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from loopcoder import __version__
from loopcoder.checkpoint.agreed import of_rank_0
from loopcoder.checkpoint.format import MANIFEST, Checkpoint
from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.diagnose.measurable import loops_to_measure
from loopcoder.diagnose.results import FORMAT, Diagnosis, read, write
from loopcoder.diagnose.run import diagnose, runnable
from loopcoder.errors import InputError
from loopcoder.parallel.mcore import Ranks


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is to be measured."""

    name: str
    """How reports call it, and its file."""
    checkpoint: Checkpoint
    config: Config
    """Of its run, with what was asked for."""
    corpus: Corpus


def diagnose_all(
    subjects: Sequence[Subject],
    settings: DiagnoseConfig,
    ranks: Ranks,
    output: Path,
    say: Callable[[str], None],
) -> list[Diagnosis]:
    """Measure checkpoints, and write `output`/NAME.json of each. All ranks must call it.

    One that is there is kept, if it is of the same checkpoint, data and settings.

    Args:
        say: Is called on rank 0.

    Returns:
        the diagnoses, on rank 0; [] on other ranks.
    """
    found = []
    for subject in subjects:
        path = output / f"{subject.name}.json"
        key = _key(subject, settings)
        kept = of_rank_0(partial(_kept, path, key))
        if kept is not None:
            if ranks.is_main:
                say(f"{path}: of the same checkpoint, data and settings; kept")
                found.append(kept)
            continue
        if ranks.is_main:
            say(f"{subject.name}: {subject.checkpoint.place}")
        arguments = subject.checkpoint, subject.config, subject.corpus, settings, ranks
        diagnosis = diagnose(*arguments, subject.name, say if ranks.is_main else _silent)
        if diagnosis is not None:
            diagnosis = replace(diagnosis, made=diagnosis.made | {"key": key})
            write(path, diagnosis)
            found.append(diagnosis)
    return found


def _kept(path: Path, key: str) -> Diagnosis | None:
    """Return what was found before, if it would be the same today."""
    try:
        (there,) = read([path])
    except InputError:
        return None  # there is none, or one that is measured anew
    return there if there.made.get("key") == key else None


def _key(subject: Subject, settings: DiagnoseConfig) -> str:
    """Name what the numbers depend on: not the layout, nor how many sequences are at once."""
    config = subject.config
    loops = loops_to_measure(config.model, settings)
    manifest = (subject.checkpoint.path / MANIFEST).read_bytes()
    parts = {
        "format": FORMAT,
        "checkpoint": hashlib.sha256(manifest).hexdigest(),
        "settings": asdict(settings) | {"name": subject.name},
        "corpus": subject.corpus.fingerprint,
        "stages": [asdict(stage) for stage in config.stages],
        "documents": [config.data.isolate_documents, config.data.mask_document_start],
        "labels": config.logging.max_labels,
        "precision": runnable(config, loops).precision.name,
        "version": __version__,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _silent(_: str) -> None: ...
