"""What the endpoints know of the model that is served; safe to be used by several threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopcoder.config.types import SpecialTokensInText
from loopcoder.errors import InputError
from loopcoder.infer.engine import Engine
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Request
from loopcoder.infer.serve.refusals import Refused


class Served:
    """The model's name, prompts and limits."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        prompts: Prompts,
        most: int,
        special_tokens: SpecialTokensInText = "refuse",
    ):
        """
        Args:
            most: Sequences that may be under way at once.
            special_tokens: What becomes of chats that spell one.
        """
        self.name, self.prompts, self.most = name, prompts, most
        self.eos, self.bytes_of = engine.eos, engine.bytes_of
        self.max_length = engine.decoder.max_length
        self._engine, self.special_tokens = engine, special_tokens

    def check_name(self, name: str | None) -> None:
        """Refuse a request for another model."""
        if name is not None and name != self.name:
            raise Refused(
                404,
                f"there is no model {name[:200]!r} here; this server has {self.name!r}",
                "model",
                "model_not_found",
            )

    def check_number(self, prompts: int, samples: int) -> None:
        """Refuse more sequences than there may be, before any of them is made."""
        if prompts * samples > self.most:
            raise Refused(
                400,
                f"the request asks for {prompts * samples} sequences, and the server has at most "
                f"{self.most} under way at once; send fewer prompts at once, or a smaller n",
            )

    def written(self, ids: Sequence[int]) -> str:
        """Return ids as a text in which special tokens stand."""
        return b"".join(map(self.bytes_of.named, ids)).decode(errors="replace")

    def of_text(self, text: str, param: str = "prompt") -> tuple[int, ...]:
        """Return the ids of a text, unless it is too long whatever its tokens are.

        Args:
            param: The field of the body that it comes from.
        """
        try:
            number = self.prompts.num_bytes(text)
        except UnicodeEncodeError as error:
            raise Refused(400, f"the text is no Unicode: {error.reason}", param) from error
        longest = self.bytes_of.longest
        if number > self.max_length * longest:
            raise Refused(
                400,
                f"the prompt has {number:,} bytes, and no token more than {longest}; a prompt and "
                f"its answer may have {self.max_length:,} tokens together",
                param,
                "context_length_exceeded",
            )
        return self.prompts.of_text(text)

    def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> str:
        """Return a conversation as the text that the model reads, up to where it answers.

        Args:
            options: For the template.
        """
        if self.prompts.template is None:
            raise Refused(
                400,
                f"{self.name} has no chat template, so a conversation cannot be put to it; "
                "POST /v1/completions takes a text",
                "messages",
            )
        try:
            self.prompts.check_options(options)
        except InputError as error:
            raise Refused.by(error, "chat_template_kwargs") from error
        try:
            return self.prompts.rendered(messages, tools, options, self.special_tokens)
        except InputError as error:
            raise Refused.by(error, "messages") from error

    def check_length(self, ids: Sequence[int], max_tokens: int) -> None:
        """Refuse a prompt that leaves no room for its answer."""
        if len(ids) + max_tokens > self.max_length:
            raise Refused(
                400,
                f"the prompt has {len(ids)} tokens, and with max_tokens={max_tokens} it is longer "
                f"than the {self.max_length} tokens that a prompt and its answer may have together",
                "prompt",
                "context_length_exceeded",
            )

    def check(self, request: Request) -> None:
        """Refuse what the engine cannot answer."""
        try:
            self._engine.check(request)
        except InputError as error:
            raise Refused.by(error) from error
