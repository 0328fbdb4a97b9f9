"""Whether a chat template can be trained with, and by which tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loopcoder.chat.render import Renderer
from loopcoder.chat.templates import BUILT_IN, TOKEN_NAMES
from loopcoder.chat.unusable import Unusable
from loopcoder.errors import InputError

_SPECIAL = re.compile(
    r"<[|\uff5c][^\s<>|\uff5c]{1,40}[|\uff5c]>|</?s>|<(?:start|end)_of_(?:turn|text)>|<(?:bos|eos)>"
)
"""How special tokens look: `<|im_start|>`, DeepSeek's with wide bars, Llama's `</s>`, Gemma's."""


def foreign_tokens(template: str, tokenizer: Any) -> list[str]:
    """Return the special tokens that a template writes and a tokenizer does not have: it would read
    them as some pieces of text.

    They are looked for in the template, and in what it renders, since some put names together.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.

    Raises:
        InputError: what renders templates is not installed.
    """
    found = dict.fromkeys(_SPECIAL.findall(Renderer(template, {}).written))
    return [name for name in found if not _is_one(name, tokenizer)]


def check_fit(
    template: str, tokenizer: Any, place: str, names: Mapping[str, str] | None = None
) -> None:
    """Refuse a template that is none, or another tokenizer's, or writes another text tomorrow, or
    asks for special tokens that nothing names: Jinja would write nothing in their place.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        place: Where the template is from, for people.
        names: Special tokens as templates call them; None: they are not known yet.

    Raises:
        InputError: it is.
    """
    try:
        has_date = Renderer(template, {}).reads("strftime_now")
    except Unusable as error:
        fix = f"one of {', '.join(BUILT_IN)}, or another file"
        raise InputError.of(
            f"{place}: {error.detail}", "it is no template in Jinja", fix
        ) from error
    if has_date:
        raise InputError.of(
            f"the chat template of {place} asks for today's date (strftime_now)",
            "the same conversations would be other text on another day",
            "a copy of it in a file, with a date in its place",
        )
    unnamed = [name for name in TOKEN_NAMES if names is not None and name not in names]
    if asked := [name for name in unnamed if Renderer(template, {}).reads(name)]:
        raise InputError.of(
            f"the chat template of {place} writes {', '.join(asked)}, which nothing names",
            "it would be left out of every conversation, but not where the model is asked",
            "a tokenizer_config.json beside the tokenizer that names it",
        )
    if foreign := foreign_tokens(template, tokenizer):
        raise InputError.of(
            f"the chat template of {place} writes {', '.join(foreign[:8])}",
            "the tokenizer has no such special tokens: the template belongs to another one",
            "the template of this tokenizer, or a tokenizer that has these tokens",
        )


def _is_one(name: str, tokenizer: Any) -> bool:
    ids = tokenizer.encode(name, add_special_tokens=False).ids
    return len(ids) == 1 and tokenizer.id_to_token(ids[0]) == name  # one id may be [UNK]
