"""The corpus that a run keeps, whatever has become of its sources.

What a corpus is made of can change under a run: a source folder, installed packages, an archive. A
run that goes on takes the corpus that it was trained on as long as that is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import newest_whole
from loopcoder.config.compose import load_config, save_config
from loopcoder.config.corpora import joined_corpora
from loopcoder.config.data import DataConfig
from loopcoder.config.identity import corpus_fields
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.joined import JoinedCorpus
from loopcoder.data.manifest import MANIFEST, read_manifest
from loopcoder.data.mirror import default_cache, mirror
from loopcoder.data.places import TOKEN_BYTES, TOKENIZER
from loopcoder.errors import DiskFull, InputError
from loopcoder.storage.disk import full_disk_raises
from loopcoder.storage.files import parsing, write_json
from loopcoder.storage.remote import is_url

RECORD = "corpus.json"
"""Name of the record in a run's folder."""
_TRAINED = ("mixture", "stages", "seq_length")
"""Fields of `data` that draw from a corpus in another way and leave it as it is."""


@dataclass(frozen=True)
class _Record:
    place: str
    """Folder or URL."""
    fingerprint: str
    data: DataConfig
    is_saved: bool
    """Of a checkpoint, whose weights know the tokens of this corpus alone."""


def pinned_corpus(
    config: Config, run_dir: Path, report: Callable[[str], None], sibling: Path | None = None
) -> Path | None:
    """Return the folder of the corpus that a run was trained on; None: it has none, it asks for
    another one, or the folder is gone (which is said).

    Args:
        sibling: Folder of a run whose corpus this one takes as long as it has none of its own.

    Raises:
        InputError: the run was given a finished corpus, which is gone.
    """
    if config.data.rebuild or joined_corpora(config.data):
        return None
    record = _record(run_dir) or (_record(sibling) if sibling else None)
    if record is None or _sources(record.data, record) != _sources(config.data, record):
        return None
    given = None if config.data.build.sources else str(config.data.path)
    if given is not None and (is_url(given) or (Path(given).expanduser() / MANIFEST).is_file()):
        return None
    cache = Path(config.data.build.cache_dir).expanduser()
    folder = where_is(record.place, record.fingerprint, cache)
    if folder is None:
        fact, fix = gone(record.place, record.fingerprint, cache)
        if given is not None:
            raise InputError.of(fact, "a run goes on with the tokens it was trained on", fix)
        report(f"data: {fact}: built again from its sources; if it was moved, {fix}")
        return None
    manifest = read_manifest(folder)
    needed = {domain for stage in config.stages for domain in stage.mixture}
    if not needed <= manifest["domains"].keys():
        return None
    report(_kept(folder, record, config.data))
    return folder


def where_is(recorded: str | None, fingerprint: str, cache: Path) -> Path | None:
    """Return the folder of a finished corpus: where it was, if that is still the same, or else in
    the cache of today; None: nowhere.

    Args:
        recorded: Its folder, or the URL of one in a store, whose small files are fetched.

    Raises:
        LoopcoderError: the store does not answer.
    """
    if recorded is not None and is_url(recorded):
        places = []
        with suppress(InputError):  # it is gone there
            places = [mirror(recorded, default_cache(cache))]
    else:
        places = [Path(recorded)] if recorded else []
    places += sorted(cache.glob(f"*-{fingerprint}"))
    return next((place for place in places if _is(place, fingerprint)), None)


def _is(folder: Path, fingerprint: str) -> bool:
    """Say whether a corpus is there, and not another one; a damaged one is said where it is
    opened."""
    path = folder / MANIFEST
    if not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_bytes()).get("fingerprint", fingerprint) == fingerprint)
    except (OSError, ValueError, AttributeError):
        return True


def gone(recorded: str, fingerprint: str, cache: Path) -> tuple[str, str]:
    """Return the fact of a corpus that is nowhere, and what helps."""
    fact = f"{recorded}, which this run was trained on, is gone, and {cache} has no {fingerprint}"
    if not is_url(recorded) and (Path(recorded) / MANIFEST).is_file():
        fact = (
            f"{recorded} is no longer the corpus {fingerprint}, which this run was trained on, and "
            f"{cache} has none of that name"
        )
    return (
        fact,
        "data=corpus path=FOLDER where it is now",
    )


def _kept(folder: Path, record: _Record, data: DataConfig) -> str:
    moved = "" if folder == Path(record.place) else f" (it was {record.place})"
    other = ""
    if data.build.tokenizer != record.data.build.tokenizer:
        other = f", tokenised by {record.data.build.tokenizer} and not by {data.build.tokenizer}"
    return (
        f"data: this run keeps its corpus {folder}{moved}{other}; "
        "data.rebuild=true reads the sources again"
    )


def record(config: Config, corpus: Corpus, run_dir: Path) -> None:
    """Write down in a run's folder its configuration, which corpus it is trained on, and what
    decodes its tokens.

    Raises:
        DiskFull: there is no room for it.
    """
    with full_disk_raises(run_dir, _disk_is_full):
        save_config(config, run_dir / "config.yaml")
        record_corpus(corpus, run_dir)


def _disk_is_full(fact: str) -> DiskFull:
    why = "a run writes down its configuration and what decodes its tokens"
    return DiskFull.of(fact, why, "free space there, then start the same command again")


def record_corpus(corpus: Corpus, run_dir: Path) -> None:
    """Write down in a run's folder which corpus it is trained on, with what decodes its tokens."""
    for file in companions(corpus.dir):
        shutil.copyfile(file, run_dir / file.name)
    inputs = [source.get("input_xxh3_128") for source in corpus.manifest.get("sources", [])]
    content: dict[str, Any] = {
        "dir": corpus.place,
        "fingerprint": corpus.fingerprint,
        "inputs": inputs,
    }
    if isinstance(corpus, JoinedCorpus):
        content["corpora"] = {
            name: {"dir": member.place, "fingerprint": member.fingerprint}
            for name, member in corpus.parts.items()
        }
    write_json(run_dir / RECORD, content)


def companions(folder: Path) -> list[Path]:
    """Return the files that decode the tokens of a corpus: its own, or a run folder's copies."""
    return [folder / TOKENIZER, folder / TOKEN_BYTES]


def _record(run_dir: Path) -> _Record | None:
    if own := newest_whole(layout.complete(run_dir / "checkpoints"), "size", {}):
        state = own.state()
        data = load_config(own.path / layout.CONFIG).data
        return _Record(state.corpus_dir, state.corpus, data, is_saved=True)
    recorded = read_record(run_dir)
    if recorded is None or not (run_dir / layout.CONFIG).exists():
        return None  # a run that was killed before it had written both
    data = load_config(run_dir / layout.CONFIG).data
    return _Record(*recorded, data, is_saved=False)


def read_record(run_dir: Path) -> tuple[str, str] | None:
    """Return folder, or URL, and fingerprint of the corpus by a run's record; None: it has none.

    Raises:
        InputError: the record is damaged.
    """
    path = run_dir / RECORD
    why = "it says which corpus the run is trained on, and was cut off or altered"
    fix = (
        f"rm -r {path}; the command of the run then reads its sources again if it has no checkpoint"
    )
    with suppress(FileNotFoundError, NotADirectoryError), parsing(path, why, fix):
        content = json.loads(path.read_text(encoding="utf-8"))
        folder, fingerprint = content["dir"], content["fingerprint"]
        if not (
            isinstance(folder, str) and isinstance(fingerprint, str) and folder and fingerprint
        ):
            raise ValueError(f"dir is {folder!r}, fingerprint {fingerprint!r}")
        return folder, fingerprint
    return None


def read_members(run_dir: Path) -> dict[str, tuple[str, str]]:
    """Return folder and fingerprint of each corpus that a run reads as one, by name; {}: it reads a
    single one, or has no record that can be read."""
    try:
        content = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
        found = content.get("corpora", {}).items()
        return {name: (str(c["dir"]), str(c["fingerprint"])) for name, c in found}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _sources(data: DataConfig, record: _Record) -> dict[str, object]:
    """Return what of `data` asks for another corpus than the one on record."""
    # weights that were saved know one tokenizer: another would be refused
    ignored = (*_TRAINED, "tokenizer") if record.is_saved else _TRAINED
    return {name: value for name, value in corpus_fields(data).items() if name not in ignored}
