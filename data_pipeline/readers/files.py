"""Files and folders: source files, prose, jsonl, parquet, and archives of them; local or remote."""

from __future__ import annotations

import copy
import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.langid.names import (
    HEAD_BYTES,
    domain_of,
    identify,
    language_of_name,
)
from data_pipeline.readers.archives import ARCHIVES, Member, members
from data_pipeline.readers.base import (
    Documents,
    RowReader,
    columns,
    decode,
    document_id,
    is_limited,
    judge_end,
    judge_files,
    row_domains,
)
from data_pipeline.readers.compressed import decompressed
from data_pipeline.readers.jsonl import jsonl_documents, lines
from data_pipeline.readers.storage import (
    SKIPPED_FOLDERS,
    File,
    is_url,
    local_path,
    remote_files,
)
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document, Place, Tally
from data_pipeline.tasks.progress import Paced, Report, silent
from loopcoder.backends import require
from loopcoder.config.build import SourceConfig
from loopcoder.data.corpus import TOKEN_BYTES
from loopcoder.errors import InputError, Problem, counted

# a compressed .json is jsonl in every public corpus
_ROWS_PLAIN = (".jsonl", ".ndjson")
_ROWS_PACKED = tuple(f"{name}.{p}" for name in (*_ROWS_PLAIN, ".json") for p in ("gz", "zst"))
_PARQUET = (".parquet",)
_HEAD_BYTES = 4096


class FilesSource:
    """Documents in files; the listing is taken when the source is opened."""

    def __init__(self, name: str, config: SourceConfig, report: Report = silent) -> None:
        """List the files.

        Args:
            name: Of the source.
            config: What to read.
            report: Receives a line every 15 s.

        Raises:
            InputError: no path, a path that matches nothing, or no file of a known kind.
        """
        self.name = name
        self.config = config
        self.packages: dict[str, list[str]] = {}
        """Licences that a package names, by its folder."""
        self.skipped: list[tuple[str, str]] = []
        self._is_part = False
        self._id_root = ""
        paced = Paced(report)
        listing = _listing(name, config, self.skipped, paced)
        kinds: list[str | None] = []
        for path, _, _ in listing:
            kinds.append(_kind(path, config))
            paced("data: source {}: {:,} of {:,} files seen", name, len(kinds), len(listing))
        self._files = [(path, size, k) for (path, size, _), k in zip(listing, kinds, strict=True)]
        if not any(kinds):
            raise InputError.of(
                f"source {name}: of {counted(len(listing), 'file')} under {config.path} "
                "none is usable",
                "known are .jsonl and .json.gz, .parquet, prose such as .txt, and source code",
                "data.path=FOLDER with such files",
            )
        self.domains = frozenset().union(*(_domains(k, config) for k in kinds if k))
        # without the unusable ones: the corpus itself may be built below this folder
        self.identity: list[Any] = [
            [str(path), size, mtime]
            for (path, size, mtime), k in zip(listing, kinds, strict=True)
            if k
        ]
        given = [config.path] if isinstance(config.path, str) else config.path or []
        self.roots = [_root(path) for path in given]
        self.provenance: dict[str, Any] = {"paths": given, "licence": config.licence}
        self.size = sum(size for _, size, kind in self._files if kind)
        self.num_files = len(self._files)

    def parts(self, part_bytes: int) -> list[FilesSource]:
        """Cut the sorted files into runs of at least this size; a file is never cut."""
        if is_limited(self.config):
            return [self]
        runs: list[list[Any]] = []
        room = 0
        for entry in self._files:
            if room <= 0:
                runs.append([])
                room = part_bytes
            runs[-1].append(entry)
            room -= entry[1] if entry[2] else 0
        found = []
        for run in runs:
            part = copy.copy(self)
            part._files, part._is_part, part.identity, part.skipped = run, True, [], []
            part.size = sum(size for _, size, kind in run if kind)
            part.num_files = len(run)
            found.append(part)
        return found

    def documents(self, tally: Tally) -> Documents:
        """Read the files one after the other, in sorted order.

        Raises:
            InputError: a file cannot be read, or too many are damaged.
        """
        files = enumerate(self._files, start=1)
        for number, (path, size, kind) in files:
            try:
                if kind == "archive":
                    for member in members(path, size, tally):
                        inner = _kind(member, self.config)
                        if inner == "archive":  # archives in archives are how bombs are built
                            tally.bytes_in += len(member.content)
                            where = Place(str(member), num_bytes=len(member.content))
                            tally.drop_file("nested_archive", where)
                            continue
                        yield from self._file(member, len(member.content), inner, tally)
                else:
                    yield from self._file(path, size, kind, tally)
            except GeneratorExit:  # the limit of the source is reached
                if kind in ("archive", "jsonl", "parquet"):
                    self._beyond_limit(path, size, tally)
                for _, (rest, rest_size, _) in files:
                    self._beyond_limit(rest, rest_size, tally)
                raise
            except OSError as e:
                raise InputError.of(
                    f"cannot read {path}: {e}",
                    "it was listed a moment ago: it was removed, or this user may not read it",
                    "restore the file or its permissions, or take it out of the source's path",
                ) from e
            judge_files(tally, number, self.name)
        if not self._is_part:
            judge_end(tally, self.name)

    def _beyond_limit(self, path: File, size: int, tally: Tally) -> None:
        tally.drop_file("beyond_limit", Place(self._place(path), num_bytes=size))

    def _file(self, path: File, size: int, kind: str | None, tally: Tally) -> Iterator[Document]:
        match kind:
            case "jsonl":
                yield from jsonl_documents(path, self.config, self.name, tally)
            case "parquet":
                yield from _parquet_documents(path, self.config, self.name, tally)
            case None:
                # a file is not even opened, but a member was unpacked
                tally.bytes_in += size if isinstance(path, Member) else 0
                tally.drop_file("unknown_type", Place(self._place(path), num_bytes=size))
            case _:
                yield from self._plain(path, size, tally)

    def _plain(self, path: File, size: int, tally: Tally) -> Iterator[Document]:
        tally.rows_in += 1
        data = b"" if size > MAX_DOCUMENT_BYTES else path.read_bytes()
        tally.bytes_in += len(data)
        language = identify(path.name, data[:HEAD_BYTES])
        if size > MAX_DOCUMENT_BYTES:
            reason = "too_large"
        elif b"\0" in data[:_HEAD_BYTES]:
            reason = "binary"
        elif not data.strip():
            reason = "empty"
        elif language is None:
            reason = "unknown_language"
        else:
            reason = ""
        if reason or language is None:
            tally.drop(reason, Place(self._place(path), num_bytes=size))
            return
        text = decode(data, self.config, tally, str(path), "utf-8-sig")
        if text is None:
            tally.drop("invalid_utf8", Place(self._place(path), num_bytes=size))
            return
        tally.rows_out += 1
        place = self._place(path)
        yield Document(
            id=document_id(self.name, place),
            text=text,
            domain=language[1] if self.config.domain == "auto" else self.config.domain,
            language=language[0],
            source=self.name,
            path=place,
            meta=self._meta(place),
        )

    def _place(self, path: File) -> str:
        return str(path).removeprefix(self._id_root)

    def package_of(self, path: str) -> str:
        """Return the folder of the package that a path belongs to, "" outside packages."""
        if not self.packages:
            return ""
        folder = "/".join(path.removeprefix(self._id_root).split("/", 2)[:2])
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
        return path
    fixed = re.split(r"[*?\[]", path)[0] if not local_path(path).exists() else path
    folder = local_path(fixed).resolve()
    return str(folder if folder.is_dir() else folder.parent)


def _listing(
    name: str, config: SourceConfig, skipped: list[tuple[str, str]], paced: Paced
) -> list[tuple[File, int, int | str]]:
    """Return (path, bytes, modification time in ns or a store's version) of every file, sorted;
    what is left out goes to `skipped`."""
    wanted = [config.path] if isinstance(config.path, str) else config.path or []
    if not wanted:
        raise InputError.of(
            f"source {name} (kind files) has no path",
            "it must be told where the documents are",
            "data.path=FOLDER",
        )
    found: dict[str, tuple[File, int, int | str]] = {}
    problems = []
    for pattern in wanted:
        if is_url(pattern):
            remote = remote_files(pattern, skipped)
            found |= {str(file): (file, size, version) for file, size, version in remote}
            if not remote:
                problems.append(_nothing(name, pattern, "at that URL"))
            continue
        # a name that exists is meant literally, even if it contains [ or *
        full = local_path(pattern)
        # Path.glob takes no absolute patterns
        matches = [full] if full.exists() else glob.glob(str(full), recursive=True)  # noqa: PTH207
        if not matches:
            problems.append(_nothing(name, pattern, f"looked in {Path.cwd()}"))
        for match in matches:
            for path in _walk(Path(match), skipped):
                stat = path.stat()
                full = path.resolve()
                found[str(full)] = (full, stat.st_size, stat.st_mtime_ns)
                paced("data: source {}: {:,} files found so far", name, len(found))
    if problems:
        raise InputError(problems)
    return [found[path] for path in sorted(found, key=lambda path: path.split("/"))]


def _nothing(source: str, pattern: str, where: str) -> Problem:
    return Problem(
        f"source {source}: {pattern!r} does not exist ({where})",
        "it names neither a file nor a folder, and as a pattern it matches nothing",
        "data.path=FOLDER, a file, or a pattern such as 'dir/*.jsonl'",
    )


def _walk(root: Path, skipped: list[tuple[str, str]]) -> Iterator[Path]:
    """Yield the regular files under `root`; hidden ones, those of hidden folders and what is no
    file go to `skipped`."""
    if root.is_file():
        yield root
        return
    for folder, folders, names in os.walk(root):
        if TOKEN_BYTES in names:  # a corpus that was built below the documents
            folders.clear()
            skipped.append(("finished_corpus", f"{folder}/"))
            continue
        reasons = {name: _why_skipped(Path(folder, name)) for name in folders}
        folders[:] = [name for name in folders if not reasons[name]]
        skipped += [(why, f"{folder}/{name}/") for name, why in sorted(reasons.items()) if why]
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                skipped.append(("hidden", str(path)))
            elif path.is_file():
                yield path
            else:
                skipped.append(("broken_link" if path.is_symlink() else "special_file", str(path)))


def _why_skipped(folder: Path) -> str:
    """Return why a folder is left out, "" if it is not."""
    if folder.name.startswith("."):
        return "hidden"
    if folder.name in SKIPPED_FOLDERS:
        return "skipped_folder"
    return "linked_folder" if folder.is_symlink() else ""


def _kind(path: File, config: SourceConfig) -> str | None:
    """Return the kind of a file, the language that its name tells, `?` for a shebang's, or None."""
    name = path.name.lower()
    if name.endswith(_ROWS_PLAIN + _ROWS_PACKED) or (
        name.endswith(".json") and _holds_rows(path, config)
    ):
        return "jsonl"
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(ARCHIVES):
        return "archive"
    return language_of_name(name) or (None if path.suffix else "?")


def _domains(kind: str, config: SourceConfig) -> frozenset[str]:
    if kind in ("jsonl", "parquet"):
        return row_domains(config)
    if config.domain != "auto":
        return frozenset({config.domain})
    if kind == "archive":
        return frozenset({"text", "code"})
    return frozenset({"code" if kind == "?" else domain_of(kind)})


def _holds_rows(path: File, config: SourceConfig) -> bool:
    """Tell whether a .json is jsonl: its first line is an object with the text's column."""
    first = next(lines(decompressed(path), MAX_DOCUMENT_BYTES), None)
    try:
        row = json.loads(first or b"")
    except ValueError:
        return False
    return isinstance(row, dict) and config.text_field in row


def _parquet_documents(
    path: File, config: SourceConfig, source: str, tally: Tally
) -> Iterator[Document]:
    needs = f"{path} is a parquet file", "reading it needs pyarrow", "pip install pyarrow"
    pa, pq = require("pyarrow", *needs), require("pyarrow.parquet", *needs)
    reader = RowReader(config, source, str(path), tally)
    number = 0
    try:
        # a local file is read by Arrow itself
        file = pq.ParquetFile(path if isinstance(path, Path) else path.open("rb"))
        names = file.schema_arrow.names
        wanted = [c for c in columns(config) if c in names]
        if config.text_field not in wanted:
            tally.drop_file(f"no_column_{config.text_field}", Place(str(path)))
            return
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            tally.bytes_in += batch.nbytes
            values = (_values(column, config, tally, path) for column in batch.columns)
            for row in zip(*values, strict=True):
                document = reader.document(dict(zip(batch.schema.names, row, strict=True)), number)
                number += 1
                if document is not None:
                    yield document
    except (pa.ArrowException, OSError):
        # rows before the damage were handed on: row groups are checked one by one
        reason = "corrupt_parquet" if number == 0 else "corrupt_parquet_tail"
        tally.drop_file(reason, Place(str(path), number))


def _values(column: Any, config: SourceConfig, tally: Tally, path: File) -> Iterator[object]:
    """Yield the values of a column; a string that is dropped for invalid UTF-8 comes as null."""
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        yield from column.to_pylist()
        return
    for value in column.cast(pa.large_binary()).to_pylist():
        yield None if value is None else decode(value, config, tally, f"a row of {path}")
