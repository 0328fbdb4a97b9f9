"""The chat template of a build, and the special tokens that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from data_pipeline.tasks.work import Output, Result, Work
from data_pipeline.tokenizer.count import Tokenizer, encoder_of
from data_pipeline.tokenizer.encoder import Encoder
from loopcoder.chat.fit import check_end, check_fit
from loopcoder.chat.render import Renderer
from loopcoder.chat.templates import BUILT_IN, FILE, built_in, named, speaks_chatml, template_of
from loopcoder.chat.templates import token_names_of as token_names_beside
from loopcoder.config.build import EOD, EODS, PADS
from loopcoder.config.data import DataConfig
from loopcoder.data.places import tokenizer_file
from loopcoder.data.tokenizer import read_tokenizer
from loopcoder.errors import InputError
from loopcoder.storage.files import write_bytes

DEFAULT = "hermes"
"""Of tokenizers that have none and can write ChatML: conversations without tools are in it what
`chatml` makes of them."""


@dataclass(frozen=True)
class Template(Result):
    """The template of the build."""

    stage: ClassVar[str] = "template"
    xxh3_128: str
    names: dict[str, str]
    """Special tokens as templates call them: `bos_token`, ..."""
    filler_id: int
    """Token that fills a sequence up."""


def template_text(data: DataConfig) -> str:
    """Return the template that a build renders conversations with.

    Raises:
        InputError: it cannot be read, or none is given and the tokenizer has none.
    """
    if data.build.chat.template is not None:
        return named(data.build.chat.template)
    place = tokenizer_file(Path(data.build.tokenizer))
    if (own := template_of(place)) is not None:
        return own
    if speaks_chatml(read_tokenizer(place).get_vocab()):
        return built_in(DEFAULT)
    raise InputError.of(
        f"the tokenizer {data.build.tokenizer} has no chat template",
        "conversations are rendered by one, and it has no special tokens of ChatML either, in "
        "which those that come with loopcoder write",
        f"data.build.chat.template=FILE.jinja ({', '.join(BUILT_IN)} need <|im_start|>), or the "
        "folder of another tokenizer",
    )


def check_template(data: DataConfig) -> None:
    """Raise InputError if there is no template, or it is another tokenizer's, or does not show
    which part of the text is whose; or has no place for the system prompt that is asked for."""
    chat, place = data.build.chat, data.build.chat.template or data.build.tokenizer
    file = tokenizer_file(Path(data.build.tokenizer))
    text, tokenizer, names = template_text(data), read_tokenizer(file), token_names_beside(file)
    check_fit(text, tokenizer, place, names)
    renderer = Renderer.of(text, tokenizer, names)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    check_end(renderer, next((name for name in EODS if name in added), EOD), place)
    if chat.system is None:
        return
    if "system" in renderer.hides:
        raise InputError.of(
            f"data.build.chat.system, and the chat template of {place} writes no system prompt",
            "every conversation would be left out",
            "data.build.chat.system=null, or another data.build.chat.template",
        )
    if chat.special_tokens == "drop" and (
        spelled := [name for name in renderer.special if name in chat.system]
    ):
        raise InputError.of(
            f"data.build.chat.system spells {', '.join(spelled)}",
            "what is said has no special tokens: every conversation would be left out",
            "a system prompt without it; the template writes the turn around it",
        )


def template_digest(data: DataConfig) -> str:
    """Return the hash of what decides how conversations are rendered, 32 hex digits."""
    names = sorted(token_names_beside(tokenizer_file(Path(data.build.tokenizer))).items())
    return xxhash.xxh3_128_hexdigest(f"{template_text(data)}\0{names}".encode())


def take(work: Work, _: int) -> Output:
    """Keep the template in the work folder."""
    text = template_text(work.data).encode()
    names = token_names_beside(tokenizer_file(Path(work.data.build.tokenizer)))
    write_bytes(template_file(work), text)
    digest = xxhash.xxh3_128_hexdigest(text)
    filler = _filler(encoder_of(work), names)
    return Output(Template(digest, names, filler), files=[template_file(work)])


def template_file(work: Work) -> Path:
    """Return where the template of a build is kept."""
    return work.tokenizer.with_name(FILE)


def renderer_of(work: Work) -> tuple[Renderer, Any]:
    """Return what renders conversations, and the `tokenizers.Tokenizer` that encodes them.

    Raises:
        InputError: a file of the build was changed.
    """
    done = work.done(Template)
    template = done.file(template_file(work)).read_text(encoding="utf-8")
    tokenizer = read_tokenizer(work.done(Tokenizer).file(work.tokenizer))
    return Renderer.of(template, tokenizer, done.result.names), tokenizer


def _filler(encoder: Encoder, names: dict[str, str]) -> int:
    """Return the id of the padding token, unless it ends documents; else that of a line end."""
    for name in (names.get("pad_token"), *PADS):
        found = encoder.markers.get(name or "")
        if found is not None and found != encoder.eod_id:
            return found
    return int(encoder.encode_pieces(["\n"])[0][0])
