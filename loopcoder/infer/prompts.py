"""Prompts from texts, ids and conversations: the same for commands, server and evaluation."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from loopcoder.chat.calls import TAGS, AnswerStream, Format, format_of
from loopcoder.chat.messages import normalised, normalised_tools, spelled_in
from loopcoder.chat.render import Renderer
from loopcoder.chat.unusable import REASONS, Unusable
from loopcoder.config.types import SpecialTokensInText, ToolFormat
from loopcoder.data.tokenizer import read_tokenizer
from loopcoder.errors import InputError
from loopcoder.hf.card import Tokenizer as SpecialTokens
from loopcoder.infer.loading import tokenizer_of
from loopcoder.infer.sources import Source

_GIVEN = {
    "add_generation_prompt",
    "bos_token",
    "chat_template",
    "continue_final_message",
    "conversations",
    "documents",
    "eos_token",
    "messages",
    "pad_token",
    "return_assistant_tokens_mask",
    "self",
    "tools",
}
"""What is said to a template besides options."""


class Prompts:
    """What makes prompts for a model.

    Texts are tokenised as the documents of a corpus are: nothing is put in front. Names of special
    tokens in a text, `<|fim_prefix|>`, become these tokens.
    """

    format: Format
    """In which the model answers in a chat."""
    _renderer: Renderer | None
    """Of the chat template; None: there is none."""

    def __init__(self, tokenizer: Any, special: SpecialTokens, tool_format: ToolFormat = "auto"):
        """
        Args:
            tokenizer: A `tokenizers.Tokenizer`.
            tool_format: In which the model writes calls of tools; auto: that of its template.

        Raises:
            InputError: its chat template is none.
        """
        self.tokenizer = tokenizer
        self._names = {
            "bos_token": special.bos,
            "eos_token": special.eos,
            "pad_token": special.pad,
        }
        self._speak(special.chat_template)
        if tool_format != "auto":
            calls = None if tool_format == "none" else tool_format
            self.format = replace(format_of(self.template), calls=calls)
        self.shown = frozenset(i for tag in TAGS if (i := tokenizer.token_to_id(tag)) is not None)
        """Tokens that say what is what in an answer of a chat, whose names are needed."""
        self.begin_id = special.bos_id
        """What a prompt without any token begins with."""
        self.end_ids = frozenset(special.end_ids)
        """Tokens that end an answer: a document, or a turn of a conversation."""

    @classmethod
    def of_source(cls, source: Source, tool_format: ToolFormat = "auto") -> Prompts:
        """Make prompts for weights.

        Args:
            tool_format: As of the class.

        Raises:
            InputError: they have no tokenizer, one that names no end of a document, or a chat
                template that is none.
        """
        path = tokenizer_of(source)
        tokenizer = read_tokenizer(path)
        return cls(tokenizer, SpecialTokens.of(path, source.specials), tool_format)

    def speaking(self, template: str) -> Prompts:
        """Return the same with another chat template, in whose format the model answers then.

        Raises:
            InputError: it is none.
        """
        found = copy(self)
        found._speak(template)
        return found

    def _speak(self, template: str | None) -> None:
        self._renderer, self.format = None, format_of(template)
        if template is not None:
            _check_template(template)
            self._renderer = Renderer.of(template, self.tokenizer, self._names)

    @property
    def template(self) -> str | None:
        """The chat template, in Jinja."""
        return None if self._renderer is None else self._renderer.template

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

    def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
        special_tokens: SpecialTokensInText = "keep",
    ) -> str:
        """Return a conversation as the text that the model reads, up to where it answers.

        Args:
            messages: With `role` and `content`, and what else the template knows.
            tools: JSON schemas of functions.
            options: Of the template, as `enable_thinking`.
            special_tokens: Whether messages and tools may spell special tokens of the tokenizer.

        Raises:
            InputError: there is no template, it refuses the conversation, has no place for its
                tools or does not know an option, or what renders it is not installed.
        """
        renderer = self._renderer
        if renderer is None:
            raise InputError.of(
                "the model has no chat template",
                "it says how a conversation is written as text, and weights that were trained on "
                "conversations come with one (chat_template.jinja)",
                "a prompt of plain text",
            )
        self.check_options(options)
        if tools and not renderer.reads("tools"):
            raise InputError.of(
                "the chat template has no place for tools",
                "the model would never see them",
                "a conversation without tools, or weights whose template writes them",
            )
        try:
            form = [
                normalised(message, splits_reasoning=renderer.reads_reasoning)
                for message in messages
            ]
            schemas = normalised_tools(tools or ())
            if special_tokens == "refuse":
                _refuse_special(renderer.special, form, schemas)
            text = renderer.text(form, schemas, add_generation_prompt=True, **options)
            text.encode()
            return text
        except UnicodeEncodeError as error:
            raise InputError.of(
                "the conversation has half of a pair of surrogates",
                f"it is no Unicode: {error.reason}",
                "text.encode(errors='replace').decode()",
            ) from error
        except Unusable as error:
            raise InputError.of(
                f"the conversation {reprlib.repr([*messages])} cannot be written",
                f"{REASONS[error.reason]}: {error.detail}",
                "messages and tools in OpenAI's form, such as {role: user, content: TEXT}",
            ) from error

    def check_options(self, options: Iterable[str]) -> None:
        """Refuse options that the template does not have, or that are given to it anyway.

        Raises:
            InputError: there is such a one.
        """
        for name in options:
            if name in _GIVEN or self._renderer is None or not self._renderer.reads(name):
                raise InputError.of(
                    f"{name} for the chat template",
                    "it is given to it anyway" if name in _GIVEN else "it has no such option",
                    "options that the template names, such as enable_thinking of Qwen3's",
                )

    def reader(self, prompt: str, tools: Sequence[Mapping[str, Any]] | None) -> AnswerStream:
        """Return what reads the answer to a conversation.

        Args:
            prompt: As `rendered` returned it.
            tools: Without any, what looks like a call is content.
        """
        answers = self.format if tools else replace(self.format, calls=None)
        in_reasoning = answers.begins_in_reasoning(prompt)
        return AnswerStream(answers, tools or (), in_reasoning=in_reasoning)


def _refuse_special(
    special: Sequence[str],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse special tokens that somebody spells, but for the tags of a call that the assistant
    got wrong."""
    own = [name for name in special if name not in TAGS]
    others = [message for message in messages if message["role"] != "assistant"]
    spelled = spelled_in([others, tools], special) or spelled_in(messages, own)
    if spelled is not None:
        raise InputError.of(
            f"the conversation spells {spelled}",
            "it is a special token, with which a text could forge turns of others, and "
            "conversations that spell one were not learned either unless asked for",
            "another text, or special_tokens=keep (serve.special_tokens, generate.special_tokens)",
        )


def _check_template(template: str) -> None:
    try:
        Renderer(template, {}).reads("messages")
    except Unusable as error:
        raise InputError.of(
            f"the chat template of the weights: {error.detail}",
            "it is no template in Jinja",
            "chat_template.jinja as it was published, beside the weights",
        ) from error
