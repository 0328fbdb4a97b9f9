"""Models as lm-eval sees them.

That in this process is lm-eval's client of OpenAI's completions without the HTTP between: what is
asked, cut and summed is the client's code, so that scores are those that it finds of
`loopcoder serve`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
import requests
from lm_eval.models.openai_completions import LocalCompletionsAPI

from loopcoder.config.benchmarks import TasksConfig
from loopcoder.errors import InputError, Unreachable
from loopcoder.evaluate.in_process import InProcess
from loopcoder.evaluate.server import KEY, Server
from loopcoder.infer.request import Answer, Request, Sampling


class _Client(LocalCompletionsAPI):
    """lm-eval's client, which sends no empty stop strings: servers refuse them."""

    def _create_payload(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._create_payload(*arguments, **named)
        if "stop" in payload:
            payload["stop"] = [text for text in payload["stop"] if text]
        return payload


class InProcessLM(_Client):
    """A model in this process. No method reaches for the network."""

    def __init__(self, model: InProcess, seed: int):
        super().__init__(
            model="loopcoder",
            base_url=None,
            tokenizer_backend="none",
            batch_size=model.at_once,
            max_length=model.max_length,
            max_retries=1,
            seed=seed,
        )
        self._model = model
        self.tokenizer, self.tokenized_requests = model.prompts.tokenizer, True

    @property
    def eot_token_id(self) -> int:
        return min(self._model.prompts.end_ids)

    @property
    def prefix_token_id(self) -> int:
        return self._model.prompts.begin_id

    @property
    def eos_string(self) -> str | None:
        # Also where it is spelt out, as the client asks of a server.
        name: str | None = self.tokenizer.id_to_token(self.eot_token_id)
        return name

    def tok_encode(self, string: Any, *_: Any, **__: Any) -> Any:
        if isinstance(string, str):
            return self.tokenizer.encode(string, add_special_tokens=False).ids
        return [self.tok_encode(text) for text in string]

    def model_call(
        self,
        messages: Sequence[Sequence[int]],
        *,
        generate: bool = True,
        gen_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> list[Answer]:
        payload = self._create_payload(
            messages,
            generate=generate,
            gen_kwargs=dict(gen_kwargs or {}),
            seed=self._seed,
            eos=self.eos_string,
        )
        prompts = [self._model.prompts.of_ids(ids) for ids in messages]
        return self._model.answers([_request(ids, payload) for ids in prompts])

    @staticmethod
    def parse_logprobs(
        outputs: Sequence[Answer], tokens: Any = None, ctxlens: Any = None, **_: Any
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        for answer, length in zip(outputs, ctxlens, strict=True):
            # the first token alone has no probability, and is never asked for
            told = [token for token in answer.prompt[length:] if token.logprob is not None]
            greedy = all(token.logprob == token.top[0][1] for token in told)
            found.append((sum(token.logprob or 0.0 for token in told), greedy))
        return found

    @staticmethod
    def parse_generations(outputs: Sequence[Answer], **_: Any) -> list[str]:
        return [answer.text for answer in outputs]


class ServerLM(_Client):
    """A model behind a server."""

    def __init__(self, server: Server, config: TasksConfig):
        """Raises InputError where `tasks.tokenizer` has no tokenizer."""
        if config.tokenizer is None:
            raise InputError.of(
                "tasks.tokenizer is not given",
                "tasks of lm-eval send tokens to a server",
                "tasks.tokenizer=FOLDER, that of the model",
            )
        try:
            super().__init__(
                model=server.name,
                base_url=f"{server.url}/completions",
                tokenizer_backend="huggingface",
                tokenizer=config.tokenizer,
                num_concurrent=config.places,
                max_length=server.max_length if config.max_length is None else config.max_length,
                max_retries=3,
                seed=config.seed,
                header={"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {},
            )
        except Exception as error:  # transformers raises whatever it likes
            raise InputError.of(
                f"tasks.tokenizer={config.tokenizer} cannot be loaded: {error}"[:600],
                "nothing is downloaded, so it is a folder that transformers reads",
                "tasks.tokenizer=FOLDER, that of the model",
            ) from error

    def loglikelihood(self, *arguments: Any, **named: Any) -> Any:
        with self._told():
            return super().loglikelihood(*arguments, **named)

    def loglikelihood_rolling(self, *arguments: Any, **named: Any) -> Any:
        with self._told():
            return super().loglikelihood_rolling(*arguments, **named)

    def generate_until(self, *arguments: Any, **named: Any) -> Any:
        with self._told():
            return super().generate_until(*arguments, **named)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let what the client raises after its last attempt be an error of ours."""
        try:
            yield
        except (aiohttp.ClientError, requests.RequestException, OSError, ValueError) as error:
            answered = getattr(error, "response", None)
            status = getattr(error, "status", getattr(answered, "status_code", 0))
            if 400 <= status < 500 and status not in (408, 429):
                raise InputError.of(
                    f"{self.base_url} refuses: {error}",
                    "a question of the task is none that it answers",
                    f"export {KEY}=..."
                    if status in (401, 403)
                    else "tasks.max_length=N, at most that of the server, or another task",
                ) from error
            raise Unreachable.of(
                f"{self.base_url} does not answer",
                str(error) or repr(error),
                "the same command again, once it answers",
            ) from error


def _request(ids: tuple[int, ...], payload: dict[str, Any]) -> Request:
    """Return what a server would make of the payload."""
    payload = dict(payload)
    for name in ("model", "prompt"):
        payload.pop(name)
    most = payload.pop("max_tokens")
    sampling = Sampling(
        temperature=float(payload.pop("temperature")),
        top_k=max(int(payload.pop("top_k", 0)), 0),
        top_p=float(payload.pop("top_p", 1.0)),
        min_p=float(payload.pop("min_p", 0.0)),
        seed=payload.pop("seed"),
    )
    if payload.pop("echo", False):
        # The one token that a server has to generate besides would be dropped.
        return Request(ids, 0, prompt_logprobs=payload.pop("logprobs"))
    stop = tuple(payload.pop("stop", ()))
    if payload:
        raise InputError.of(
            f"the task asks for {', '.join(payload)} in its generation_kwargs",
            "there is no such way of sampling",
            "leave it out of the task, or run another one",
        )
    return Request(ids, int(most), sampling, stop)
