"""The bodies of requests: what OpenAI's API has, with strict types and limits.

A field that would change the answer and that this server does not have is refused, unless its value
asks for nothing; fields for accounting are accepted and ignored; unknown ones are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loopcoder.chat.tool_checks import check_schema
from loopcoder.infer.request import Sampling
from loopcoder.infer.serve.refusals import Refused

MOST_LOGPROBS = 20
_MOST_STOPS = 32
_MOST_CHOICES = 128
_IGNORED = (
    "metadata",
    "parallel_tool_calls",  # of a chat see ChatBody
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
"""Fields about accounts, caches and what a server may do: none changes an answer here."""
_MISSING: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that this server does not have, with the values that ask for nothing, besides null."""

StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_First = Field(fail_fast=True)
"""Of lists: pydantic keeps an error for each wrong element otherwise, 3 KB each."""
TokenIds = Annotated[list[TokenId], _First]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown_field(cls, given: Any) -> Any:
        """Drop unknown fields but the first, which is what is told; each would be an error."""
        if not isinstance(given, dict) or len(given) <= len(cls.model_fields):
            return given
        unknown = next(name for name in given if name not in cls.model_fields)
        return {n: value for n, value in given.items() if n in cls.model_fields or n == unknown}


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False
    """Of OpenAI's, against who listens to encrypted traffic; false there means none too."""


class Body(_Strict):
    """What completions and chat have in common."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Of vLLM's; 0 and -1: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of vLLM's."""
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=_MOST_STOPS), _First] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=_MOST_STOPS), _First] | None = None
    """Of vLLM's."""
    ignore_eos: bool | None = None
    """Of vLLM's: go on past the end of a document."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    missing: ClassVar[Mapping[str, tuple[Any, ...]]] = _MISSING

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Parse and check a body.

        Raises:
            Refused: with what is wrong with it first.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise _refused(error, list(cls.model_fields)) from None

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_missing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, neutral in cls.missing.items():
            value = given.get(name)
            asks = value is not None and (isinstance(value, bool) or value not in neutral)
            if asks and name not in cls.model_fields:
                raise Refused(400, f"{name} is not supported by this server; leave it out", name)
        dropped = {*_IGNORED, *cls.missing} - {*cls.model_fields}
        return {name: value for name, value in given.items() if name not in dropped}

    @model_validator(mode="after")
    def _options_are_of_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options needs stream: true", "stream_options")
        return self

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> tuple[str, ...]:
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop or ())

    def stop_ids(self, eos: frozenset[int]) -> frozenset[int]:
        """Return the tokens that end an answer.

        Args:
            eos: Those that end a document.
        """
        return frozenset(self.stop_token_ids or ()) | (frozenset() if self.ignore_eos else eos)

    def sampling(self, sample: int) -> Sampling:
        """Return how the tokens of a prompt's n-th answer are drawn; each has a seed of its own."""
        return Sampling(
            temperature=1.0 if self.temperature is None else float(self.temperature),
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else float(self.top_p),
            min_p=float(self.min_p or 0),
            seed=None if self.seed is None else self.seed + sample,
        )


class CompletionBody(Body):
    """The body of POST /v1/completions."""

    prompt: str | TokenIds | Annotated[list[str | TokenIds], _First]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Self:
        if self.prompt == []:
            raise Refused(400, "prompt is an empty list", "prompt")
        if self.max_tokens == 0 and not self.echo:
            raise Refused(400, "max_tokens=0 without echo asks for nothing", "max_tokens")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as it was given."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat; what it has besides (name, tool_calls, ...) goes to the template."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], _First] | None = None


class ChatBody(Body):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1), _First]
    tools: Annotated[list[dict[str, Any]], _First] | None = None
    """They are shown to the model by the template, as they were given."""
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Of vLLM's: options of the template, as enable_thinking."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise Refused(400, "top_logprobs needs logprobs: true", "top_logprobs")
        if self.max_tokens == 0:
            raise Refused(400, "max_tokens=0 asks for nothing", "max_tokens")
        if self.tool_choice not in (None, "auto", "none"):
            said = "it is auto or none here: nothing makes this server's model call a tool"
            raise Refused(400, f"tool_choice: {said}", "tool_choice")
        if self.parallel_tool_calls is False and self.tools:
            said = "this server does not hold its model to one call at a time; leave it out"
            raise Refused(400, f"parallel_tool_calls=false: {said}", "parallel_tool_calls")
        for place, tool in enumerate(self.tools or ()):
            _check_tool(tool, f"tools.{place}")
        return self

    @property
    def offered(self) -> list[dict[str, Any]]:
        """Tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def most(self) -> int | None:
        """Most tokens of an answer; None: as many as there is room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def _check_tool(tool: Mapping[str, Any], name: str) -> None:
    """Refuse what is no function with a schema."""
    function = tool.get("function")
    if (
        tool.get("type") != "function"
        or not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or not function["name"]
        or not isinstance(function.get("parameters") or {}, dict)
    ):
        form = "{type: function, function: {name, description, parameters: a JSON schema}}"
        raise Refused(400, f"{name}: a tool is {form}", "tools")
    if wrong := check_schema(function.get("parameters") or {}):
        raise Refused(400, f"{name}: parameters of {function['name'][:100]}: {wrong}", "tools")


def _refused(error: ValidationError, known: list[str]) -> Refused:
    """Return the first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where, kind, text = first["loc"], first["type"], first["msg"]
    field = str(where[0])[:100] if where else None
    if kind == "json_invalid" or field is None:
        return Refused(400, f"the body is no object of JSON that can be read: {text}")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(field, known, n=1)
        hint = f"; is {near[0]} meant?" if near else ""
        name = ".".join(str(part)[:100] for part in where)
        return Refused(400, f"unknown field {name}{hint}", field)
    if kind == "missing":
        return Refused(400, f"{'.'.join(map(str, where))} is missing", field)
    if field == "prompt":
        text = "a text, a list of texts, a list of token ids, or a list of lists of token ids"
    elif field == "stop":
        text = f"a text, or up to {_MOST_STOPS} of them, none empty or above 1,000 characters"
    return Refused(400, f"{field}: {text}", field)
