"""Servers on a port: clients that go away, that read slowly, and the end by a signal."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from loopcoder.config.serving import ServeConfig
from loopcoder.errors import InputError
from loopcoder.infer.serve import run
from loopcoder.infer.serve.connections import connection_within
from loopcoder.infer.serve.run import key_from_environment, listen
from tests.infer.serve.toy import Stand, eventually

URL = "/v1/completions"
HEADERS = {"Content-Type": "application/json"}
BODY: dict[str, Any] = {"prompt": [1, 2], "max_tokens": 50, "temperature": 0, "ignore_eos": True}


def gauge(port: int, name: str) -> int:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    line = next(line for line in text.splitlines() if line.startswith(f"loopcoder_{name} "))
    return int(line.split()[1])


def until(port: int, name: str, value: int) -> None:
    eventually(lambda: gauge(port, name) == value)


def ended(port: int) -> int:
    """Return how many requests for completions have ended, in whatever way."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    mine = [line for line in lines if line.startswith(f'loopcoder_requests_total{{path="{URL}"')]
    return sum(int(line.rsplit(" ", 1)[1]) for line in mine)


def begun(port: int, **body: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", URL, json.dumps(BODY | body), HEADERS)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(
    tokens: Tokenizer, seed: int, stream: bool
) -> None:
    """One that runs, and one that waits for the only place."""
    stand = Stand(tokens, seed, places=1)

    def visit(port: int) -> str:
        stand.toy.may_run.clear()
        running = begun(port, stream=stream)
        until(port, "sequences_running", 1)
        waiting = begun(port, prompt=[3], stream=stream)
        until(port, "sequences_waiting", 1)
        running.close()
        waiting.close()
        eventually(lambda: ended(port) == 2)
        stand.toy.may_run.set()
        until(port, "sequences_running", 0)
        answer = httpx.post(f"http://127.0.0.1:{port}{URL}", json=BODY)
        return str(answer.json()["choices"][0]["text"])

    text, _ = stand.serve(visit)
    assert text == stand.engine.bytes_of.text(stand.toy.greedy([1, 2], 50))
    assert stand.engine.totals.answers["cancelled"] >= 1
    assert stand.engine.totals.generated_tokens < 100
    assert 1 not in stand.toy.prefilled  # nobody read the prompt of who waited


def test_a_slow_reader_stops_nobody_and_gets_all(tokens: Tokenizer, seed: int) -> None:
    stand = Stand(tokens, seed, places=2, max_length=1100)
    body = {"max_tokens": 1000, "logprobs": 5, "stream": True}

    def visit(port: int) -> str:
        connection = begun(port, **body)
        slow = connection.getresponse()
        answer = httpx.post(f"http://127.0.0.1:{port}{URL}", json=BODY | {"prompt": [5, 6]})
        assert answer.status_code == 200
        until(port, "sequences_running", 0)  # it is done, and waits to be read
        events = slow.read().decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        choices = [json.loads(event[6:])["choices"][0] for event in events[:-2]]
        assert sum(len(choice["logprobs"]["tokens"]) for choice in choices) == 1000
        return "".join(choice["text"] for choice in choices)

    text, _ = stand.serve(visit)
    assert text == stand.engine.bytes_of.text(stand.toy.greedy([1, 2], 1000))


class Unread:
    """Connections with small buffers on both sides, and what becomes of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.lost = threading.Event(), threading.Event()
        monkeypatch.setattr(run, "connection_within", self._protocol)

    @contextmanager
    def asked(self, port: int, **body: Any) -> Iterator[None]:
        """Ask for some 200 KB, and read nothing of them."""
        long = {"prompt": [1] * 999, "echo": True, "logprobs": 5, "max_tokens": 0}
        content = json.dumps(long | body).encode()
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
            assert self.full.wait(30)
            yield

    def _protocol(self, timeout_s: float) -> type[Any]:
        unread = self

        class Small(connection_within(timeout_s)):  # type: ignore[misc]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                used = transport.get_extra_info("socket")
                used.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

            def pause_writing(self) -> None:
                super().pause_writing()
                unread.full.set()

            def connection_lost(self, error: Exception | None) -> None:
                super().connection_lost(error)
                if unread.full.is_set():
                    unread.lost.set()

        return Small


def test_a_connection_that_nobody_reads_is_cut(
    tokens: Tokenizer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be one of those that there may be until the client goes away."""
    stand, unread = Stand(tokens, seed, max_length=1000, timeout_s=1), Unread(monkeypatch)

    def visit(port: int) -> bool:
        with unread.asked(port):
            return unread.lost.wait(15)

    was_cut, _ = stand.serve(visit)
    assert was_cut


def test_a_second_signal_waits_for_nobody(
    tokens: Tokenizer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the end of `serve.grace_s` nor for a client that does not read."""
    stand, unread = Stand(tokens, seed, max_length=1000, grace_s=20), Unread(monkeypatch)
    asked = ExitStack()

    def visit(port: int) -> float:
        asked.enter_context(unread.asked(port, stream=True))
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503)
        return time.monotonic()  # the second signal comes now

    with asked:
        began, _ = stand.serve(visit)
        assert time.monotonic() - began < 10


def test_a_chunked_body_is_read_no_further_than_it_may_be_long(
    tokens: Tokenizer, seed: int
) -> None:
    stand = Stand(tokens, seed, max_body_bytes=100_000)

    def visit(port: int) -> tuple[bytes, int]:
        sent, chunk = 0, b"1000\r\n" + b" " * 0x1000 + b"\r\n"
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            try:
                while sent < 2**28:
                    connection.sendall(chunk)
                    sent += len(chunk)
            except OSError:  # the server has closed
                pass
            try:
                return connection.recv(4096), sent
            except ConnectionResetError:
                return b"", sent

    (answer, sent), _ = stand.serve(visit)
    assert sent < 2**27
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


def test_what_runs_may_end_after_a_signal_and_nothing_new_begins(
    tokens: Tokenizer, seed: int
) -> None:
    stand = Stand(tokens, seed, places=1)

    def visit(port: int) -> tuple[int, int, str]:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            client.get("/health")
            stand.toy.may_run.clear()
            running = begun(port)
            until(port, "sequences_running", 1)
            os.kill(os.getpid(), signal.SIGTERM)
            eventually(lambda: client.get("/health").status_code == 503)
            new = client.post(URL, json=BODY)
            assert new.headers["retry-after"]
            stand.toy.may_run.set()
            answer = running.getresponse()
            text = json.loads(answer.read())["choices"][0]["text"]
            return new.status_code, answer.status, text

    (new, status, text), said = stand.serve(visit)
    assert (new, status) == (503, 200)
    assert text == stand.engine.bytes_of.text(stand.toy.greedy([1, 2], 50))
    assert said[1].startswith("SIGTERM: 1 sequences under way have 30 s")


def test_what_is_not_done_in_time_is_ended(tokens: Tokenizer, seed: int) -> None:
    stand = Stand(tokens, seed, places=1, grace_s=0.05)

    def visit(port: int) -> tuple[int, str]:
        stand.toy.may_run.clear()
        whole, stream = begun(port), begun(port, stream=True)
        until(port, "sequences_running", 1)
        until(port, "sequences_waiting", 1)
        os.kill(os.getpid(), signal.SIGTERM)
        answers = whole.getresponse(), stream.getresponse()
        stand.toy.may_run.set()
        return answers[0].status, answers[1].read().decode()

    (status, events), _ = stand.serve(visit)
    assert status == 503
    assert "the server is stopping" in events and "[DONE]" not in events


def test_a_failure_of_the_model_ends_the_server(tokens: Tokenizer, seed: int) -> None:
    stand = Stand(tokens, seed)
    stand.toy.error = FloatingPointError("of the toy")
    found = []

    def visit(port: int) -> None:
        found.append(httpx.post(f"http://127.0.0.1:{port}{URL}", json=BODY).status_code)

    with pytest.raises(FloatingPointError, match="of the toy"):
        stand.serve(visit)
    assert found == [500]


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"without a key[\s\S]*export LOOPCODER_API_KEY"):
        listen(ServeConfig(host="0.0.0.0", port=0), None)
    with listen(ServeConfig(host="0.0.0.0", port=0), "key"), pytest.raises(InputError):
        listen(ServeConfig(host="203.0.113.1", port=0), "key")
    with listen(ServeConfig(host="127.0.0.1", port=0), None) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=r"already in use[\s\S]*serve.port=ANOTHER"):
            listen(ServeConfig(port=port), None)
    for wrong in ("", " ", "é", "a\nb", " a"):
        monkeypatch.setenv("LOOPCODER_API_KEY", wrong)
        with pytest.raises(InputError, match="LOOPCODER_API_KEY"):
            key_from_environment()
    monkeypatch.setenv("LOOPCODER_API_KEY", "sk-5")
    assert key_from_environment() == "sk-5"
    monkeypatch.delenv("LOOPCODER_API_KEY")
    assert key_from_environment() is None
