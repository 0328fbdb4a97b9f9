"""Prompts from texts, ids and conversations: the same for commands, server and evaluation."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from loopcoder.chat.render import Renderer
from loopcoder.chat.unusable import Unusable
from loopcoder.data.tokenizer import read_tokenizer
from loopcoder.errors import InputError
from loopcoder.hf.card import Tokenizer as SpecialTokens
from loopcoder.infer.loading import tokenizer_of
from loopcoder.infer.sources import Source


class Prompts:
    """What makes prompts for a model.

    Texts are tokenised as the documents of a corpus are: nothing is put in front. Names of special
    tokens in a text, `<|fim_prefix|>`, become these tokens.
    """

    def __init__(self, tokenizer: Any, special: SpecialTokens):
        """
        Args:
            tokenizer: A `tokenizers.Tokenizer`.
        """
        self.tokenizer, self.template = tokenizer, special.chat_template
        self.begin_id = special.bos_id
        """What a prompt without any token begins with."""
        self.end_ids = frozenset(special.end_ids)
        """Tokens that end an answer: a document, or a turn of a conversation."""
        self._names = {
            "bos_token": special.bos,
            "eos_token": special.eos,
            "pad_token": special.pad,
        }

    @classmethod
    def of_source(cls, source: Source) -> Prompts:
        """Make prompts for weights.

        Raises:
            InputError: they have no tokenizer, or one that names no end of a document.
        """
        path = tokenizer_of(source)
        tokenizer = read_tokenizer(path)
        return cls(tokenizer, SpecialTokens.of(path, source.specials))

    def of_text(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text; of an empty one the token that documents begin behind."""
        return self.of_ids(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def num_bytes(self, text: str) -> int:
        """Return the bytes that the tokens of a text stand for, without tokenising it.

        Raises:
            UnicodeEncodeError: it has half a surrogate pair.
        """
        normalizer = self.tokenizer.normalizer
        text.encode()
        return len((text if normalizer is None else normalizer.normalize_str(text)).encode())

    def of_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return ids as a prompt; of none the token that documents begin behind."""
        return tuple(ids) or (self.begin_id,)

    def of_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        """Return the ids of a conversation, up to where the assistant answers.

        Args:
            messages: With `role` and `content`, and what else the template knows.
            tools: JSON schemas of functions.

        Raises:
            InputError: there is no template, it refuses the conversation, or what renders it is
                not installed.
        """
        return self.of_text(self.rendered(messages, tools))

    def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return a conversation as the text that the model reads, up to where it answers.

        Raises:
            InputError: as `of_chat`.
        """
        if self.template is None:
            raise InputError.of(
                "the model has no chat template",
                "it says how a conversation is written as text, and weights that were trained on "
                "conversations come with one (chat_template.jinja)",
                "a prompt of plain text",
            )
        renderer = Renderer(self.template, self._names)
        try:
            return renderer.text(messages, tools, add_generation_prompt=True)
        except Unusable as error:
            raise InputError.of(
                f"the chat template does not take {reprlib.repr([*messages])}",
                error.detail,
                "messages of the form {role: user, content: TEXT}",
            ) from error
