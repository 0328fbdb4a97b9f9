"""Replies that are long: how long they may be, and where they are made."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from starlette.testclient import TestClient

from loopcoder.infer.serve import completions, logprobs
from loopcoder.infer.serve.logprobs import CompletionLogprobs
from tests.infer.serve.toy import Stand

URL = "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (URL, {"prompt": [[1] * 10, [2] * 5], "echo": True, "logprobs": 4}, 5 * (15 + 2 * 16)),
        (URL, {"prompt": [1] * 10, "n": 3, "max_tokens": 7, "logprobs": 0}, 3 * 7),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": ""}],
                "max_tokens": 6,
                "n": 2,
                "logprobs": True,
                "top_logprobs": 3,
            },
            2 * 6 * 4,
        ),
    ],
)
def test_log_probabilities_of_one_request_are_limited(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], told: int
) -> None:
    monkeypatch.setattr(logprobs, "MOST_TOLD", told)
    assert client.post(path, json=body).status_code == 200
    monkeypatch.setattr(logprobs, "MOST_TOLD", told - 1)
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert (
        f"{told:,} log-probabilities, and at most {told - 1:,}" in answer.json()["error"]["message"]
    )


@pytest.mark.parametrize("stream", [False, True])
def test_what_may_be_long_is_not_made_in_the_event_loop(
    stand: Stand, client: TestClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    loop, made = [], []
    submit = stand.worker.submit

    class Noting(CompletionLogprobs):
        def of(self, *args: Any) -> Any:
            made.append(threading.get_ident())
            return super().of(*args)

    def submitted(*args: Any) -> Any:
        loop.append(threading.get_ident())
        return submit(*args)

    monkeypatch.setattr(completions, "CompletionLogprobs", Noting)
    monkeypatch.setattr(stand.worker, "submit", submitted)
    body = {"prompt": [1] * 40, "echo": True, "logprobs": 2, "stream": stream, "max_tokens": 1}
    assert client.post(URL, json=body).status_code == 200
    assert made and made[0] not in loop
