"""What makes documents of the rows of a table: texts, or conversations."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.readers.base import RowReader
from data_pipeline.readers.conversations import ConversationReader
from data_pipeline.schema import Tally
from loopcoder.config.build import SourceConfig


def row_reader(
    config: SourceConfig,
    source: str,
    path: str,
    tally: Tally,
    place: str = "",
    columns: Sequence[str] = (),
) -> RowReader:
    """Return the reader of a table's rows; the arguments are the fields of `RowReader`."""
    kind = ConversationReader if config.kind == "chat" else RowReader
    return kind(config, source, path, tally, place, columns)
