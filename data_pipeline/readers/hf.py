"""Data sets of the Hugging Face library: saved to disk, or loaded by name."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

from data_pipeline.readers.base import Documents, columns, is_limited, lacking, row_domains
from data_pipeline.readers.columns import (
    column_of,
    field_of,
    key_of,
    message_columns,
    offered,
    text_columns,
    without_nulls,
)
from data_pipeline.readers.rows import row_reader
from data_pipeline.schema import Tally
from loopcoder.backends import require
from loopcoder.chat.unusable import fix_of
from loopcoder.config.build import SourceConfig
from loopcoder.config.fields import as_override
from loopcoder.errors import InputError, LoopcoderError

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MARKERS = ("state.json", "dataset_info.json", "dataset_dict.json")
_FIX = "data.path=NAME of a data set or FOLDER of save_to_disk, the source's split, or data=sample"
_LISTS = ("List", "LargeList", "Sequence")
"""Features that are lists."""
# built-in ones, and by name those of the libraries that `datasets` fetches with
_NETWORK = {
    *("ConnectionError", "TimeoutError", "gaierror", "TransportError", "RequestException"),
    *("OfflineModeIsEnabled", "HfHubHTTPError", "LocalEntryNotFoundError", "ClientError"),
    "DatasetNotFoundError",
}


def is_data_set(path: str | list[str] | None) -> bool:
    """Tell whether a path that may also be of files is the folder of a data set, or the name of
    one: OWNER/NAME, where nothing is there that is called so."""
    if not isinstance(path, str):
        return False
    folder = Path(path).expanduser()
    if any((folder / marker).exists() for marker in _MARKERS):
        return True
    return not folder.exists() and not folder.suffix and _NAME.fullmatch(path) is not None


class HFSource:
    """One split of one data set. A name without a local copy needs the network when it is read."""

    def __init__(self, name: str, config: SourceConfig) -> None:
        """Check the path; the data is opened when it is read.

        Raises:
            InputError: no path, several paths, or a folder that does not exist.
        """
        self.name = name
        self.config = config
        self.roots: list[str] = []
        self.provenance: dict[str, Any] = {"split": config.split, "config_name": config.config_name}
        self.size = 0
        self.num_files = 1
        self._rows: range | None = None
        self.domains = row_domains(config)
        if not isinstance(config.path, str):
            raise InputError.of(
                f"source {name} has the path {as_override(config.path)}",
                "it must be one name of a data set or one folder",
                _FIX,
            )
        self._folder = Path(config.path).expanduser()
        # of a name only the name: which revision the hub would serve cannot be known offline
        self.identity: list[Any] = [config.path]
        if self._folder.is_dir():
            self.identity += sorted(
                [str(p.relative_to(self._folder)), p.stat().st_size, p.stat().st_mtime_ns]
                for p in self._folder.rglob("*")
                if p.is_file()
            )
        elif self._folder.is_absolute() or config.path.startswith("."):
            raise InputError.of(
                f"source {name}: {config.path!r} does not exist", "no such folder", _FIX
            )

    def parts(self, part_bytes: int) -> list[HFSource]:
        """Cut a data set that is at hand into ranges of rows; a stream is one piece.

        Raises:
            InputError: it cannot be loaded.
        """
        if self.config.streaming or is_limited(self.config):
            return [self]
        rows = self._load()
        num_bytes = int(rows.data.nbytes)
        num_parts = max(1, min(len(rows), -(-num_bytes // part_bytes)))
        borders = [len(rows) * i // num_parts for i in range(num_parts + 1)]
        found = []
        for start, stop in itertools.pairwise(borders):
            part = copy.copy(self)
            part._rows, part.size = range(start, stop), num_bytes // num_parts
            found.append(part)
        return found

    def package_of(self, path: str) -> str:
        """Return no package: a data set has none."""
        return ""

    def place_of(self, path: str) -> str:
        """Return it as it is."""
        return path

    def documents(self, tally: Tally) -> Documents:
        """Read the rows in the data set's order.

        Raises:
            InputError: it cannot be loaded (no network, no such split, ...) or has no such column.
        """
        rows = self._load()
        names = getattr(rows, "column_names", None)
        if names is not None and (lacks := lacking(self.config, names)) is not None:
            row = {name: _example(feature) for name, feature in (rows.features or {}).items()}
            is_chat = self.config.kind == "chat"
            likely = message_columns(row) if is_chat else text_columns(row) or names
            raise InputError.of(
                f"data set {self.config.path!r} has the columns {', '.join(names)}",
                f"none of them is {field_of(self.config.kind)}={lacks}"
                + ("" if likely else ", and none is known to hold a list of messages"),
                offered(likely, self.name)[1]
                if likely
                else fix_of("no_messages", key_of(self.name)),
            )
        if names is not None:
            # images and sounds of other columns are not decoded
            wanted = (column_of(n, names) for n in columns(self.config))
            rows = rows.select_columns(list(dict.fromkeys(n for n in wanted if n)))
        path = f"{self.config.path}:{self.config.split}"
        reader = row_reader(self.config, self.name, path, tally, columns=names or ())
        first = 0
        if self._rows is not None:
            rows, first = rows.select(self._rows), self._rows.start
        try:
            for number, row in enumerate(rows, start=first):
                if self.config.kind == "chat":
                    row = without_nulls(row)  # noqa: PLW2901
                document = reader.document(row, number)
                if document is not None:
                    yield document
        except LoopcoderError:
            raise
        except Exception as e:  # a stream may fail in as many ways as the hub and its file formats
            raise self._unreadable(e) from e

    def _load(self) -> Any:
        datasets = require(
            "datasets",
            f"source {self.name} is of kind hf",
            "it needs `datasets`",
            "pip install datasets",
        )
        config = self.config
        try:
            if any((self._folder / marker).exists() for marker in _MARKERS):
                saved = datasets.load_from_disk(str(self._folder))
                return saved[config.split] if isinstance(saved, datasets.DatasetDict) else saved
            return datasets.load_dataset(
                str(self._folder) if self._folder.is_dir() else config.path,
                name=config.config_name,
                split=config.split,
                streaming=config.streaming,
            )
        except Exception as e:  # the library raises a dozen unrelated types, by version
            raise self._unreadable(e) from e

    def _unreadable(self, error: Exception) -> InputError:
        causes = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
            causes.append(cause)  # type: ignore[arg-type]
        # the library wraps what happened in what it was doing
        told = dict.fromkeys(f"{type(e).__name__}: {_first_line(e)}" for e in (error, causes[-1]))
        is_remote = not self._folder.is_dir() and any(map(_is_of_network, causes))
        return InputError.of(
            f"cannot read data set {self.config.path!r}, split {self.config.split!r}",
            "; because of ".join(told)
            + (" (a name needs the network or a copy in the cache)" if is_remote else ""),
            _FIX,
        )


def _example(feature: Any) -> object:
    """Return a value of a column, "" for text of any length, and one item in a list."""
    if isinstance(feature, list):
        return [_example(feature[0])]
    if type(feature).__name__ in _LISTS:
        return [_example(feature.feature)]
    if isinstance(feature, dict):
        return {name: _example(inner) for name, inner in feature.items()}
    return "" if getattr(feature, "dtype", None) in ("string", "large_string") else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _is_of_network(error: BaseException) -> bool:
    """Tell by its kind whether the hub could not be asked, or does not have the data set."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & _NETWORK)
