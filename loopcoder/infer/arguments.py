"""The arguments of `LoadedRun.generate`, checked by the schema that the command line has."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from loopcoder.config.fields import FieldAt
from loopcoder.config.generation import GenerateConfig
from loopcoder.config.mistakes import problems_of
from loopcoder.config.types import STRICT, NonNegativeInt
from loopcoder.errors import InputError
from loopcoder.infer.request import Request, Sampling

if TYPE_CHECKING:
    from loopcoder.infer.prompts import Prompts

_FIX = 'run.generate("def main():"), a list of token ids, or a list of such prompts'


@dataclass(frozen=True, config=STRICT)
class GenerateArguments(GenerateConfig):
    """What is asked of a model in this process."""

    max_tokens: NonNegativeInt = 256
    """Most tokens of an answer; 0: the prompt alone is read, for `prompt_logprobs`."""
    logprobs: NonNegativeInt | None = None
    """Most probable tokens that are told at each generated one."""
    prompt_logprobs: NonNegativeInt | None = None
    """The same at the tokens of the prompt."""

    def request(self, ids: tuple[int, ...], prompts: Prompts, *, in_chat: bool = False) -> Request:
        """Return what is asked of the continuation of a prompt.

        Args:
            in_chat: The answer is a turn of a conversation.
        """
        return Request(
            ids,
            self.max_tokens,
            Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.seed),
            tuple(self.stop),
            frozenset() if self.ignore_end else prompts.end_ids,
            self.logprobs,
            self.prompt_logprobs,
            prompts.shown if in_chat else frozenset(),
        )


def checked(**arguments: Any) -> GenerateArguments:
    """Return arguments by name as the schema reads them.

    Raises:
        InputError: with all that is wrong.
    """
    stop = arguments["stop"]
    given = arguments | {"stop": [stop] if isinstance(stop, str) else stop}
    try:
        asked = TypeAdapter(GenerateArguments).validate_python(given)
    except ValidationError as error:
        raise InputError(problems_of(FieldAt(GenerateArguments), error, {})) from error
    if asked.max_tokens == 0 and asked.prompt_logprobs is None:
        why = "nothing would be generated, and nothing told of the prompt"
        raise InputError.of("max_tokens=0", why, "max_tokens=1 or more, or prompt_logprobs=0")
    return asked


def prompts_in(prompt: Any) -> tuple[list[Any], bool]:
    """Return the prompts of an argument, each a text or a list of ids; and whether it is one.

    Raises:
        InputError: it is no prompt, and no list of prompts.
    """
    if _is_prompt(prompt) and (isinstance(prompt, str) or len(prompt) > 0):
        prompts, is_one = [prompt], True
    elif isinstance(prompt, list | tuple):
        prompts, is_one = [*prompt], False
    else:
        raise _no_prompt(prompt)
    for one in prompts:
        if not _is_prompt(one):
            raise _no_prompt(one)
        if isinstance(one, str):
            _check_text(one)
    return prompts, is_one


def _is_prompt(one: Any) -> bool:
    if isinstance(one, list | tuple):
        return all(isinstance(i, Integral) and not isinstance(i, bool) for i in one)
    return isinstance(one, str)


def _no_prompt(one: Any) -> InputError:
    why = "a prompt is a str, or a list or tuple of token ids"
    fix = ".tolist() of it, for token ids" if hasattr(one, "tolist") else _FIX
    fix = ".decode() of it" if isinstance(one, bytes) else fix
    return InputError.of(f"{type(one).__name__} for a prompt: {one!r}"[:80], why, fix)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError.of(
            f"the prompt has {text[error.start]!r} at character {error.start:,}",
            "half of a pair of surrogates is no character, and no tokenizer reads it",
            'text.encode(errors="replace").decode(), or a file read as UTF-8',
        ) from error
