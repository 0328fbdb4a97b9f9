"""Names that the values of `data` give: domains, sources, licences, paths of this machine."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from loopcoder.config.build import SourceConfig
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import as_override, typed
from loopcoder.config.filters import PERMISSIVE_LICENCES
from loopcoder.config.mixture import CHAT, CORPUS_EACH, DOMAINS
from loopcoder.errors import Problem


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was most likely meant; None: none is near."""
    by_lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.strip().lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def check_names(data: DataConfig) -> Iterator[Problem]:
    """Yield the names that stand for nothing, in what a corpus is built from."""
    yield from _paths(data)
    if not data.build.sources:  # a finished corpus may have other domains
        return
    yield from _domains(data)
    shares = data.build.shares
    if isinstance(shares, dict) and not any(shares.values()):
        yield Problem(
            f"data.build.shares={as_override(shares)}",
            "at least one language has a weight above 0",
            "data.build.shares=supply",
        )
    filters = data.build.filters
    for field, mapping in (
        ("allowed_by_source", filters.allowed_by_source),
        ("source_licences", filters.source_licences),
    ):
        yield from _source_names(f"data.build.filters.{field}", mapping, data.build.sources)
    yield from _licences("data.build.filters.allowed_licences", filters.allowed_licences)
    for source, licences in filters.allowed_by_source.items():
        yield from _licences(f"data.build.filters.allowed_by_source.{source}", licences)


def _domains(data: DataConfig) -> Iterator[Problem]:
    mixtures = {"data.mixture": data.mixture} | {
        f"data.stages.{number}.mixture": stage.mixture
        for number, stage in enumerate(data.stages)
        if stage.mixture
    }
    known = (CHAT,) if data.build.is_chat else DOMAINS
    has_epochs = isinstance(data.build.epochs, dict)
    epochs = data.build.epochs if isinstance(data.build.epochs, dict) else {}
    for key, mapping in (*mixtures.items(), ("data.build.epochs", epochs)):
        unknown = [name for name in mapping if name not in known]
        if not unknown:
            continue
        mended = {nearest(n, known) if n in unknown else n: w for n, w in mapping.items()}
        is_clear = None not in mended and len(mended) == len(mapping)
        yield Problem(
            f"{key}={as_override(mapping)}: there is no domain {unknown[0]!r}",
            f"a corpus of conversations has the domain {CHAT} alone"
            if data.build.is_chat
            else f"the domains of a corpus built here are {' and '.join(known)}; languages have "
            "weights in data.build.shares, and what is a corpus of its own has one",
            typed(f"{key}={as_override(mended if is_clear else dict.fromkeys(known, 1))}")
            + ("" if is_clear or mapping is epochs else f", or data=corpus {CORPUS_EACH}"),
        )
    wanted = {name for mapping in mixtures.values() for name in mapping}
    missing = [domain for domain in known if domain in wanted - epochs.keys()]
    if has_epochs and epochs.keys() <= set(known) and missing:
        yield Problem(
            f"data.build.epochs={as_override(epochs)}",
            f"the mixture takes tokens of {' and '.join(missing)} too",
            typed(f"data.build.epochs={as_override(epochs | dict.fromkeys(missing, 1))}"),
        )


def _source_names(key: str, names: Iterable[str], sources: list[SourceConfig]) -> Iterator[Problem]:
    known = [f"{index}-{source.kind}" for index, source in enumerate(sources)]
    for name in names:
        if name not in known:
            yield Problem(
                f"{key} names the source {name!r}",
                f"sources are called by their place and kind: {', '.join(known)}",
                f"write {nearest(name, known) or known[0]}",
            )


def _licences(key: str, names: Iterable[str]) -> Iterator[Problem]:
    """Yield ids that are those of SPDX but for signs and blanks; others may be of one's own."""
    known = {_letters(name): name for name in PERMISSIVE_LICENCES}
    for name in names:
        meant = known.get(_letters(name))
        if not name.strip() or (meant and meant.lower() != name.lower()):
            yield Problem(
                f"{key} names the licence {name!r}",
                "licences are compared by their SPDX ids",
                f"write {meant or 'an id of https://spdx.org/licenses'}",
            )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _paths(data: DataConfig) -> Iterator[Problem]:
    build = data.build
    fields: dict[str, str | list[str] | None] = {
        "data.path": data.path,
        "data.build.cache_dir": build.cache_dir,
        "data.build.tokenizer": build.tokenizer,
        "data.build.language_classifier": build.language_classifier,
        "data.build.decontaminate.benchmarks": build.decontaminate.benchmarks,
    }
    for number, source in enumerate(build.sources):
        if source.path != data.path:
            fields[f"data.build.sources.{number}.path"] = source.path
    for key, value in fields.items():
        for path in [value] if isinstance(value, str) else value or []:
            if fault := _path_fault(path):
                shown = ascii(path if len(path) <= 80 else f"{path[:80]}...")
                yield Problem(f"{key} is {shown}", fault, f"{key}=PATH that there can be")


def _path_fault(path: str) -> str | None:
    """Return why there can be no file or folder of a name, which may be a pattern or a URL."""
    if "://" in path:
        return None
    try:
        full = Path(path).expanduser()
        if not set(path) & set("*?["):
            full.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except UnicodeError:
        return "its characters are no name of a file"
    except OSError as error:
        return str(error.strerror)
    except RuntimeError:
        user = path.partition("/")[0].removeprefix("~")
        return f"this machine has no user {user!r}" if user else "HOME is not set"
    except ValueError as error:
        return str(error)
    return None
