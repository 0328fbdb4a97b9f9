"""Prompts as they are given on a command line, in files, or on standard input."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopcoder.errors import InputError

STDIN = "-"
TEXTS_VARIABLE = "LOOPCODER_PROMPTS"
"""File with what the process that started this one has read from files and standard input: a JSON
object of texts by what `file=` names."""
KEYS = ("prompt", "file", "messages")
_HEADING = 72
"""Characters of a heading."""


@dataclass(frozen=True)
class GivenPrompt:
    """A prompt, and where it comes from."""

    text: str
    file: str | None = None
    """Path as it was given, or `-`; None: it stood on the command line."""
    is_conversation: bool = False
    """Whether the text is messages as JSON."""

    @property
    def heading(self) -> str:
        """A line that names it among others."""
        if self.file is not None:
            return "stdin" if self.file == STDIN else self.file
        line = " ".join(self.text.split())
        return line if len(line) <= _HEADING else f"{line[: _HEADING - 3]}..."


def split_prompts(overrides: Sequence[str]) -> tuple[list[GivenPrompt], list[str]]:
    """Read the prompts of `prompt=TEXT`, `file=FILE` and `messages=FILE`, in their order; return
    them, and the other overrides.

    Raises:
        InputError: a file cannot be read, is no text, or standard input is asked for twice.
    """
    keys = [override.partition("=")[0] for override in overrides]
    others = [o for o, key in zip(overrides, keys, strict=True) if key not in KEYS]
    if sum(overrides.count(f"{key}={STDIN}") for key in ("file", "messages")) > 1:
        why = "standard input is read once"
        raise InputError.of("file=- twice", why, "file=- once, and files for the others")
    prompts = []
    for override, key in zip(overrides, keys, strict=True):
        value = override.partition("=")[2]
        if key == "prompt":
            prompts.append(GivenPrompt(value))
        elif key in KEYS:
            prompts.append(GivenPrompt(_content(value), value, key == "messages"))
    return prompts, others


@contextmanager
def handed_on(prompts: Sequence[GivenPrompt]) -> Iterator[list[str]]:
    """Yield what names the same prompts to processes that are started in the block.

    What came from standard input and files is in a file for them: a pipe can be read only once, and
    a file may change.
    """
    given = [
        f"prompt={p.text}" if p.file is None else f"{KEYS[1 + p.is_conversation]}={p.file}"
        for p in prompts
    ]
    with tempfile.NamedTemporaryFile("w", prefix="loopcoder-", encoding="utf-8") as file:
        json.dump({p.file: p.text for p in prompts if p.file is not None}, file)
        file.flush()
        os.environ[TEXTS_VARIABLE] = file.name
        try:
            yield given
        finally:
            del os.environ[TEXTS_VARIABLE]


def _content(file: str) -> str:
    """Return all of a file as it is, line ends included."""
    try:
        if (handed := os.environ.get(TEXTS_VARIABLE)) is not None:
            texts: dict[str, str] = json.loads(Path(handed).read_text(encoding="utf-8"))
            return texts[file]
        is_stdin = file == STDIN
        data = sys.stdin.buffer.read() if is_stdin else Path(file).expanduser().read_bytes()
        return data.decode()
    except OSError as error:
        why = f"it cannot be read: {error.strerror or error}"
        raise InputError.of(
            f"file={file}", why, "the path of a text, or file=- for stdin"
        ) from error
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 ({error.reason} at byte {error.start:,})"
        raise InputError.of(f"file={file}", why, "a file of text") from error
