"""The modules of installed Python packages, parsed, with the licence of each package."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from data_pipeline.tasks.progress import Report
from loopcoder.errors import InputError

PACKAGES = """
python numpy scipy pandas networkx sympy mpmath scikit-learn more-itertools sortedcontainers
narwhals nltk huggingface_hub datasets matplotlib requests fsspec rich pillow humanize
portalocker setuptools fonttools pygments joblib pyparsing packaging attrs markdown werkzeug
sqlalchemy tabulate pyarrow psutil click jinja2 botocore
"""
"""Packages with documented functions under permissive licences; `python` is its own library."""
_LICENCES = {
    "MIT": "MIT",
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "BSD-3-Clause": "BSD-3-Clause",
    "Python Software Foundation License": "PSF-2.0",
}
"""SPDX's names by those of classifiers and the older field License."""
_SKIPPED = re.compile(
    r"(^|/)(tests?|testing|_vendor|idlelib|lib2to3|site-packages|turtledemo)(/|$)"
)


@dataclass(frozen=True)
class Package:
    """An installed package."""

    name: str
    version: str
    licence: str
    root: Path
    files: Sequence[Path]
    """Relative to `root`."""

    @property
    def source(self) -> str:
        """Return how rows name it."""
        return f"{self.name} {self.version}"

    def modules(self) -> Iterator[tuple[ast.Module, str]]:
        """Yield its modules and their names; tests and what does not parse are left out."""
        for file in self.files:
            if file.suffix != ".py" or _SKIPPED.search(file.as_posix()):
                continue
            try:
                with warnings.catch_warnings(action="ignore"):
                    tree = ast.parse((self.root / file).read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, OSError, RecursionError):
                continue
            yield tree, ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def installed(names: Sequence[str] | None, report: Report) -> list[Package]:
    """Return packages that are installed here; None: those of PACKAGES.

    Raises:
        InputError: one that is named is not installed, or names no licence that is known.
    """
    found = []
    for name in names or PACKAGES.split():
        try:
            found.append(_standard_library() if name == "python" else _package(name))
        except PackageNotFoundError as error:
            if names:
                raise InputError.of(
                    f"--packages {name}",
                    "it is not installed in the environment of this program",
                    f"pip install {name}, or leave it out",
                ) from error
            report(f"data: {name} is not installed; there are no rows of it")
    return found


def _standard_library() -> Package:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file.relative_to(root) for file in sorted(root.rglob("*.py"))]
    return Package("python", sys.version.split()[0], "PSF-2.0", root, files)


def _package(name: str) -> Package:
    found = distribution(name)
    files = sorted(Path(file) for file in found.files or () if ".." not in file.parts)
    root = Path(str(found.locate_file("")))
    return Package(name, found.version, _licence(found), root, files)


def _licence(found: Distribution) -> str:
    described = found.metadata
    if expression := described.get("License-Expression"):
        return str(expression)
    classifiers = described.get_all("Classifier") or []
    named = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License ::")]
    for licence in (*named, str(described.get("License"))):
        if licence in _LICENCES:
            return _LICENCES[licence]
    raise InputError.of(
        f"--packages {described['Name']}",
        f"the licence that it names is not known: {', '.join(named) or described.get('License')}",
        "leave it out, or name packages with a licence in SPDX's form",
    )
