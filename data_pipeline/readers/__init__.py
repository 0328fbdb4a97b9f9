"""Sources of documents: what is installed here (sample), files, packages, Hugging Face data."""

from __future__ import annotations

from typing import Literal

from data_pipeline.readers.base import Source
from data_pipeline.tasks.progress import Report, silent
from loopcoder.config.build import SourceConfig


def open_source(
    config: SourceConfig,
    index: int,
    unreadable: Literal["error", "skip"] = "error",
    report: Report = silent,
) -> Source:
    """Look at a source without reading its documents.

    Args:
        config: Where the documents are, and how they are read.
        index: Its place among the sources; part of its name and of its documents' ids.
        unreadable: What to do about files that this user cannot read.
        report: Receives a line for every package that is fetched, and while many files are listed.

    Raises:
        InputError: it does not exist or holds nothing that could be a document.
    """
    name = f"{index}-{config.kind}"
    match config.kind:
        case "sample":
            from data_pipeline.readers.sample import SampleSource

            return SampleSource(name, config)
        case "files":
            from data_pipeline.readers.files import FilesSource

            return FilesSource(name, config, unreadable, report)
        case "hf":
            from data_pipeline.readers.hf import HFSource

            return HFSource(name, config)
        case "chat":
            from data_pipeline.readers.files import FilesSource
            from data_pipeline.readers.hf import HFSource, is_data_set

            if is_data_set(config.path):
                return HFSource(name, config)
            return FilesSource(name, config, unreadable, report)
        case "debian" | "npm":
            from data_pipeline.readers.packages import PackagesSource

            return PackagesSource(name, config, unreadable, report)
