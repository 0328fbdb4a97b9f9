"""What every request passes: keys, sizes, times, and how much is under way at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from tests.infer.serve.toy import Stand, eventually

URL = "/v1/completions"
OWN = ("localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]")
BODY: dict[str, Any] = {"prompt": [1, 2], "max_tokens": 2, "temperature": 0}


@pytest.fixture
def stand(tokens: Tokenizer, seed: int) -> Stand:
    return Stand(tokens, seed, max_body_bytes=1000)


def test_a_key(tokens: Tokenizer, seed: int) -> None:
    with Stand(tokens, seed, key="s3cret").client() as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/elsewhere"):
            refused = client.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        for shown in ("Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer é"):
            refused = client.post(URL, json=BODY, headers={b"Authorization": shown.encode()})
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        shown = {"Authorization": "bearer s3cret"}
        assert client.post(URL, json=BODY, headers=shown).status_code == 200


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        *((f"{name}{port}", True) for name in OWN for port in ("", ":8000")),
        *((name, False) for name in ("evil.example", "evil.example:8000", "", "10.0.0.1", "[::2]")),
        *((name, False) for name in ("localhost.evil.example", "127.0.0.1.evil.example")),
    ],
)
def test_a_name_that_a_page_on_the_web_has_is_refused_without_a_key(
    client: TestClient, host: str, is_ours: bool
) -> None:
    """It may mean 127.0.0.1 by then."""
    for path in ("/v1/models", "/metrics"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == (200 if is_ours else 421)
        assert is_ours or "LOOPCODER_API_KEY" in answer.json()["error"]["message"]


def test_with_a_key_any_name_will_do(tokens: Tokenizer, seed: int) -> None:
    headers = {"Host": "models.example", "Authorization": "Bearer s3cret"}
    with Stand(tokens, seed, key="s3cret").client() as client:
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_body_has_a_largest_length(client: TestClient) -> None:
    too_long = BODY | {"user": "x" * 1000}
    answer = client.post(URL, json=too_long)
    assert answer.status_code == 413 and "serve.max_body_bytes" in answer.text
    assert client.post(URL, json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", URL, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/completions/../models", 405),
    ],
)
def test_other_paths_and_methods(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_only_json_is_taken(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post(URL, content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415


def test_models(stand: Stand, client: TestClient) -> None:
    assert client.get("/v1/models").json()["data"][0]["id"] == "toy"
    assert client.post(URL, json=BODY | {"model": "toy"}).status_code == 200
    other = client.post(URL, json=BODY | {"model": "gpt"})
    assert other.status_code == 404 and other.json()["error"]["code"] == "model_not_found"


def test_more_than_may_wait_is_told_to_come_again(tokens: Tokenizer, seed: int) -> None:
    stand = Stand(tokens, seed, places=1, max_waiting=2)
    stand.toy.may_run.clear()
    with stand.client() as client, ThreadPoolExecutor() as pool:
        under_way = pool.submit(client.post, URL, json=BODY | {"prompt": [[1], [2], [3]]})
        eventually(lambda: stand.worker.num_open == 3)
        busy = client.post(URL, json=BODY)
        assert busy.status_code == 429 and busy.headers["retry-after"] == "1"
        assert 'status="429"} 1' in client.get("/metrics").text
        stand.toy.may_run.set()
        assert under_way.result().status_code == 200
        assert client.post(URL, json=BODY).status_code == 200
    assert stand.worker.num_open == 0


@pytest.mark.parametrize("stream", [False, True])
def test_time_is_limited(tokens: Tokenizer, seed: int, stream: bool) -> None:
    stand = Stand(tokens, seed, timeout_s=0.1)
    stand.toy.may_run.clear()
    with stand.client() as client:
        body = BODY | {"stream": stream, "max_tokens": 60, "ignore_eos": True}
        answer = client.post(URL, json=body)
        assert answer.status_code == (200 if stream else 504)
        assert "took more than 0.1 s" in answer.text and "[DONE]" not in answer.text
        eventually(lambda: stand.worker.num_open == 0)  # a stream ends before its place is free
        stand.toy.may_run.set()
        eventually(lambda: stand.engine.totals.answers["cancelled"] == 1)
        assert stand.engine.num_running == 0 and stand.engine.totals.generated_tokens < 60


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_model_is_told_to_all(tokens: Tokenizer, seed: int, stream: bool) -> None:
    stand = Stand(tokens, seed, places=1)
    stand.toy.may_run.clear()
    with stand.client() as client, ThreadPoolExecutor() as pool:
        asked = [pool.submit(client.post, URL, json=BODY | {"stream": stream}) for _ in range(3)]
        eventually(lambda: stand.worker.num_open == 3)
        stand.toy.error = RuntimeError("of the toy")
        stand.toy.may_run.set()
        for answer in asked:
            assert answer.result().status_code == (200 if stream else 500)
            assert "the log of the server" in answer.result().text
            assert "of the toy" not in answer.result().text
        assert stand.failures == [True] and stand.worker.error is stand.toy.error
        assert client.post(URL, json=BODY).status_code == 503
        assert client.get("/health").status_code == 503


def test_an_error_of_ours_is_told_without_its_reason(stand: Stand, client: TestClient) -> None:
    def wrong(_: object) -> None:
        raise ZeroDivisionError("with a secret")

    stand.served.check = wrong  # type: ignore[assignment,method-assign]
    answer = client.post(URL, json=BODY)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert stand.worker.num_open == 0


def test_metrics_are_text_for_prometheus(stand: Stand, client: TestClient) -> None:
    used = [client.post(URL, json=BODY).json()["usage"] for _ in range(3)]
    client.get("/nowhere")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in answer.text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert values['loopcoder_requests_total{path="/v1/completions",status="200"}'] == 3
    assert values['loopcoder_requests_total{path="other",status="404"}'] == 1
    assert values["loopcoder_prompt_tokens_total"] == 6
    generated = sum(u["completion_tokens"] for u in used)
    assert values["loopcoder_generated_tokens_total"] == generated
    assert values["loopcoder_sequences_running"] == values["loopcoder_sequences_waiting"] == 0
    for name in ("first_token_seconds", "request_seconds"):
        assert values[f"loopcoder_{name}_count"] == 3
        assert values[f'loopcoder_{name}_bucket{{le="+Inf"}}'] == 3


def test_many_at_once_get_their_own_answers(tokens: Tokenizer, seed: int) -> None:
    stand = Stand(tokens, seed, max_waiting=64)
    prompts = [[i, i + 1, i + 2] for i in range(24)]
    start = threading.Barrier(len(prompts))

    def ask(prompt: list[int]) -> str:
        start.wait()
        body = {"prompt": prompt, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
        return str(client.post(URL, json=body).json()["choices"][0]["text"])

    with stand.client() as client, ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(ask, prompts))
    bytes_of = stand.engine.bytes_of
    assert found == [bytes_of.text(stand.toy.greedy(prompt, 20)) for prompt in prompts]
