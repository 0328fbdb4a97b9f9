"""Malformed bodies: each is refused with a reason, and none troubles the server."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.infer.serve.toy import Stand

NUMBER = 2000
COMPLETION: dict[str, Any] = {
    "model": "toy",
    "prompt": [[1, 2, 3], [4]],
    "max_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "n": 1,
    "stop": ["a", "b"],
    "stop_token_ids": [7],
    "seed": 1,
    "echo": True,
    "logprobs": 1,
    "stream": True,
    "stream_options": {"include_usage": True},
    "suffix": None,
    "presence_penalty": 0,
    "user": "me",
}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "é"}]},
        {
            "role": "assistant",
            "content": "x",
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        },
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "max_tokens": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "text"},
    "stop": "x",
}
CALL: dict[str, Any] = {
    "messages": [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    ],
    "max_tokens": 2,
}
"""A chat in which there is little to change but the arguments of a call."""
DEPTHS = (5, 150, 250, 3000)
ODD: list[Any] = [
    *(f"DEEP {depth}" for depth in DEPTHS),
    *(f"DEEP STRING {depth}" for depth in DEPTHS),
    '"\\ud800"', '{"x": "\\ud800"}', '{"\\ud800": 1}', '{"x": 1e999}', '{"x": NaN}', '{"x": 5}',
    "[" * 10**5,
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.5, 1e308, 1e-320, 5.5,
    "", "a", "\x00", "\ud800", "x" * 5000, "NaN", [], [[]], [None], [[[1]]], ["", 1], {}, {"": {}},
    {"type": "text"}, [{}], [1] * 300, float("nan"), float("inf"),
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a body."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(len(value))) if isinstance(value, list) else []
    return [at for key in keys for at in [(value, key), *places(value[key])]]


def other_content(rng: random.Random, body: dict[str, Any]) -> bytes:
    """Return a body with a few values, names or lengths changed."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not body:
            break
        container, key = rng.choice(places(body))
        change = rng.randrange(5)
        if change == 0 and isinstance(container, dict):
            container[rng.choice(("", "\x00", "prompts", "x" * 300, str(key) + "s"))] = (
                container.pop(key)
            )
        elif change == 1:
            del container[key]
        elif change == 2:
            container[key] = [container[key]]
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
    return _dumped(body)


def other_bytes(rng: random.Random, body: dict[str, Any]) -> bytes:
    """Return a body with a few bytes changed, lost or doubled."""
    content = bytearray(_dumped(body))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(content) or 1)
        change = rng.randrange(4)
        if change == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif change == 1:
            del content[at : at + rng.randrange(1, 20)]
        elif change == 2:
            content[at:at] = content[at : at + rng.randrange(1, 20)]
        else:
            del content[at + 1 :]
    return bytes(content)


def _dumped(body: Any) -> bytes:
    """Return a body as JSON, in which some values are deeper than a parser may recurse."""
    content = json.dumps(body).encode()
    for depth in DEPTHS:
        for value, quote in (("DEEP", b""), ("DEEP STRING", b'"')):
            deep = quote + b"[" * depth + b"]" * depth + quote
            content = content.replace(f'"{value} {depth}"'.encode(), deep)
    return content


@pytest.mark.clients
def test_malformed_bodies_are_refused(
    tokens: Tokenizer, rng: random.Random, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    stand = Stand(tokens, seed)
    refused = 0
    with stand.client(strict=True) as client:
        while refused < NUMBER:
            path, body = rng.choice(
                [
                    ("/v1/completions", COMPLETION),
                    ("/v1/chat/completions", CHAT),
                    ("/v1/chat/completions", CALL),
                ]
            )
            content = rng.choice((other_content, other_bytes))(rng, body)
            answer = client.post(
                path, content=content, headers={"Content-Type": "application/json"}
            )
            if answer.status_code == 200:  # the change was within what is allowed
                assert b'"error"' not in answer.content, content[:500]
                continue
            refused += 1
            assert 400 <= answer.status_code < 500, (answer.text, content[:500])
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error" and error["message"]
            assert len(answer.content) < 3000 and "Traceback" not in answer.text
        assert client.get("/health").status_code == 200
    assert stand.worker.num_open == stand.engine.num_running == 0
    assert stand.worker.error is None and not caplog.records
