"""Whether a chat template can be trained with, and by which tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loopcoder.chat.probes import ANSWERS, OTHERS, SPOKEN
from loopcoder.chat.render import Renderer, Span
from loopcoder.chat.templates import BUILT_IN, TOKEN_NAMES
from loopcoder.chat.unusable import Unusable
from loopcoder.config.build import EOD
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
    _check_learned(Renderer.of(template, tokenizer, names or {}), place)


def check_end(renderer: Renderer, eod: str, place: str) -> None:
    """Refuse a template that writes the token which ends documents within conversations, or has it
    learned: each document has one, its last token, behind what fills a sequence up.

    Args:
        place: Where the template is from, for people.

    Raises:
        InputError: it does.
    """
    text, spans = _spoken(renderer)
    learned = any(eod in text[start:end] for start, end in spans)
    if learned or eod in text.rstrip().removesuffix(eod):
        raise InputError.of(
            f"the chat template of {place} writes {eod} within conversations",
            "the tokenizer's end of documents tells packed conversations apart: attention, the "
            "shift of the loops and positions begin anew behind each, so every turn would forget "
            "the ones before it",
            f"data.build.chat.template=FILE that ends turns with another token of the tokenizer, "
            f"or a model whose tokenizer has {EOD} among its added_tokens, which then ends "
            "documents in place of the other (a model has no weights for a token that it was not "
            "pretrained with)"
            if eod != EOD
            else "a template that begins and ends turns with other tokens",
        )


def _check_learned(renderer: Renderer, place: str) -> None:
    """Refuse a template by which more is learned than what the assistant says."""
    text, spans = _spoken(renderer)
    for start, end in spans:
        said = text[start:end]
        owners = [word for word in ANSWERS if word in said]
        if any(word in said for word in OTHERS) or len(owners) > 1:
            raise InputError.of(
                f"{{% generation %}} in the chat template of {place} encloses more than one answer",
                f"what is not the assistant's would be learned: {said[:200]!r}",
                "{% generation %} and {% endgeneration %} around what the assistant says, in the "
                "branch of its role",
            )
        if not renderer.marks_answers and re.search(r"\w", said.partition(owners[0])[0]):
            raise InputError.of(
                f"the chat template of {place} shows no answer's beginning",
                f"the turn's header would be learned: {said[:200]!r}",
                "{% generation %} around what the assistant says, or add_generation_prompt, which "
                "writes the header that asks for an answer",
            )


def _spoken(renderer: Renderer) -> tuple[str, list[Span]]:
    """Return the first of SPOKEN that the template writes, with what is learned of it."""
    for conversation in SPOKEN:
        try:
            return renderer.with_spans(conversation)
        except Unusable:  # it knows no system, or keeps no turn: rows tell
            continue
    return "", []


def _is_one(name: str, tokenizer: Any) -> bool:
    ids = tokenizer.encode(name, add_special_tokens=False).ids
    return len(ids) == 1 and tokenizer.id_to_token(ids[0]) == name  # one id may be [UNK]
