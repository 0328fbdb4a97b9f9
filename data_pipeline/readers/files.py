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

from data_pipeline.langid.names import domain_of, identify, language_of_name
from data_pipeline.readers.archives import ARCHIVES, members
from data_pipeline.readers.base import (
    RowReader,
    decode,
    document_id,
    is_limited,
    judge_end,
    judge_files,
    row_domains,
)
from data_pipeline.readers.columns import column_of, value_at
from data_pipeline.readers.compressed import CorruptFileError, decompressed
from data_pipeline.readers.jsonl import jsonl_documents, lines
from data_pipeline.readers.notebooks import SUFFIX, notebook_script
from data_pipeline.readers.packed import PACKERS, inner_name
from data_pipeline.readers.places import Places
from data_pipeline.readers.storage import (
    SKIPPED_FOLDERS,
    File,
    is_url,
    local_path,
    remote_files,
)
from data_pipeline.readers.tables import (
    CSV,
    csv_documents,
    is_csv,
    is_list,
    list_documents,
)
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document, Tally
from loopcoder.backends import require
from loopcoder.config.build import SourceConfig
from loopcoder.data.corpus import TOKEN_BYTES
from loopcoder.errors import InputError, Problem, counted

# a compressed .json is jsonl in every public corpus
_ROWS_PLAIN = (".jsonl", ".ndjson")
_ROWS_PACKED = tuple(
    f"{name}.{p}" for name in (*_ROWS_PLAIN, ".json") for p in ("gz", "zst", "xz", "bz2")
)
_PARQUET = (".parquet",)
_HEAD_BYTES = 4096


class FilesSource:
    """Documents in files; the listing is taken when the source is opened."""

    def __init__(self, name: str, config: SourceConfig) -> None:
        """List the files.

        Raises:
            InputError: no path, a path that matches nothing, or no file of a known kind.
        """
        self.name = name
        self.config = config
        self.licences: dict[str, list[str]] = {}
        """Licences that a package names, by its folder."""
        self._is_part = False
        given = [config.path] if isinstance(config.path, str) else config.path or []
        listing = _listing(name, config)
        self.roots = [_root(path) for path in given]
        self.places = Places(self.roots)
        listing = sorted(listing, key=lambda entry: self.places.of(entry[0]).split("/"))
        kinds = [_kind(path, config) for path, _, _ in listing]
        self._files = [(path, size, k) for (path, size, _), k in zip(listing, kinds, strict=True)]
        if not any(kinds):
            raise InputError.of(
                f"source {name}: of {counted(len(listing), 'file')} under {config.path} "
                "none is usable",
                "known are .jsonl and .json.gz, .parquet, .csv and lists in .json with a column "
                f"{config.text_field!r}, notebooks, prose such as .txt, and source code",
                "data.path=FOLDER with such files",
            )
        self.domains = frozenset().union(*(_domains(k, config) for k in kinds if k))
        # without the unusable ones: the corpus itself may be built below this folder
        self.identity: list[Any] = [
            [self.places.of(path), size, mtime]
            for (path, size, mtime), k in zip(listing, kinds, strict=True)
            if k
        ]
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
            part._files, part._is_part, part.identity = run, True, []
            part.size = sum(size for _, size, kind in run if kind)
            part.num_files = len(run)
            found.append(part)
        return found

    def documents(self, tally: Tally) -> Iterator[Document]:
        """Read the files one after the other, in sorted order.

        Raises:
            InputError: a file cannot be read, or too many are damaged.
        """
        for number, (path, size, kind) in enumerate(self._files, start=1):
            try:
                if kind == "archive":
                    for member in members(path, size, tally):
                        inner = _kind(member, self.config)
                        # archives in archives are how bombs are built
                        inner = None if inner == "archive" else inner
                        yield from self._file(member, len(member.content), inner, tally)
                else:
                    yield from self._file(path, size, kind, tally)
            except OSError as e:
                raise InputError.of(
                    f"cannot read {path}: {e}",
                    "it was listed a moment ago: it was removed, or this user may not read it",
                    "restore the file or its permissions, or take it out of the source's path",
                ) from e
            judge_files(tally, number, self.name)
        if not self._is_part:
            judge_end(tally, self.name)

    def _file(self, path: File, size: int, kind: str | None, tally: Tally) -> Iterator[Document]:
        place = self.places.of(path)
        match kind:
            case "jsonl":
                yield from jsonl_documents(path, self.config, self.name, tally, place)
            case "parquet":
                yield from _parquet_documents(path, self.config, self.name, tally, place)
            case "csv":
                yield from csv_documents(path, self.config, self.name, tally, place)
            case "list":
                yield from list_documents(path, self.config, self.name, tally, place)
            case None:
                tally.file_drops["unknown_type"] += 1
            case _:
                yield from self._plain(path, size, tally, place, is_notebook=kind == "notebook")

    def _plain(
        self, path: File, size: int, tally: Tally, place: str, *, is_notebook: bool
    ) -> Iterator[Document]:
        try:
            data = _content(path, size, tally)
        except CorruptFileError:
            tally.file_drops["corrupt_" + path.suffix[1:].lower()] += 1
            return
        tally.rows_in += 1
        is_too_large, data = data is None, data or b""
        language = identify(inner_name(path.name), data[:_HEAD_BYTES])
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
        elif b"\0" in data[:_HEAD_BYTES]:
            reason = "binary"
        elif not data.strip():
            reason = "empty"
        elif language is None:
            reason = "unknown_language"
        else:
            reason = ""
        if reason or language is None:
            tally.drop(reason)
            return
        text = decode(data, self.config, tally, str(path), "utf-8-sig")
        if text is None:
            tally.drop("invalid_utf8")
            return
        tally.rows_out += 1
        yield Document(
            id=document_id(self.name, place),
            text=text,
            domain=language[1] if self.config.domain == "auto" else self.config.domain,
            language=language[0],
            source=self.name,
            path=place,
            meta=self._meta(place),
        )

    def _meta(self, path: str) -> dict[str, Any]:
        """Return the licences of the package that a file belongs to."""
        for folder, licences in self.licences.items():
            if path.startswith(folder):
                return {"licence": licences}
        return {}


def _root(path: str) -> str:
    """Return the folder from which the files that a path stands for count."""
    if is_url(path):
        return re.split(r"[*?\[]", path)[0].rpartition("/")[0] if set(path) & set("*?[") else path
    fixed = re.split(r"[*?\[]", path)[0] if not local_path(path).exists() else path
    folder = local_path(fixed).resolve()
    return str(folder if folder.is_dir() else folder.parent)


def _listing(name: str, config: SourceConfig) -> list[tuple[File, int, int | str]]:
    """Return (path, bytes, modification time in ns or a store's version) of every file, sorted."""
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
            remote = remote_files(pattern)
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
            for path in _walk(Path(match)):
                stat = path.stat()
                full = path.resolve()
                found[str(full)] = (full, stat.st_size, stat.st_mtime_ns)
    if problems:
        raise InputError(problems)
    return [found[path] for path in sorted(found, key=lambda path: path.split("/"))]


def _nothing(source: str, pattern: str, where: str) -> Problem:
    return Problem(
        f"source {source}: {pattern!r} does not exist ({where})",
        "it names neither a file nor a folder, and as a pattern it matches nothing",
        "data.path=FOLDER, a file, or a pattern such as 'dir/*.jsonl'",
    )


def _walk(root: Path) -> Iterator[Path]:
    """Yield the regular files under `root`, hidden ones and those of hidden folders left out."""
    if root.is_file():
        yield root
        return
    for folder, folders, names in os.walk(root):
        if TOKEN_BYTES in names:  # a corpus that was built below the documents
            folders.clear()
            continue
        folders[:] = [f for f in folders if not f.startswith(".") and f not in SKIPPED_FOLDERS]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _kind(path: File, config: SourceConfig) -> str | None:
    """Return the kind of a file, the language that its name tells, `?` for a shebang's, or None."""
    name = path.name.lower()
    inner = inner_name(name)
    if inner.endswith(".json") and is_list(path, config):
        return "list"
    if name.endswith(_ROWS_PLAIN + _ROWS_PACKED) or (
        name.endswith(".json") and _holds_rows(path, config)
    ):
        return "jsonl"
    if inner.endswith(CSV) and is_csv(path, config):
        return "csv"
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(ARCHIVES):
        return "archive"
    if inner.endswith(SUFFIX):
        return "notebook"
    return language_of_name(inner) or (None if path.suffix else "?")


def _content(path: File, size: int, tally: Tally) -> bytes | None:
    """Return the bytes of a file, unpacked; None: there are too many."""
    if not path.name.lower().endswith(PACKERS):
        return None if size > MAX_DOCUMENT_BYTES else path.read_bytes()
    pieces: list[bytes] = []
    total = 0
    for piece in decompressed(path, tally):
        total += len(piece)
        if total > MAX_DOCUMENT_BYTES:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _domains(kind: str, config: SourceConfig) -> frozenset[str]:
    if kind in ("jsonl", "parquet", "csv", "list"):
        return row_domains(config)
    if config.domain != "auto":
        return frozenset({config.domain})
    if kind == "archive":
        return frozenset({"text", "code"})
    return frozenset({"code" if kind in ("?", "notebook") else domain_of(kind)})


def _holds_rows(path: File, config: SourceConfig) -> bool:
    """Tell whether a .json is jsonl: its first line is an object with the text's column."""
    first = next(lines(decompressed(path), MAX_DOCUMENT_BYTES), None)
    try:
        row = json.loads(first or b"")
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and value_at(row, config.text_field) is not None


def _parquet_documents(
    path: File, config: SourceConfig, source: str, tally: Tally, place: str
) -> Iterator[Document]:
    needs = f"{path} is a parquet file", "reading it needs pyarrow", "pip install pyarrow"
    pa, pq = require("pyarrow", *needs), require("pyarrow.parquet", *needs)
    reader = RowReader(config, source, str(path), tally, place)
    number = 0
    try:
        # a local file is read by Arrow itself
        file = pq.ParquetFile(path if isinstance(path, Path) else path.open("rb"))
        names = file.schema_arrow.names
        columns = (
            *(config.text_field, config.language_field),
            *(config.path_field, config.licence_field),
        )
        wanted = list(dict.fromkeys(c for name in columns if (c := column_of(name, names))))
        if column_of(config.text_field, names) is None:
            tally.file_drops[f"no_column_{config.text_field}"] += 1
            return
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            values = (_values(column, config, tally, path) for column in batch.columns)
            for row in zip(*values, strict=True):
                document = reader.document(dict(zip(batch.schema.names, row, strict=True)), number)
                number += 1
                if document is not None:
                    yield document
    except (pa.ArrowException, OSError):
        # rows before the damage were handed on: row groups are checked one by one
        tally.file_drops["corrupt_parquet" if number == 0 else "corrupt_parquet_tail"] += 1


def _values(column: Any, config: SourceConfig, tally: Tally, path: File) -> Iterator[object]:
    """Yield the values of a column; a string that is dropped for invalid UTF-8 comes as null."""
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        yield from column.to_pylist()
        return
    for value in column.cast(pa.large_binary()).to_pylist():
        yield None if value is None else decode(value, config, tally, f"a row of {path}")
