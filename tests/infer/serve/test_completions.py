"""POST /v1/completions, against what the model gives by itself."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient

from loopcoder.infer.request import Token
from loopcoder.infer.serve.logprobs import CompletionLogprobs
from tests.infer.serve.toy import Stand

URL = "/v1/completions"


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def events(client: TestClient, url: str = URL, **body: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, which must end by [DONE]."""
    with client.stream("POST", url, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def drawn(rng: random.Random, stand: Stand, length: int) -> list[int]:
    return [rng.randrange(stand.toy.vocabulary) for _ in range(length)]


def test_every_form_of_a_prompt(stand: Stand, client: TestClient, rng: random.Random) -> None:
    texts = ["def add(", "loop gate é"]
    ids = [stand.tokens.encode(text, add_special_tokens=False).ids for text in texts]
    body = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    want = [stand.engine.bytes_of.text(stand.toy.greedy(one, 6)) for one in ids]
    for prompt in (texts[0], ids[0], texts, ids):
        answer = ask(client, prompt=prompt, **body)
        found = [choice["text"] for choice in answer["choices"]]
        assert found == want[: len(found)]
        assert len(found) == (2 if prompt in (texts, ids) else 1)
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(found)))
    used = sum(map(len, ids))
    assert answer["usage"] == {
        "prompt_tokens": used,
        "completion_tokens": 12,
        "total_tokens": used + 12,
    }
    assert answer["object"] == "text_completion" and answer["model"] == "toy"


def test_the_request_of_lm_eval(stand: Stand, client: TestClient, rng: random.Random) -> None:
    """Prompts of unequal length with echo and one token, which is there even if it ends a
    document."""
    prompts = [drawn(rng, stand, length) for length in (1, 9, 30)]
    prompts += [next(p for p in iter(lambda: drawn(rng, stand, 5), None) if ends(stand, p))]
    answer = ask(
        client, prompt=prompts, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234
    )
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told = choice["logprobs"]
        assert {len(column) for column in told.values()} == {len(prompt) + 1}
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        whole = [*prompt, stand.toy.greedy(prompt, 1)[0]]
        for at in range(1, len(whole)):
            exact = stand.toy.logprobs(whole[:at])
            logprob = told["token_logprobs"][at]
            assert logprob == pytest.approx(float(exact[whole[at]]), abs=1e-5)
            is_greedy = logprob == max(told["top_logprobs"][at].values())
            assert is_greedy == (whole[at] == int(exact.argmax()))
        assert choice["finish_reason"] == ("stop" if whole[-1] == stand.eos else "length")
    assert answer["choices"][-1]["finish_reason"] == "stop"


def ends(stand: Stand, prompt: list[int]) -> bool:
    """Make the next token of a prompt the end of a document."""
    row = stand.toy.logits(prompt)
    row[stand.eos] = row.max() + 1
    return True


def test_echo_alone_reads_the_prompt(stand: Stand, client: TestClient, rng: random.Random) -> None:
    text = "def add(a, b): é\n"
    body = {"prompt": text, "echo": True, "max_tokens": 0}
    answer = ask(client, **body)
    assert answer["choices"][0] == {
        "index": 0,
        "text": text,
        "logprobs": None,
        "finish_reason": "length",
    }
    assert answer["usage"]["completion_tokens"] == 0
    told = ask(client, logprobs=2, **body)["choices"][0]["logprobs"]
    number = len(stand.tokens.encode(text, add_special_tokens=False).ids)
    assert {len(column) for column in told.values()} == {number}
    starts = told["text_offset"]
    for token, begin, end in zip(told["tokens"], starts, [*starts[1:], len(text)], strict=True):
        assert "\ufffd" in token or text[begin:end] == token


def test_two_tokens_of_one_text_are_told_once_with_the_better(stand: Stand) -> None:
    bytes_of = stand.engine.bytes_of
    broken = [i for i in range(stand.toy.vocabulary) if bytes_of.named(i) in (b"\xc3", b"\xe6")]
    token = Token(broken[0], -3.0, ((broken[1], -1.0), (5, -2.0)))
    told = CompletionLogprobs(bytes_of).of([], [token])
    assert told["top_logprobs"][0]["\ufffd"] == -1.0
    assert len(told["top_logprobs"][0]) == 2


def test_stops(stand: Stand, client: TestClient, rng: random.Random) -> None:
    prompt = drawn(rng, stand, 4)
    ids = stand.toy.greedy(prompt, 12)
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    whole = ask(client, **body)["choices"][0]["text"]
    at = rng.randrange(len(whole))
    found = ask(client, stop=["no such text", whole[at:]], **body)["choices"][0]
    assert found["text"] == whole[: whole.index(whole[at:])]
    assert found["finish_reason"] == "stop"
    found = ask(client, stop_token_ids=[ids[3]], logprobs=0, **body)["choices"][0]
    assert found["text"] == stand.engine.bytes_of.text(ids[: ids.index(ids[3])])
    assert len(found["logprobs"]["tokens"]) == ids.index(ids[3]) + 1


def test_samples_have_seeds_of_their_own(stand: Stand, client: TestClient) -> None:
    body = {"prompt": ["def", "loop"], "n": 3, "max_tokens": 20, "temperature": 1.5}
    first, again = (ask(client, seed=7, **body)["choices"] for _ in range(2))
    assert first == again and [c["index"] for c in first] == list(range(6))
    texts = [choice["text"] for choice in first]
    assert len(set(texts[:3])) == 3 and len(set(texts[3:])) == 3
    assert [c["text"] for c in ask(client, seed=8, **body)["choices"]][:2] == texts[1:3]
    assert [c["text"] for c in ask(client, **body)["choices"]] != texts
    used = ask(client, **body)["usage"]["prompt_tokens"]
    assert used == sum(len(stand.tokens.encode(text).ids) for text in body["prompt"])


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_is_the_whole_answer(
    stand: Stand, client: TestClient, rng: random.Random, echo: bool
) -> None:
    body = {
        "prompt": [drawn(rng, stand, 3), "é loop"],
        "max_tokens": 15,
        "temperature": 0,
        "logprobs": rng.randrange(3),
        "echo": echo,
    }
    whole = ask(client, **body)
    *chunks, usage = events(client, stream_options={"include_usage": True}, **body)
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    for number, choice in enumerate(whole["choices"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == number]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, column in choice["logprobs"].items():
            assert [x for part in parts for x in part["logprobs"][name]] == column
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
    assert all("usage" not in chunk for chunk in events(client, **body))


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": [[]]}, None, "no tokens"),
        ({"prompt": 5}, "prompt", "a list of token ids"),
        ({"prompt": [1, "a"]}, "prompt", "a list of token ids"),
        ({"prompt": [True]}, "prompt", "a list of token ids"),
        ({"prompt": [100_000]}, None, "token id 100000"),
        ({"max_tokens": 0}, "max_tokens", "asks for nothing"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 3.0}, "max_tokens", "integer"),
        ({"max_tokens": 62}, "prompt", "has 3 tokens, and with max_tokens=62"),
        ({"temperature": "0"}, "temperature", "number"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"n": 0}, "n", "1"),
        ({"stop": ""}, "stop", "none empty"),
        ({"stop": ["x"] * 33}, "stop", "up to 32"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"temprature": 1}, "temprature", "is temperature meant?"),
        ({"n": 128, "prompt": ["a"] * 9}, None, "1152 sequences"),
    ],
)
def test_what_is_wrong_is_said(
    client: TestClient, wrong: dict[str, Any], param: str | None, said: str
) -> None:
    answer = client.post(URL, json={"prompt": [1, 2, 3]} | wrong)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert said in error["message"] and error["param"] == param


def test_what_asks_for_nothing_is_accepted(client: TestClient) -> None:
    ask(
        client,
        model="toy",
        prompt="def",
        best_of=1,
        suffix=None,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        user="somebody",
        stop=None,
        max_tokens=None,
    )


def test_a_prompt_above_the_context_is_refused_with_its_length(client: TestClient) -> None:
    answer = client.post(URL, json={"prompt": [1] * 70, "max_tokens": 1})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "70 tokens" in error["message"] and "64 tokens" in error["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"prompt": "\\ud800"}', b"\xff"])
def test_what_is_no_json_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "error" in answer.json()


def test_too_many_sequences_are_refused_before_one_is_made(
    stand: Stand, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object, **__: object) -> None:
        raise AssertionError("it was made")

    monkeypatch.setattr("loopcoder.infer.serve.completions.Request", made)
    monkeypatch.setattr("loopcoder.infer.serve.chat.Request", made)
    most = stand.worker.most
    chat = {"messages": [{"role": "user", "content": "x"}], "n": most + 1}
    for path, body in (
        (URL, {"prompt": "x", "n": most + 1}),
        (URL, {"prompt": [[1]] * (most // 2 + 1), "n": 2}),
        ("/v1/chat/completions", chat),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 400 and f"at most {most} under way" in answer.text


def test_ids_are_written_for_an_echo_alone_and_once_they_are_checked(
    stand: Stand, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(_: object) -> str:
        raise AssertionError("it was written")

    monkeypatch.setattr(stand.served, "written", written)
    ask(client, prompt=[1, 2])
    for prompt in ([2**31 - 1], [1] * 70):
        assert client.post(URL, json={"prompt": prompt, "echo": True}).status_code == 400


def test_a_text_above_the_context_is_not_tokenised(
    stand: Stand, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_of = stand.engine.bytes_of
    longest = max(range(stand.toy.vocabulary), key=lambda i: len(bytes_of.named(i)))
    token = bytes_of.named(longest).decode()
    assert ask(client, prompt=token, max_tokens=1)["usage"]["prompt_tokens"] >= 1

    def tokenised(_: str) -> None:
        raise AssertionError("it was tokenised")

    monkeypatch.setattr(stand.served.prompts, "of_text", tokenised)
    monkeypatch.setattr(stand.served, "special_tokens", "keep")  # the longest may be one
    long = token * stand.toy.max_length + "x"
    chat = {"messages": [{"role": "user", "content": long}]}
    for path, body in ((URL, {"prompt": [long]}), ("/v1/chat/completions", chat)):
        error = client.post(path, json=body).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert f"no token more than {len(token.encode())}" in error["message"]


def test_few_texts_are_tokenised_at_a_time(
    stand: Stand, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_text, five = stand.served.of_text, threading.Barrier(5)

    def meeting(*args: Any) -> Any:
        with suppress(threading.BrokenBarrierError):  # for all, once one has waited in vain
            five.wait(0.3)
        return of_text(*args)

    monkeypatch.setattr(stand.served, "of_text", meeting)
    body = {"prompt": "x", "max_tokens": 1}
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(client.post, URL, json=body) for _ in range(10)]
        assert {one.result().status_code for one in asked} == {200}
    assert five.broken
