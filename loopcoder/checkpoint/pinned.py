"""The corpus that a run keeps, whatever has become of its sources.

What a corpus is made of can change under a run: a source folder, installed packages, an archive. A
run that goes on takes the corpus that it was trained on as long as that is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.config.compose import load_config
from loopcoder.config.data import DataConfig
from loopcoder.config.identity import corpus_fields
from loopcoder.config.schema import Config
from loopcoder.data.corpus import MANIFEST, TOKEN_BYTES, TOKENIZER, Corpus, read_manifest
from loopcoder.errors import InputError
from loopcoder.storage.files import write_json

RECORD = "corpus.json"
"""Name of the record in a run's folder."""
_TRAINED = ("mixture", "stages", "seq_length")
"""Fields of `data` that draw from a corpus in another way and leave it as it is."""


@dataclass(frozen=True)
class _Record:
    folder: Path
    fingerprint: str
    data: DataConfig


def pinned_corpus(
    config: Config, run_dir: Path, report: Callable[[str], None], sibling: Path | None = None
) -> Path | None:
    """Return the folder of the corpus that a run was trained on; None: it has none, it asks for
    another one, or the folder is gone (which is said).

    Args:
        sibling: Folder of a run whose corpus this one takes as long as it has none of its own.
    """
    if config.data.rebuild or not config.data.build.sources:
        return None
    record = _record(run_dir) or (_record(sibling) if sibling else None)
    if record is None or _sources(record.data) != _sources(config.data):
        return None
    if not (record.folder / MANIFEST).is_file():
        report(f"data: {record.folder}, which this run was trained on, is gone: built again")
        return None
    manifest = read_manifest(record.folder)
    needed = {domain for stage in config.stages for domain in stage.mixture}
    if manifest["fingerprint"] != record.fingerprint or not needed <= manifest["domains"].keys():
        return None
    report(
        f"data: this run keeps its corpus {record.folder}; "
        "data.rebuild=true reads the sources again"
    )
    return record.folder


def record_corpus(corpus: Corpus, run_dir: Path) -> None:
    """Write down in a run's folder which corpus it is trained on, with what decodes its tokens."""
    for file in companions(corpus.dir):
        shutil.copyfile(file, run_dir / file.name)
    content = {"dir": str(corpus.dir.resolve()), "fingerprint": corpus.fingerprint}
    write_json(run_dir / RECORD, content)


def companions(folder: Path) -> list[Path]:
    """Return the files that decode the tokens of a corpus: its own, or a run folder's copies."""
    return [folder / TOKENIZER, folder / TOKEN_BYTES]


def _record(run_dir: Path) -> _Record | None:
    if own := layout.complete(run_dir / "checkpoints"):
        state = own[-1].state()
        data = load_config(own[-1].path / layout.CONFIG).data
        return _Record(Path(state.corpus_dir), state.corpus, data)
    try:
        content = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
        data = load_config(run_dir / layout.CONFIG).data
        return _Record(Path(content["dir"]), content["fingerprint"], data)
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None  # a run that was killed before it had written both


def _sources(data: DataConfig) -> dict[str, object]:
    return {name: value for name, value in corpus_fields(data).items() if name not in _TRAINED}
