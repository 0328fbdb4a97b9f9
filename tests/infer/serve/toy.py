"""A decoder without a model, whose next token follows from the last three and their place."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from torch import Tensor

from data_pipeline.tokenizer.encoder import train_tokenizer
from loopcoder.config.serving import ServeConfig
from loopcoder.infer.engine import Engine
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.serve.app import make_app
from loopcoder.infer.serve.metrics import Metrics
from loopcoder.infer.serve.model import Served
from loopcoder.infer.serve.run import listen, most_open, serve
from loopcoder.infer.serve.worker import Worker

TEXTS = ["def add(a, b):\n    return a + b\n", "loop gate window value key é 漢字\n"] * 20
_PRIMES = (7919, 104729, 1299709)


class Toy:
    """Logits of a table, in the row that the last tokens say."""

    def __init__(self, vocabulary: int, num_places: int, max_length: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(997, vocabulary, generator=generator) * 3
        self.vocabulary, self.num_places, self.max_length = vocabulary, num_places, max_length
        self.seen: dict[int, list[int]] = {}
        self.prefilled: list[int] = []
        """Tokens of all prompts so far, by pass."""
        self.may_run = threading.Event()
        self.may_run.set()
        self.error: Exception | None = None

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits after some ids."""
        row = sum(p * (i + 1) for p, i in zip(_PRIMES, reversed(ids), strict=False)) + len(ids)
        return self.table[row % len(self.table)]

    def prefill(
        self,
        prompts: Mapping[int, Sequence[int]],
        read: Callable[[int, int, Tensor], None] | None = None,
        wanted: Collection[int] | None = None,
    ) -> Tensor:
        self._wait()
        self.prefilled.append(sum(map(len, prompts.values())))
        for place, ids in prompts.items():
            self.seen[place] = list(ids)
            if read is not None and (wanted is None or place in wanted):
                read(place, 0, torch.stack([self.logits(ids[: i + 1]) for i in range(len(ids))]))
        return torch.stack([self.logits(ids) for ids in prompts.values()])

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Tensor:
        self._wait()
        for place, token in zip(places, tokens, strict=True):
            self.seen[place].append(int(token))
        return torch.stack([self.logits(self.seen[place]) for place in places])

    def greedy(self, ids: Sequence[int], number: int) -> list[int]:
        """Return the most probable continuation."""
        found = list(ids)
        for _ in range(number):
            found.append(int(self.logits(found).argmax()))
        return found[len(ids) :]

    def logprobs(self, ids: Sequence[int]) -> Tensor:
        """Return the log-probabilities after some ids. [vocabulary]"""
        return self.logits(ids).double().log_softmax(-1)

    def _wait(self) -> None:
        assert self.may_run.wait(30)
        if self.error is not None:
            raise self.error


class Canned(Toy):
    """Answers every prompt with the same tokens."""

    def __init__(self, *about: int):
        super().__init__(*about)
        self.answer: list[int] = []
        self._lengths: dict[int, int] = {}

    def prefill(
        self,
        prompts: Mapping[int, Sequence[int]],
        read: Callable[[int, int, Tensor], None] | None = None,
        wanted: Collection[int] | None = None,
    ) -> Tensor:
        super().prefill(prompts, read, wanted)
        self._lengths |= {place: len(ids) for place, ids in prompts.items()}
        return self._next(list(prompts))

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Tensor:
        super().step(places, tokens)
        return self._next(places)

    def _next(self, places: Sequence[int]) -> Tensor:
        said = [len(self.seen[place]) - self._lengths[place] for place in places]
        rows = torch.tensor([self.answer[number] for number in said])
        return 50.0 * torch.nn.functional.one_hot(rows, self.vocabulary)


@cache
def tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    train_tokenizer(TEXTS, 330, path)
    return Tokenizer.from_file(str(path))


TEMPLATE = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.content == "refuse me" %}{{ raise_exception("it does not") }}{% endif %}
{{- m.role }}: {{ m.content }}
{%- for call in m.tool_calls or [] %}{{ call.function.arguments.x + 1 }}{% endfor %}
{%- endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does, which tells nobody."""
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until, "it has not come to that in 30 s"


class Stand:
    """A server on a toy, with a client in the same process."""

    def __init__(
        self,
        tokens: Tokenizer,
        seed: int,
        key: str | None = None,
        toy: type[Toy] = Toy,
        template: str = TEMPLATE,
        **settings: Any,
    ):
        usual = {"port": 0, "places": 4, "max_length": 64, "max_waiting": 8}
        self.config = ServeConfig(**(usual | settings))
        assert self.config.max_length is not None
        size = tokens.get_vocab_size()
        self.toy = toy(size, self.config.places, self.config.max_length, seed)
        self.eos = int(torch.randint(0, size, (), generator=torch.Generator().manual_seed(seed)))
        waiting = most_open(self.config)
        self.engine = Engine(self.toy, tokens, frozenset({self.eos}), max_waiting=waiting)
        self.tokens, self.key, self._template = tokens, key, template

    def prompts(self, template: bool) -> Prompts:
        special: Any = SimpleNamespace(
            chat_template=self._template if template else None,
            bos_id=self.eos,
            end_ids=[self.eos],
            bos="",
            eos="",
            pad="",
        )
        return Prompts(self.tokens, special, self.config.tool_format)

    @contextmanager
    def client(self, *, template: bool = True, strict: bool = False) -> Iterator[TestClient]:
        self.failures: list[bool] = []
        self.worker = Worker(
            self.engine, most_open(self.config), Metrics(), lambda: self.failures.append(True)
        )
        most, special_tokens = most_open(self.config), self.config.special_tokens
        self.served = Served("toy", self.engine, self.prompts(template), most, special_tokens)
        app = make_app(self.served, self.worker, self.config, self.key)
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=strict) as client:
            yield client

    def serve[T](self, visit: Callable[[int], T]) -> tuple[T, list[str]]:
        """Serve on a port of its own in this thread, until a client in another one has ended, who
        gets the port; return what that returns, and what the server printed."""
        said: list[str] = []
        ports: queue.Queue[int] = queue.Queue()

        def report(text: str) -> None:
            said.append(text)
            if text.startswith("serving"):
                ports.put(int(text.removesuffix("/v1").rpartition(":")[2]))

        def client() -> T:
            try:
                return visit(ports.get(timeout=30))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, lambda *_: None)  # a server may end by itself
        try:
            with ThreadPoolExecutor() as pool, listen(self.config, self.key) as taken:
                result = pool.submit(client)
                serve(self.engine, "toy", self.prompts(True), self.config, self.key, taken, report)
                return result.result(), said
        finally:
            signal.signal(signal.SIGTERM, before)
