"""What a folder for transformers says of special tokens, generation and chat, for later exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loopcoder.chat.templates import template_of, token_names_of
from loopcoder.checkpoint.state import Specials
from loopcoder.errors import InputError
from loopcoder.hf.folder import CONFIG, ReleasedFolder, read_object
from loopcoder.storage.files import parsing

GENERATION = "generation_config.json"
_NAMES = ("bos_token", "eos_token", "pad_token")
_FIX = "the folder as it was published, or without this file"


def specials_of(source: ReleasedFolder) -> Specials:
    """Read them; a file that is not there says nothing.

    Raises:
        InputError: a file is damaged, or an id is no number.
    """
    folder = source.path
    ids = {name: _id(folder / CONFIG, name, source.config.get(name)) for name in _ids()}
    generation = folder / GENERATION
    return Specials(
        ids={name: found for name, found in ids.items() if found is not None},
        names={name: text for name, text in token_names_of(folder).items() if name in _NAMES},
        generation_config=None if _object(generation) is None else _text(generation),
        chat_template=template_of(folder),
    )


def _ids() -> list[str]:
    return [f"{name}_id" for name in _NAMES]


def _id(place: Path, name: str, value: Any) -> int | list[int] | None:
    several = value if isinstance(value, list) and name == "eos_token_id" else [value]
    if value is None or (several and all(type(one) is int for one in several)):
        return value
    raise InputError.of(f"{place}: {name}={value!r}", "it is the id of a token", "a number")


def _object(path: Path) -> dict[str, Any] | None:
    return read_object(path) if path.is_file() else None


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    with parsing(path, "exports get a copy of it", _FIX):
        return path.read_text(encoding="utf-8")
