"""Chat templates: those that come with us, and those that stand beside a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from loopcoder.errors import InputError
from loopcoder.storage.files import parsing

FILE = "chat_template.jinja"
"""Of a template, in folders for transformers and in corpora."""
BUILT_IN = ("chatml", "hermes", "qwen3", "qwen3_coder")
TURN, TURN_END = "<|im_start|>", "<|im_end|>"
"""Special tokens of ChatML, in which all of BUILT_IN write."""
_FOLDER = Path(__file__).with_name("templates")
_CONFIG = "tokenizer_config.json"
_FIX = "the file as it was published, or none"
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
"""Special tokens, as templates call them."""


@cache
def built_in(name: str) -> str:
    """Return the text of one of BUILT_IN.

    They mark what the assistant says with `{% generation %}`, the end of its turn included, and
    write one message after the other: the beginning of a conversation is the beginning of its text.
    """
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def named(setting: str) -> str:
    """Return the template that a setting means: one of BUILT_IN, or the path of a file.

    Raises:
        InputError: it is neither, or cannot be read.
    """
    if setting in BUILT_IN:
        return built_in(setting)
    path = Path(setting).expanduser()
    if not path.is_file():
        raise InputError.of(
            f"there is no chat template {setting}",
            f"it is one of {', '.join(BUILT_IN)}, or the path of a file",
            f"{BUILT_IN[1]}, or the path of a .jinja file that exists",
        )
    return _text(path)


def template_of(place: Path) -> str | None:
    """Return the chat template beside a tokenizer: that of its chat_template.jinja, else of its
    tokenizer_config.json; None: neither is there.

    Args:
        place: The folder of a tokenizer, or its tokenizer.json.

    Raises:
        InputError: a file is damaged.
    """
    folder = place if place.is_dir() else place.parent
    own = _text(folder / FILE) if (folder / FILE).is_file() else ""
    return own or _default(_config(folder).get("chat_template"))


def token_names_of(place: Path) -> dict[str, str]:
    """Return the special tokens that the tokenizer_config.json beside a tokenizer names, as
    templates call them: `bos_token`, `eos_token`, ...

    Args:
        place: The folder of a tokenizer, or its tokenizer.json.

    Raises:
        InputError: the file is damaged.
    """
    config = _config(place if place.is_dir() else place.parent)
    found = {name: _content(config.get(name)) for name in TOKEN_NAMES}
    return {name: text for name, text in found.items() if text is not None}


def speaks_chatml(tokens: Container[str]) -> bool:
    """Whether a tokenizer with these special tokens can write ChatML."""
    return TURN in tokens and TURN_END in tokens


def end_ids(
    ids: Mapping[str, int], given: int | Sequence[int] | None, named: str | None
) -> list[int]:
    """Return the tokens that end an answer: a document, and a turn where it speaks ChatML.

    Args:
        ids: Of the special tokens.
        given: What ends a document, by what came with the weights; None: it says nothing.
        named: What ends a document where nothing is given.
    """
    if given is None:
        given = [ids[named]] if named is not None and named in ids else []
    ends = [given] if isinstance(given, int) else [*given]
    return [*dict.fromkeys([*ends, *([ids[TURN_END]] if speaks_chatml(ids) else [])])]


def _default(entry: Any) -> str | None:
    """Return the template of an entry `chat_template` of tokenizer_config.json, which may be one
    of several by name."""
    if isinstance(entry, list):
        fits = [one for one in entry if isinstance(one, dict) and one.get("name") == "default"]
        entry = fits[0].get("template") if fits else None
    return entry if isinstance(entry, str) else None


def _content(token: Any) -> str | None:
    """Return the text of a token, which is in tokenizer_config.json as such or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        return {}
    with parsing(path, "it names special tokens and the chat template", _FIX):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        return found


def _text(path: Path) -> str:
    with parsing(path, "conversations are written with it", _FIX):
        return path.read_text(encoding="utf-8")
