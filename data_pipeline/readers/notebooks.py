"""Jupyter notebooks (.ipynb), each as one program: prose cells become comments.

That is the form of StarCoder's `jupyter-scripts` (Li et al. 2023, section 3.1.3), made there by
Jupytext: cells in their order with an empty line between them, Markdown as comments, magics and
shell commands of Python commented out. What cells printed or drew is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from data_pipeline.langid.names import canonical

SUFFIX = ".ipynb"
_COMMENTS = {
    "//": "C C++ C# CUDA D Dart F# Go Groovy Java JavaScript Kotlin Rust Scala Swift TypeScript",
    "--": "Ada Haskell Lua SQL",
    ";;": "Clojure Scheme",
    "%": "Erlang MATLAB Prolog",
}
_COMMENT = {name: sign for sign, names in _COMMENTS.items() for name in names.split()}
_COMMENT["Common Lisp"] = ";;"
_SHELL = ("%", "!")


def notebook_script(data: bytes) -> tuple[str, str] | None:
    """Return a notebook as (program, language); None if it is none, or is damaged.

    The language is that of its kernel, Python where none is named, as in all notebooks before
    format 4.
    """
    try:
        notebook = json.loads(data)
        language = canonical(_language(notebook))
        sign = _COMMENT.get(language, "#")
        cells = [_cell(cell, sign, language) for cell in _cells(notebook)]
    except (ValueError, RecursionError, TypeError, AttributeError, LookupError):
        return None
    text = "\n\n".join(cell for cell in cells if cell.strip())
    return (text + "\n" if text else ""), language


def _language(notebook: Any) -> str:
    metadata = notebook.get("metadata") or {}
    named = [
        (metadata.get("language_info") or {}).get("name"),
        (metadata.get("kernelspec") or {}).get("language"),
    ]
    name = next((name for name in named if isinstance(name, str) and name.strip()), "Python")
    return "Python" if name.lower().startswith(("ipython", "python")) else name


def _cells(notebook: Any) -> Iterator[Any]:
    """Yield the cells of a notebook; before format 4 they are in worksheets."""
    if "cells" in notebook:
        yield from notebook["cells"]
        return
    for sheet in notebook["worksheets"]:
        yield from sheet["cells"]


def _cell(cell: Any, sign: str, language: str) -> str:
    source = cell.get("source", cell.get("input", ""))
    text = (source if isinstance(source, str) else "".join(source)).rstrip()
    if cell["cell_type"] != "code":
        return _commented(text, sign)
    if language != "Python":
        return text
    lines = text.split("\n")
    if lines[0].startswith("%%"):  # the whole cell is for another program
        return _commented(text, sign)
    return "\n".join(f"# {line}" if line.startswith(_SHELL) else line for line in lines)


def _commented(text: str, sign: str) -> str:
    return "\n".join(f"{sign} {line}".rstrip() for line in text.split("\n")) if text else ""
