"""Debian and npm packages as a source: fetched once, then read like files."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from data_pipeline.readers.fetch import fetch_debian, fetch_npm
from data_pipeline.readers.files import FilesSource
from data_pipeline.readers.places import Places
from data_pipeline.tasks.progress import Report, silent
from loopcoder.config.build import SourceConfig
from loopcoder.config.fields import as_override
from loopcoder.errors import InputError


class PackagesSource(FilesSource):
    """The files of some packages; the lock file has their versions and licences."""

    def __init__(
        self,
        name: str,
        config: SourceConfig,
        unreadable: Literal["error", "skip"] = "error",
        report: Report = silent,
    ) -> None:
        """Fetch what is not there yet.

        Raises:
            InputError: no package is named, or one cannot be fetched.
        """
        if not config.packages or not isinstance(config.path, str):
            raise InputError.of(
                f"source {name} has the packages {as_override(config.packages)} and the path "
                f"{as_override(config.path)}",
                f"kind {config.kind} reads the packages that it names, kept in one folder",
                f"'data.build.sources=[{{kind:{config.kind},packages:[NAME]}}]'",
            )
        folder = Path(config.path).expanduser().resolve()
        fetch = fetch_debian if config.kind == "debian" else fetch_npm
        packages = fetch(config.packages, folder, report)
        paths = [str(folder / package.folder) for package in packages]
        super().__init__(name, replace(config, path=paths), unreadable, report)
        # one that is fetched again elsewhere has the same documents, and they the same ids
        self.config = config
        self.identity: list[Any] = [[p.registry, p.name, p.version, p.sha256] for p in packages]
        self.roots = [str(folder)]
        self.provenance = {
            "registry": config.kind,
            "licence": config.licence,
            "packages": [asdict(package) for package in packages],
        }
        self.places = Places([str(folder)])
        self._files.sort(key=lambda entry: self._order(entry[0]))
        self.packages = {package.folder: package.licences for package in packages}
