"""`loopcoder data list`, `clean` and `show`: the cache of corpora, and a look into one."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.checkpoint.pinned import read_members
from loopcoder.cli.corpora import GIVEN, corpus_folder
from loopcoder.cli.dropped import print_dropped
from loopcoder.cli.listing import Listed, few, listing
from loopcoder.cli.options import parse_options, whole
from loopcoder.cli.run_folders import corpus_of, runs_below
from loopcoder.data.corpus import in_use, load_corpus
from loopcoder.data.manifest import MANIFEST
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.storage.files import in_words, size_of
from loopcoder.storage.lock import is_held

if TYPE_CHECKING:
    from data_pipeline.cache import Entry

LIST_HELP = """\
List the corpora that are kept for later runs, and what builds left behind.

usage: loopcoder data list [--cache DIR] [--json]

  --cache DIR   instead of data.build.cache_dir: $LOOPCODER_CACHE, or ~/.cache/loopcoder
  --json        one list of objects, with sizes in bytes and every run

The runs are those in ./runs that were trained on a corpus. An unfinished build is continued by the
command that began it."""

CLEAN_HELP = """\
Show what would be removed from the cache of corpora; with --yes remove it.

usage: loopcoder data clean [NAME...] [--older-than DAYS] [--unfinished] [--cache DIR] [--yes]

  loopcoder data clean --unfinished             builds that did not end, locks without a corpus
  loopcoder data clean --older-than 30 --yes    everything that was written over 30 days ago
  loopcoder data clean sample-de90dc211f64d29c  one corpus; names are in `loopcoder data list`

Several conditions must all hold. What is being built or read at this moment stays, whichever folder
the run is in. A run that continues later and finds its corpus gone builds it again from its
sources, if these are still the same."""

SHOW_HELP = f"""\
Show random documents of a finished corpus, as training reads them, or what was left out of it.

usage: loopcoder data show CORPUS [--domain D] [--documents N] [--seed N] [--cache DIR]
       loopcoder data show CORPUS --dropped [REASON] [--documents N] [--seed N] [--cache DIR]

{GIVEN}
  --domain D      text, code, ...; all that the corpus has if left out
  --documents N   of each domain (3), or of what was left out (10)
  --seed N        of the draw (0); another seed shows others
  --dropped       how many documents and files were left out by reason, and some of them; all are
                  in CORPUS/dropped (zstdcat CORPUS/dropped/*)"""

_CACHE = {"--cache": "DIR"}
_STATES = {"work": "unfinished build", "trash": "half removed", "lock": "lock without a corpus"}


def list_corpora(argv: list[str]) -> int:
    """Print what is in the cache, and what else lies there."""
    operands, options = parse_options("data list", argv, flags=["--json"], values=_CACHE)
    if "--help" in options:
        print(LIST_HELP)
        return EXIT_DONE
    _no_operands("data list", operands)
    from data_pipeline.cache import cache_size, entries, faults, others

    cache = cache_of(options)
    found, runs, damaged = entries(cache), _runs_by_corpus(), faults(cache)
    for error in damaged.values():
        print(f"cannot be used: {error}", file=sys.stderr)
    if "--json" in options:
        listed = [_plain(e, runs.get(e.fingerprint, [])) for e in found]
        plain = [
            entry | {"is_usable": e.path not in damaged}
            for entry, e in zip(listed, found, strict=True)
        ]
        print(json.dumps(plain, indent=1))
        return EXIT_DONE
    if found:
        print(f"{_listing(found, runs, damaged)}\n")
    beside = [f"{path.name} ({in_words(size_of(path))})" for path in others(cache)]
    if beside:
        print(f"besides, not a corpus: {', '.join(beside)}")
    print(f"{in_words(cache_size(cache))} in {cache}")
    return EXIT_DONE


def _listing(found: Sequence[Entry], runs: dict[str, list[Path]], damaged: Collection[Path]) -> str:
    listed = []
    for entry in found:
        content = _content(entry) + (", cannot be used" if entry.path in damaged else "")
        cells = [in_words(entry.bytes), f"{entry.written:%Y-%m-%d %H:%M}", content]
        names = few([path.name for path in runs.get(entry.fingerprint, [])])
        listed.append(Listed(entry.name, cells, notes=[f"runs: {names}"] if names else []))
    return listing(["size", "built", "tokens (sequences)"], listed)


def _plain(entry: Entry, runs: Sequence[Path]) -> dict[str, Any]:
    """Return a thing in the cache as JSON can say it."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "path": str(entry.path),
        "is_finished": entry.is_finished,
        "is_busy": entry.is_busy,
        "is_read": entry.is_read,
        "domains": {
            domain: {"tokens": tokens, "sequences": sequences}
            for domain, (tokens, sequences) in entry.domains.items()
        },
        "bytes": entry.bytes,
        "written": entry.written.isoformat(timespec="seconds"),
        "runs": [str(path) for path in runs],
    }


def _content(entry: Entry) -> str:
    busy = ", in work now" if entry.is_busy else ", in use now" if entry.is_read else ""
    if entry.kind == "work" and entry.is_finished:
        return f"kept work of the corpus{busy}"
    if entry.kind != "corpus":
        return _STATES[entry.kind] + busy
    parts = [
        f"{domain} {'?' if tokens is None else format(tokens, ',')}"
        f" ({'?' if sequences is None else format(sequences, ',')})"
        for domain, (tokens, sequences) in entry.domains.items()
    ]
    return ", ".join(parts) + busy


def _runs_by_corpus() -> dict[str, list[Path]]:
    """Return the runs in ./runs by the fingerprint of their corpus."""
    found: dict[str, list[Path]] = {}
    for run_dir in runs_below(Path("runs")):
        members: list[str | None] = [of for _, of in read_members(run_dir).values()]
        for fingerprint in members or [corpus_of(run_dir)]:
            if fingerprint is not None:
                found.setdefault(fingerprint, []).append(run_dir)
    return found


def clean(argv: list[str]) -> int:
    """Print what would go and how much space that frees; remove it if --yes was given."""
    values = {"--older-than": "DAYS"} | _CACHE
    operands, options = parse_options(
        "data clean", argv, flags=["--unfinished", "--yes"], values=values
    )
    if "--help" in options:
        print(CLEAN_HELP)
        return EXIT_DONE
    if not operands and not options.keys() & {"--unfinished", "--older-than"}:
        raise InputError.of(
            "loopcoder data clean",
            "it removes what you name, and nothing was named",
            "loopcoder data clean --unfinished, --older-than 30, or NAME of loopcoder data list",
        )
    from data_pipeline.cache import entries, matching

    oldest = _days(options["--older-than"]) if "--older-than" in options else None

    def fits(entry: Entry) -> bool:
        if "--unfinished" in options and entry.is_finished:
            return False
        return oldest is None or entry.written < oldest

    runs = _runs_by_corpus()
    going: list[Entry] = []
    for entry in matching(entries(cache_of(options)), operands, fits):
        kept = _reason_to_keep(entry, runs)
        if kept:
            print(f"stays: {entry.path}: {kept}")
        else:
            going.append(entry)
    removes = "--yes" in options
    freed = sum(_go(entry, runs, removes=removes) for entry in going)
    print(f"{in_words(freed)} {'freed' if removes else 'to free; --yes removes it'}")
    return EXIT_DONE


def _go(entry: Entry, runs: dict[str, list[Path]], *, removes: bool) -> int:
    """Remove an entry, or say that it would go; return the bytes that this frees."""
    from data_pipeline.cache import InUse, remove

    if removes:
        try:
            remove(entry)
        except InUse as use:
            print(f"stays: {entry.path}: {use}")
            return 0
    print(f"{'removed' if removes else 'would go'}: {entry.path} ({in_words(entry.bytes)})")
    named = [str(path) for path in runs.get(entry.fingerprint, [])]
    if entry.kind == "corpus" and named:
        print(f"  warning: {few(named)} trained on it; such a run continues once it is built again")
    return entry.bytes


def _reason_to_keep(entry: Entry, runs: dict[str, list[Path]]) -> str | None:
    if entry.is_busy:
        return "a process builds it"
    reading = [run for run in runs.get(entry.fingerprint, []) if is_held(run / ".lock")]
    if reading and entry.kind == "corpus":
        return f"{reading[0]} trains on it now"
    if entry.is_read:
        return f"a process reads it (fuser {entry.path / MANIFEST} says which)"
    return None


def _days(text: str) -> datetime:
    """Return the moment that lies so many days back."""
    try:
        days = float(text)
        if days < 0:
            raise ValueError(text)
        return datetime.now().astimezone() - timedelta(days=days)
    except (ValueError, OverflowError) as error:
        raise InputError.of(
            f"--older-than {text}", "it takes a number of days", "--older-than 30"
        ) from error


def cache_of(options: dict[str, str]) -> Path:
    """Return the folder that --cache names, or the usual one."""
    from data_pipeline.cache import default_cache

    if "--cache" not in options:
        return default_cache()
    folder = Path(options["--cache"]).expanduser()
    if not folder.is_dir():
        raise InputError.of(
            f"--cache {folder}", "there is no such folder", "--cache DIR, or leave it out"
        )
    return folder


def _no_operands(verb: str, operands: Sequence[str]) -> None:
    if operands:
        raise InputError.of(
            f"loopcoder {verb} {operands[0]}", "it takes options only", f"loopcoder {verb}"
        )


def one_corpus(verb: str, operands: Sequence[str], options: dict[str, str]) -> Path:
    """Return the folder of the one corpus that stands behind a verb.

    Raises:
        InputError: there is none or several, or it is no corpus.
    """
    if len(operands) != 1:
        raise InputError.of(
            f"loopcoder {verb} {' '.join(operands)}".rstrip(),
            "it takes one finished corpus: its folder, its name, or the folder of a run",
            f"loopcoder {verb} CORPUS; loopcoder data list names what there is",
        )
    return corpus_folder(verb, operands[0], cache_of(options))


def show(argv: list[str]) -> int:
    """Print random documents of a corpus, by domain."""
    values = {"--domain": "D", "--documents": "N", "--seed": "N", "--dropped": "REASON"} | _CACHE
    operands, options = parse_options("data show", argv, flags=["--dropped"], values=values)
    if "--help" in options:
        print(SHOW_HELP)
        return EXIT_DONE
    drops = "--dropped" in options
    number = whole(options, "--documents", 10 if drops else 3)
    seed = whole(options, "--seed", 0)
    reason = options.get("--dropped", "")
    if drops and not reason and len(operands) == 2:
        reason = operands.pop()
    folder = one_corpus("data show", operands, options)
    with in_use(folder):
        if drops:
            print_dropped(folder, load_corpus(folder, "size").manifest, reason, number, seed)
            return EXIT_DONE
        _print_documents(folder, options.get("--domain"), number, seed)
    return EXIT_DONE


def _print_documents(folder: Path, chosen: str | None, number: int, seed: int) -> None:
    """Print random documents of one domain of a corpus, or of all."""
    from data_pipeline.report.examples import origin, random_documents
    from loopcoder.data.places import rebuild
    from loopcoder.page import printable

    corpus = load_corpus(folder, "size")
    if chosen is not None and chosen not in corpus.domains:
        raise InputError.of(
            f"--domain {chosen}",
            f"{corpus.dir} has {' and '.join(corpus.domains)}",
            f"--domain {corpus.domains[0]}",
        )
    for domain in [chosen] if chosen is not None else corpus.domains:
        try:
            found = random_documents(corpus.dir, corpus.manifest, domain, number, seed)
            about = printable(origin(corpus.manifest, domain))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError.of(
                f"the documents of {corpus.dir} cannot be read: {error}",
                "a file of the corpus was changed after it was built",
                rebuild(corpus.dir),
            ) from error
        print(f"{domain}: {about}")
        for example in found:
            language = f", {example.language}" if example.language else ""
            print(f"\n--- {example.place}{language}\n{printable(example.text)}")
        print()
