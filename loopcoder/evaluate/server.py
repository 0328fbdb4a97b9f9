"""A model behind a server of OpenAI's completions, such as `loopcoder serve` or vLLM."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from loopcoder.errors import InputError, Unreachable
from loopcoder.evaluate.subjects import Prompt
from loopcoder.network import is_own_name

KEY = "OPENAI_API_KEY"
"""Variable that has the server's key, if it wants one."""
_TIMEOUT_S = 600
_LENGTH = 2048
"""Tokens that a prompt and its answer may have where a server does not say it; lm-eval's own."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is sent along to wherever a redirect leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Server:
    """Asks a server over HTTP."""

    def __init__(
        self,
        url: str,
        name: str | None = None,
        at_once: int = 16,
        waits_s: Sequence[float] = (1, 2, 4, 8),
    ):
        """
        Args:
            url: With or without `/v1` at its end.
            name: Of the model; None: the first that the server has.
            at_once: Requests that it gets at a time.
            waits_s: Before a prompt is sent again to a server that is too busy or not there.

        Raises:
            InputError: it is no URL, or there is no such server or model.
        """
        if not url.startswith(("http://", "https://")):
            why = "a server has a URL"
            raise InputError.of(f"server={url}", why, "server=http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._at_once, self._waits_s = at_once, waits_s
        self._opener = _opener(url)
        try:
            models = {str(model["id"]): model for model in self._asked("models")["data"]}
        except (Unreachable, LookupError, TypeError) as error:
            raise InputError.of(
                f"{self.url}/models does not answer: {error.__cause__ or error!r}",
                "the server is asked for the names of its models",
                "loopcoder serve checkpoint=DIR, and server= with the URL that it prints",
            ) from error
        if not models or (name is not None and name not in models):
            why = f"it has {', '.join(models) or 'none'}"
            fix = f"tasks.name={next(iter(models))}" if models else "another server"
            raise InputError.of(f"{self.url} has no model {name or ''}".strip(), why, fix)
        self.name = name or next(iter(models))
        model = models[self.name]
        # That of others is the time of the answer.
        is_ours = model.get("owned_by") == "loopcoder"
        self.identity = f"served since {model['created']}" if is_ours else None
        """Changes when the server may have got other weights; None: it does not say it."""
        self.max_length = int(model.get("max_model_len") or _LENGTH)
        """Of a prompt and its answer together, as `loopcoder serve` and vLLM say it."""

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        with ThreadPoolExecutor(self._at_once) as pool:
            asked = {pool.submit(self._continued, p): i for i, p in enumerate(prompts)}
            try:
                for answer in as_completed(asked):
                    yield asked[answer], answer.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _continued(self, prompt: Prompt) -> str:
        body = {
            "model": self.name,
            "prompt": prompt.text,
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.sampling.temperature,
            "top_p": prompt.sampling.top_p,
            "stop": list(prompt.stop),
            "seed": prompt.sampling.seed,
        }
        said = self._patiently("completions", body)
        try:
            return str(said["choices"][0]["text"])
        except (LookupError, TypeError) as error:
            raise InputError.of(
                f"{self.url}/completions answers {json.dumps(said)[:200]}",
                "an answer has choices with a text",
                "a server of OpenAI's API",
            ) from error

    def _patiently(self, path: str, body: dict[str, Any]) -> Any:
        """Return what the server answers, if it does so after some time."""
        for wait_s in self._waits_s:
            try:
                return self._asked(path, body)
            except Unreachable:
                time.sleep(wait_s)
        return self._asked(path, body)

    def _asked(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return what the server answers.

        Raises:
            InputError: it refuses.
            Unreachable: it does not answer, or is not able to now.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = _said(error)
            if 300 <= error.code < 400:
                raise InputError.of(
                    f"{self.url}/{path} sends to {error.headers.get('Location')}",
                    "another server would get the key and the prompts",
                    "server= with the URL that is to be asked",
                ) from error
            if error.code in (408, 429) or error.code >= 500:
                raise self._unreachable(f"{error.code} {said}") from error
            why = f"it answers {error.code}: {said}"
            fix = f"export {KEY}=..." if error.code in (401, 403) else "ask for what it has"
            raise InputError.of(f"{self.url}/{path} refuses", why, fix) from error
        except (OSError, ValueError, HTTPException) as error:
            raise self._unreachable(str(error) or repr(error)) from error

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable.of(
            f"{self.url} does not answer", why, "the same command again, once it answers"
        )


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if is_own_name(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy would look on its own machine
    return urllib.request.build_opener(*handlers)


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(500).decode(errors="replace")
    except (OSError, HTTPException):
        return ""
