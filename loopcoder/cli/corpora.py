"""Which corpus a verb of `loopcoder data` is given: a folder, a name in the cache, or a run's."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path

from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.pinned import gone, read_members, where_is
from loopcoder.cli.run_folders import runs_below, trained_on
from loopcoder.config.corpora import joined_corpora
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.joined import open_joined
from loopcoder.data.manifest import MANIFEST
from loopcoder.data.mirror import default_cache, mirror
from loopcoder.data.places import origin_of
from loopcoder.errors import InputError
from loopcoder.storage.remote import is_url

GIVEN = """\
  CORPUS        its folder, its name as `loopcoder data list` prints it, or the folder of a run or
                of a checkpoint that was trained on it
  --cache DIR   where names are looked up, instead of $LOOPCODER_CACHE, or ~/.cache/loopcoder"""


def corpus_folder(verb: str, given: str, cache: Path) -> Path:
    """Return the folder of the finished corpus that is meant.

    Of one in a store that is the folder of its small files, which suffices for `data stats` alone.

    Args:
        verb: As it is typed, such as `data show`.
        given: What stands behind it.
        cache: Folder of corpora, for names.

    Raises:
        InputError: there is none, with what to type instead.
        LoopcoderError: it is in a store that cannot be read.
    """
    folder = mirror(given, default_cache(cache)) if is_url(given) else _found(verb, given, cache)
    url = origin_of(folder)
    if url is not None and verb != "data stats":
        raise InputError.of(
            f"the training shards of {given} are in a store, {url}",
            f"loopcoder {verb} reads files of this machine",
            f"loopcoder {verb} FOLDER of a copy, as `aws s3 sync {url} FOLDER` makes one of s3://",
        )
    return folder


def _found(verb: str, given: str, cache: Path) -> Path:
    path = Path(given).expanduser()
    if (path / MANIFEST).is_file() and not (path / checkpoints.STATE).is_file():
        return path
    if path.is_dir():
        return _of_run(verb, path, cache)
    if path.exists():
        meant = path.parent if (path.parent / MANIFEST).is_file() else "DIR"
        why = "a corpus is a folder with its shards and a manifest"
        raise InputError.of(f"{given} is a file", why, f"loopcoder {verb} {meant}")
    if len(path.parts) == 1:
        return _named(verb, given, cache)
    raise InputError.of(
        f"there is no folder {given}",
        "it is that of a finished corpus, or of a run that was trained on one",
        f"{_nearest(verb, path.name, cache)}; loopcoder data list names what there is",
    )


def corpus_of_run(folder: Path, config: Config, cache: Path) -> Corpus:
    """Open the corpus that a run is trained on; sizes are compared.

    A finished one is where the run's config says, or as every other where it was or in the cache.

    Args:
        folder: Of the run, or of a checkpoint.
        config: Of the run.
        cache: Folder of corpora of today.

    Raises:
        InputError: it is not known, gone or damaged.
        LoopcoderError: it cannot be read.
    """
    trained = trained_on(folder)
    if trained is None:
        raise InputError.of(
            f"{folder} does not say which corpus it is trained on",
            "it was stopped before it had one",
            "loopcoder data inspect step=1 with the words of the run's command",
        )
    if joined_corpora(config.data):
        return open_joined(config.data, "size")
    if not config.data.build.sources:
        from data_pipeline.driver import prepare

        with suppress(InputError):
            named = prepare(config.data, report=lambda _: None, verify="size")
            if named.fingerprint == trained[1]:
                return named
    corpus = where_is(*trained, cache)
    if corpus is None:
        raise InputError.of(
            gone(trained[0] or "its corpus", trained[1], cache)[0],
            "what it is made of is written in the corpus alone",
            "--cache DIR where it is now; the command of the run builds it again",
        )
    return load_corpus(corpus, "size")


def _named(verb: str, name: str, cache: Path) -> Path:
    if (cache / name / MANIFEST).is_file():
        return cache / name
    if (cache / f".{name}.work").is_dir():
        raise InputError.of(
            f"{name} is not finished",
            "a build of it was stopped, or is in work",
            "the command that began it, which continues; loopcoder data list shows both",
        )
    raise InputError.of(
        f"there is no corpus {name} in {cache}, and no folder of that name here",
        "a corpus is called as its folder is, such as sample-de90dc211f64d29c",
        f"{_nearest(verb, name, cache)}; loopcoder data list names what there is",
    )


def _nearest(verb: str, name: str, cache: Path) -> str:
    """Return the command for the corpus whose name is nearest."""
    names = [path.parent.name for path in cache.glob(f"*/{MANIFEST}")]
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"loopcoder {verb} {found[0] if found else 'NAME'}"


def _of_run(verb: str, folder: Path, cache: Path) -> Path:
    """Return the corpus that the run in a folder was trained on."""
    trained = trained_on(folder)
    # the record of a checkpoint's run is two folders above it
    for run in (folder, *folder.resolve().parents[1:2]):
        if members := read_members(run):
            names = ", ".join(f"{name} ({path})" for name, (path, _) in members.items())
            raise InputError.of(
                f"{folder} was trained on several corpora: {names}",
                "each has a manifest and documents of its own",
                f"loopcoder {verb} {next(iter(members.values()))[0]}, or another of them",
            )
    if trained is None:
        runs = [run for run in runs_below(folder) if trained_on(run)]
        if runs and runs != [folder]:
            why = "each of them says which corpus it was trained on"
            raise InputError.of(f"{folder} holds runs", why, f"loopcoder {verb} {runs[0]}")
        raise InputError.of(
            f"{folder} is neither a finished corpus nor a run that was trained on one",
            f"a corpus has a {MANIFEST}, which is written last; a run has a corpus.json or a "
            "checkpoint",
            f"loopcoder {verb} NAME, as loopcoder data list prints it; for documents first "
            f"loopcoder data data=files path={folder}",
        )
    recorded, fingerprint = trained
    corpus = where_is(recorded, fingerprint, cache)
    if corpus is not None:
        return corpus
    raise InputError.of(
        f"{recorded or fingerprint}, which {folder} was trained on, is gone",
        f"its run says so, and {cache} has no corpus {fingerprint} either",
        f"loopcoder {verb} FOLDER, or --cache DIR, where it is now; loopcoder data list names what "
        "there is; the command of the run builds it again",
    )
