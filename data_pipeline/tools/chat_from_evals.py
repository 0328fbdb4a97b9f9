"""Make conversations of the samples of the package evals: questions that have one right answer.

    loopcoder data chat-from-evals evals-3.0.1.post1-py3-none-any.whl OUT.jsonl

It is evaluation data: a model that was trained on it must not be scored on it. Data sets to which
LICENSE.md of the package gives another licence are left out. Of each task at most so many samples
are taken, those with the smallest hashes.
"""

from __future__ import annotations

import heapq
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.tasks.progress import Report
from data_pipeline.tools.arguments import Parser
from data_pipeline.tools.chat_set.rows import Message, Row, generator, table, user, write
from loopcoder.errors import InputError
from loopcoder.storage.folders import folder_for

MAX_PER_TASK = 300
MADE = "written by people for evaluation: what is trained on it must not be scored on it"
_DATA = "evals/registry/data/"
_FEW_SHOT = {"example_user": "user", "example_assistant": "assistant"}


def chat_rows(package: Path, max_per_task: int = MAX_PER_TASK, seed: int = 0) -> list[Row]:
    """Return conversations of the samples, mixed.

    Args:
        package: The wheel, or a folder with its content.
        max_per_task: Most samples of a task, a folder of the registry's data.
        seed: Of the choice and the order.

    Raises:
        InputError: it is no such package, or has no licence file.
    """
    files = _files(package)
    excluded = _other_licences(files)
    by_task: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        if name.startswith(_DATA) and name.endswith(".jsonl"):
            by_task[name.removeprefix(_DATA).split("/")[0]].append(name)
    version = _version(files)
    rows = []
    for task, names in by_task.items():
        if task in excluded:
            continue
        lines = (
            (xxhash.xxh3_64_intdigest(line, seed=seed), name, line)
            for name in names
            for line in files[name]().split(b"\n")
            if b'"ideal"' in line
        )
        for _, name, line in heapq.nsmallest(max_per_task, lines):
            messages = conversation_of(line)
            if messages:
                source = f"evals {version}:{name.removeprefix(_DATA)}"
                rows.append(Row("evals", messages, source, "MIT", MADE))
    generator(seed, "evals").shuffle(rows)
    return rows


def _files(package: Path) -> dict[str, Callable[[], bytes]]:
    """Return by name what reads each file of the package."""
    if package.is_dir():
        return {
            file.relative_to(package).as_posix(): file.read_bytes
            for file in package.rglob("*")
            if file.is_file()
        }
    try:
        archive = zipfile.ZipFile(package)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError.of(
            f"{package} cannot be read: {error}",
            "it must be the wheel of the package evals, or a folder with its content",
            "pip download --no-deps evals==3.0.1.post1",
        ) from error
    names = (name for name in archive.namelist() if not name.endswith("/"))
    return {name: lambda name=name: archive.read(name) for name in names}  # type: ignore[misc]


def _other_licences(files: Mapping[str, Callable[[], bytes]]) -> set[str]:
    """Return the folders of data to which the licence file gives licences of their own."""
    name = next((n for n in sorted(files) if n.rpartition("/")[2].startswith("LICENSE")), None)
    if name is None or not any(file.startswith(_DATA) for file in files):
        raise InputError.of(
            f"there is no {'licence file' if name is None else _DATA} in the package",
            "which samples may be used follows from LICENSE.md of the package evals",
            "pip download --no-deps evals==3.0.1.post1, and name the wheel",
        )
    text = files[name]().decode(errors="replace")
    return set(re.findall(rf"{re.escape(_DATA)}([\w-]+)", text))


def _version(files: Mapping[str, Any]) -> str:
    match = (re.match(r"evals-([^/]+)\.dist-info/", name) for name in files)
    return next((found[1] for found in match if found), "of unknown version")


def conversation_of(line: bytes) -> list[Message] | None:
    """Return the messages of a sample with the answer behind them, or None: it is none.

    Examples that the request itself gives are read and not trained. A question that stands in the
    role of the system, as in many samples, becomes the user's.
    """
    try:
        sample = json.loads(line)
        given, ideal = sample["input"], sample["ideal"]
    except (ValueError, KeyError, TypeError):
        return None
    ideal = ideal[0] if isinstance(ideal, list) and ideal else ideal
    given = [user(given)] if isinstance(given, str) else given
    if not isinstance(ideal, str) or not ideal.strip() or not isinstance(given, list):
        return None
    try:
        messages = [_message(one) for one in given]
    except (KeyError, TypeError, ValueError):
        return None
    if messages and messages[-1]["role"] == "system":
        messages[-1] = user(messages[-1]["content"])
    roles = [message["role"] for message in messages]
    is_ordered = "system" not in roles[1:] and all(
        roles[n - 1] == "user" for n, role in enumerate(roles) if role == "assistant" and n
    )
    if not roles or roles[-1] != "user" or roles[0] == "assistant" or not is_ordered:
        return None
    return [*messages, {"role": "assistant", "content": ideal.strip()}]


def _message(given: Mapping[str, Any]) -> Message:
    """Return a message; ValueError: it says nothing, or in no role that is known."""
    role, content = _FEW_SHOT.get(given.get("name", ""), given["role"]), given["content"]
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise ValueError(role)
    if not content.strip():
        raise ValueError(content)
    return {"role": role, "content": content} | ({"train": False} if role == "assistant" else {})


def main(argv: Sequence[str] | None = None, report: Report = print) -> int:
    """Make the set from the command line; return the exit code."""
    parser = Parser("loopcoder data chat-from-evals", description=__doc__.split("\n")[0])
    parser.add_argument("package", type=Path, metavar="WHEEL|FOLDER", help="the package evals")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl", help="file of the conversations")
    parser.add_argument("--max-per-task", type=int, default=MAX_PER_TASK, metavar="N",
                        help=f"most samples of each task ({MAX_PER_TASK})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (0)")
    given = parser.parse_args(argv)
    out = given.out.expanduser()
    with folder_for(out.parent, "OUT"):
        rows = chat_rows(given.package.expanduser(), given.max_per_task, given.seed)
        report(table(write(rows, out, reasoning=False)))
    report(f"{given.out} is evaluation data: do not report scores of these tasks")
    return 0
