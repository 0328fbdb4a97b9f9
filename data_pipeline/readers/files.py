"""Files and folders: source files, prose, jsonl, parquet, and archives of them; local or remote."""

from __future__ import annotations

import copy
import errno
import os
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_pipeline.langid.names import domain_of, identify
from data_pipeline.readers.archives import Member, members
from data_pipeline.readers.base import (
    Documents,
    abandon,
    decode,
    document_id,
    guarded,
    is_limited,
)
from data_pipeline.readers.columns import offered
from data_pipeline.readers.compressed import CorruptFileError
from data_pipeline.readers.contents import change_of, check_unchanged, content_of
from data_pipeline.readers.http import http_files
from data_pipeline.readers.jsonl import jsonl_documents
from data_pipeline.readers.kinds import columns_of, domains_of_kind, kind_of
from data_pipeline.readers.listing import ListedFile, Listing
from data_pipeline.readers.notebooks import notebook_script
from data_pipeline.readers.packed import inner_name
from data_pipeline.readers.parquet import parquet_documents
from data_pipeline.readers.places import Places
from data_pipeline.readers.storage import File, local_path, remote_files
from data_pipeline.readers.tables import (
    csv_documents,
    list_documents,
)
from data_pipeline.readers.verdict import judge, judge_files
from data_pipeline.schema import Document, Place, Tally
from data_pipeline.tasks.progress import Paced, Report, silent
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError, Problem, counted
from loopcoder.storage.remote import is_url

_HEAD_BYTES = 4096
_JUDGED_EVERY = 64
"""Files between two looks whether too many are damaged already."""
_LOOKED_AT = 100
"""Files in which columns are sought when none is usable."""
_NAMED = 10
"""Files that an error names."""
_REMARKABLE = ("unreadable", "linked_folder", "broken_link", "special_file", "finished_corpus")
"""Reasons for not reading a file or folder that no rule of ours explains, so that it is named."""


class FilesSource:
    """Documents in files; the listing is taken when the source is opened."""

    def __init__(
        self,
        name: str,
        config: SourceConfig,
        unreadable: Literal["error", "skip"] = "error",
        report: Report = silent,
    ) -> None:
        """List the files.

        Args:
            name: Of the source.
            config: Where they are, and how they are read.
            unreadable: What to do about files that this user cannot read.
            report: Receives a line every 15 s.

        Raises:
            InputError: no path, a path that matches nothing, something below it that cannot be
                read, or no file of a known kind.
        """
        self.name = name
        self.config = config
        self.packages: dict[str, list[str]] = {}
        """Licences that a package names, by its folder."""
        self._is_part = False
        self._skips = unreadable == "skip"
        given = [config.path] if isinstance(config.path, str) else config.path or []
        paced = Paced(report)
        listing = _listing(name, config, paced)
        self.roots = [_root(path) for path in given]
        self.places = Places(self.roots)
        files = []
        for listed in sorted(listing.files.values(), key=self._order):
            files.append((listed, _kind_of(listed.file, config, listing)))
            paced("data: source {}: {:,} of {:,} files seen", name, len(files), len(listing.files))
        if listing.unreadable and not self._skips:
            raise InputError([_unreadable(name, listing.unreadable)])
        self._left_out = listing.left_out | dict.fromkeys(listing.unreadable, "unreadable")
        self._files = [(f, kind) for f, kind in files if str(f.file) not in listing.unreadable]
        usable = [(listed, kind) for listed, kind in self._files if kind]
        if not usable:
            raise InputError([_unusable(name, config, self._files, self._left_out)])
        self.domains = frozenset().union(*(domains_of_kind(kind, config) for _, kind in usable))
        # without the unusable ones: the corpus itself may be built below this folder
        self.identity: list[Any] = [
            [self.places.of(listed.file), listed.size, listed.version] for listed, _ in usable
        ]
        self.provenance: dict[str, Any] = {"paths": given, "licence": config.licence}
        self.size = sum(listed.size for listed, _ in usable)
        self.num_files = len(self._files)
        # an archive is as many files as are in it
        self._files_in_all = None if any(k == "archive" for _, k in usable) else self.num_files

    def parts(self, part_bytes: int) -> list[FilesSource]:
        """Cut the sorted files into runs of at least this size; a file is never cut."""
        if is_limited(self.config):
            return [self]
        runs: list[list[tuple[ListedFile, str | None]]] = []
        room = 0
        for listed, kind in self._files:
            if room <= 0:
                runs.append([])
                room = part_bytes
            runs[-1].append((listed, kind))
            room -= listed.size if kind else 0
        found: list[FilesSource] = []
        for run in runs:
            part = copy.copy(self)
            part._files, part._is_part, part.identity = run, True, []
            part._left_out = {} if found else self._left_out
            part.size = sum(listed.size for listed, kind in run if kind)
            part.num_files = len(run)
            found.append(part)
        return found

    def documents(self, tally: Tally) -> Documents:
        """Read the files one after the other, in sorted order.

        Raises:
            InputError: a file cannot be read or was changed since it was listed, or too many are
                damaged.
        """
        for name, reason in self._left_out.items():
            tally.drop_file(reason, name)
            if reason in _REMARKABLE:
                tally.fault(reason, name)
        files = enumerate(self._files, start=1)
        for number, (listed, kind) in files:
            is_long = kind in ("archive", "jsonl", "parquet")  # others are read at once
            try:
                if is_long:
                    check_unchanged(listed)
                tally.files += 1
                read = self._archive if kind == "archive" else self._file
                yield from guarded(read(listed, kind, tally), listed.file, tally)
            except GeneratorExit:  # the limit of the source is reached
                if is_long:
                    self._beyond_limit(listed, tally)
                for _, (rest, _) in files:
                    self._beyond_limit(rest, tally)
                raise
            except OSError as error:
                if not self._skips:
                    raise InputError([_cannot_read(listed.file, error)]) from error
                abandon("unreadable", listed.file, tally)
            else:
                if is_long and (change := change_of(listed)):  # documents of it are handed on
                    raise InputError([_changed(listed.file, change)])
            if self._files_in_all is not None and number % _JUDGED_EVERY == 0:
                judge_files(tally, self.name, self._files_in_all)
        if not self._is_part:
            judge(tally, self.name)

    def _order(self, listed: ListedFile) -> list[str]:
        return self.places.of(listed.file).split("/")

    def _beyond_limit(self, listed: ListedFile, tally: Tally) -> None:
        tally.drop_file("beyond_limit", Place(self.places.of(listed.file), num_bytes=listed.size))

    def _archive(self, listed: ListedFile, _: str | None, tally: Tally) -> Iterator[Document]:
        for member in members(listed.file, listed.size, tally):
            tally.files += 1
            inner = kind_of(member, self.config)
            if inner == "archive":  # in archives they are how bombs are built
                tally.bytes_in += len(member.content)
                tally.drop_file("nested_archive", Place(str(member), num_bytes=len(member.content)))
            else:
                file = ListedFile(member, len(member.content), 0)
                yield from guarded(self._file(file, inner, tally), member, tally)

    def _file(self, listed: ListedFile, kind: str | None, tally: Tally) -> Iterator[Document]:
        path = listed.file
        place = self.places.of(path)
        match kind:
            case "jsonl":
                yield from jsonl_documents(path, self.config, self.name, tally, place)
            case "parquet":
                yield from parquet_documents(path, self.config, self.name, tally, place)
            case "csv":
                yield from csv_documents(path, self.config, self.name, tally, place)
            case "list":
                yield from list_documents(path, self.config, self.name, tally, place)
            case None:
                # a file is not even opened, but a member was unpacked
                tally.bytes_in += listed.size if isinstance(path, Member) else 0
                tally.drop_file("unknown_type", Place(place, num_bytes=listed.size))
            case _:
                document = self._plain(listed, tally, place, is_notebook=kind == "notebook")
                if document is not None:
                    yield document

    def _plain(
        self, listed: ListedFile, tally: Tally, place: str, *, is_notebook: bool
    ) -> Document | None:
        path, size = listed.file, listed.size
        try:
            content = content_of(listed, tally)
        except CorruptFileError:
            tally.damaged("corrupt_" + path.suffix[1:].lower(), Place(place, num_bytes=size))
            return None
        tally.rows_in += 1
        is_too_large, data = content is None, content or b""
        tally.bytes_in += len(data)
        name = str(path).rpartition("/")[2] if isinstance(path, Path) else path.name
        language = identify(inner_name(name), data)
        is_broken = False
        if is_notebook and data.strip():
            script = notebook_script(data)
            is_broken = script is None
            program, kernel = script or ("", "Python")
            data, language = program.encode(errors="surrogatepass"), (kernel, domain_of(kernel))
        if is_too_large:
            reason = "too_large"
        elif is_broken:
            reason = "broken_json"
        elif data.find(b"\0", 0, _HEAD_BYTES) >= 0:
            reason = "binary"
        elif not data or data.isspace():
            reason = "empty"
        elif language is None:
            reason = "unknown_language"
        else:
            reason = ""
        if reason or language is None:
            tally.drop(reason, Place(place, num_bytes=size))
            if is_broken:
                tally.fault(reason, path)
            return None
        text = decode(data.removeprefix(BOM_UTF8), self.config, tally, str(path))
        if text is None:
            tally.drop("invalid_utf8", Place(place, num_bytes=size))
            return None
        tally.rows_out += 1
        return Document(
            id=document_id(self.name, place),
            text=text,
            domain=language[1] if self.config.domain == "auto" else self.config.domain,
            language=language[0],
            source=self.name,
            path=place,
            meta=self._meta(place),
        )

    def place_of(self, path: str) -> str:
        """Return how documents call a path: from the folder that the source was given."""
        return self.places.of(path)

    def package_of(self, path: str) -> str:
        """Return the folder of the package that a path belongs to, "" outside packages."""
        if not self.packages:
            return ""
        folder = "/".join(self.places.of(path).split("/", 2)[:2])
        return folder if folder in self.packages else ""

    def _meta(self, path: str) -> dict[str, Any]:
        """Return the package that a file belongs to, and its licences."""
        package = self.package_of(path)
        if not package:
            return {}
        licences = self.packages[package]
        return {"package": package} | ({"licence": licences} if licences else {})


def _root(path: str) -> str:
    """Return the folder from which the files that a path stands for count."""
    if is_url(path):
        return re.split(r"[*?\[]", path)[0].rpartition("/")[0] if set(path) & set("*?[") else path
    fixed = re.split(r"[*?\[]", path)[0] if not os.path.exists(local_path(path)) else path  # noqa: PTH110
    folder = local_path(fixed).resolve()
    return str(folder if os.path.isdir(folder) else folder.parent)  # noqa: PTH112


def _listing(name: str, config: SourceConfig, paced: Paced) -> Listing:
    """List what the paths of a source stand for."""
    wanted = [config.path] if isinstance(config.path, str) else config.path or []
    if not wanted:
        raise InputError.of(
            f"source {name} (kind {config.kind}) has no path",
            "it must be told where the documents are",
            "data.path=FOLDER",
        )
    listing = Listing(
        seen=lambda n: paced("data: source {}: {:,} files found so far", name, n),
    )
    problems = []
    for pattern in wanted:
        if is_url(pattern):
            if not _add_remote(pattern, listing):
                problems.append(_nothing(name, pattern, "at that URL"))
        elif not listing.add(local_path(pattern)):
            problems.append(_nothing(name, pattern, f"looked in {Path.cwd()}"))
    if problems:
        raise InputError(problems)
    return listing


def _add_remote(url: str, listing: Listing) -> bool:
    if url.startswith(("http://", "https://")):
        remote = http_files(url, listing.left_out, listing.unreadable)
    else:
        remote = remote_files(url, listing.left_out)
    listing.files |= {str(file): ListedFile(file, size, seen) for file, size, seen in remote}
    return bool(remote)


def _nothing(source: str, pattern: str, where: str) -> Problem:
    return Problem(
        f"source {source}: {pattern!r} does not exist ({where})",
        "it names neither a file nor a folder, and as a pattern it matches nothing",
        "data.path=FOLDER, a file, or a pattern such as 'dir/*.jsonl'",
    )


def _unusable(
    name: str,
    config: SourceConfig,
    files: list[tuple[ListedFile, str | None]],
    left_out: dict[str, str],
) -> Problem:
    looked_at = [] if config.kind == "chat" else files[:_LOOKED_AT]
    tables = ((listed.file, columns_of(listed.file)) for listed, _ in looked_at)
    for file, columns in tables:
        if columns:
            named, fix = offered(columns, name)
            return Problem(
                f"source {name}: {file} has no column {config.text_field!r}, but {named}",
                "a table is read if it has the column with the documents; no other file is usable",
                fix,
            )
    known = (
        ".jsonl and .json.gz, lists in .json, and .parquet"
        if config.kind == "chat"
        else f".jsonl and .json.gz, .parquet, .csv and lists in .json with a column "
        f"{config.text_field!r}, notebooks, prose such as .txt, and source code"
    )
    reasons = Counter(left_out.values())
    besides = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    return Problem(
        f"source {name}: of {counted(len(files), 'file')} under {config.path} none is usable"
        + (f" (besides {besides})" if besides else ""),
        f"known are {known}",
        "data.path=FOLDER with such files",
    )


def _unreadable(name: str, errors: dict[str, str]) -> Problem:
    named = [f"{path} ({error})" for path, error in sorted(errors.items())[:_NAMED]]
    more = f" and {len(errors) - _NAMED:,} more" if len(errors) > _NAMED else ""
    return Problem(
        f"source {name}: this user cannot read {', '.join(named)}{more}",
        "what is in there would be missing from the corpus",
        "mend the permissions (chmod -R u+rX), or data.build.unreadable=skip leaves it out",
    )


def _cannot_read(path: File, error: OSError) -> Problem:
    if error.errno == errno.ESTALE:
        return _changed(path, error.strerror or str(error))
    return Problem(
        f"cannot read {path}: {error}",
        "it was listed a moment ago: it was removed, or this user may not read it",
        "restore the file or its permissions, or data.build.unreadable=skip leaves it out",
    )


def _changed(path: File, change: str) -> Problem:
    return Problem(
        f"{path} was changed after the files were listed: {change}",
        "the corpus is named by the files as they were then",
        "the same command again, once nothing writes there",
    )


def _kind_of(path: File, config: SourceConfig, listing: Listing) -> str | None:
    """Return the kind of a listed file; note that it cannot be read, where it has to be."""
    try:
        return kind_of(path, config)
    except OSError as error:
        listing.unreadable[str(path)] = error.strerror or str(error)
        return None
