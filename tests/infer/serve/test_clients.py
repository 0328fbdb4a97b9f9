"""Real clients: the package of OpenAI, and lm-eval against a model in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer

from loopcoder.chat.templates import built_in
from loopcoder.errors import InputError
from loopcoder.hf.export import export
from loopcoder.infer.request import Answer, Request
from tests.hf.folders import made
from tests.infer.serve.servers import Server, served
from tests.infer.serve.toy import Canned, Stand

if TYPE_CHECKING:  # the fast set is collected without it
    import openai

pytestmark = pytest.mark.clients
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def folder(ranks: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of random weights, with a chat template."""
    seed = random.SystemRandom().randrange(2**31)
    place = tmp_path_factory.mktemp(f"model_of_seed_{seed}_")
    out = export(made(place, seed).checkpoint, place / "toy").folder
    (out / "chat_template.jinja").write_text(TEMPLATE)
    return out


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    settings = ["serve.places=8", "serve.max_length=300", "precision=fp32"]
    with served(folder, *settings, env={"LOOPCODER_API_KEY": "k3y"}) as found:
        yield found


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    from loopcoder.infer.engine import Engine
    from loopcoder.infer.loading import load_decoder

    loaded = load_decoder(folder, num_places=8, max_length=300, precision="fp32")
    return Engine(loaded.decoder, loaded.tokenizer, loaded.eos_ids)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    import openai

    with openai.OpenAI(base_url=server.url, api_key="k3y", max_retries=0) as client:
        yield client


def answer(engine: Any, ids: Sequence[int], most: int) -> Answer:
    found: Answer = engine.generate([Request(tuple(ids), most, logprobs=2, stop_ids=engine.eos)])[0]
    return found


def test_completions(client: openai.OpenAI, engine: Any) -> None:
    text = "def add(a, b):"
    ids = engine.tokenizer.encode(text).ids
    found = client.completions.create(
        model="toy", prompt=[text, "loop gate"], max_tokens=20, temperature=0, logprobs=2, echo=True
    )
    first, usage = found.choices[0], found.usage
    assert usage is not None and first.logprobs is not None
    want = answer(engine, ids, 20)
    assert first.text == text + want.text and first.finish_reason == want.finish
    told = first.logprobs.token_logprobs
    assert told is not None and told[0] is None
    assert told[len(ids) :] == pytest.approx([t.logprob for t in want.tokens], abs=1e-4)
    assert usage.completion_tokens >= len(want.tokens)


def test_a_stream_of_completions(client: openai.OpenAI, engine: Any) -> None:
    ids = engine.tokenizer.encode("loop gate window").ids
    stream = client.completions.create(
        model="toy",
        prompt=ids,
        max_tokens=30,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    want = answer(engine, ids, 30)
    assert "".join(chunk.choices[0].text for chunk in chunks) == want.text
    assert last.usage is not None and last.usage.completion_tokens == len(want.tokens)


def test_chat(client: openai.OpenAI, engine: Any) -> None:
    messages: Any = [{"role": "user", "content": "gate?"}]
    ids = engine.tokenizer.encode("user: gate?\nassistant:").ids
    want = answer(engine, ids, 25)
    ask: Any = dict(model="toy", messages=messages, max_completion_tokens=25, temperature=0)
    found = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    choice = found.choices[0]
    assert choice.message.role == "assistant" and choice.message.content == want.text
    content = choice.logprobs.content
    assert [t.logprob for t in content] == pytest.approx([t.logprob for t in want.tokens], abs=1e-4)
    assert all(len(t.top_logprobs) == 2 for t in content)
    stream = client.chat.completions.create(**ask, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == want.text


@pytest.fixture(params=["hermes", "qwen3_coder"])
def told(request: pytest.FixtureRequest, tokens: Tokenizer) -> tuple[Stand, Any]:
    """A server whose model says the same to everything; and what that is, as a client sees it."""
    call = {"city": "漢 </tool_call>", "days": 2}
    written = {
        "hermes": f"<tool_call>\n{json.dumps({'name': 'look', 'arguments': call})}\n</tool_call>",
        "qwen3_coder": "<tool_call>\n<function=look>\n<parameter=city>\n漢 </tool_call>\n"
        "</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
    }[request.param]
    text = f"<think>\nI look.\n</think>\n\nSo: é\n{written}\n{written}"
    template = built_in(request.param) + "{#- <think></think> #}"
    stand = Stand(tokens, 0, toy=Canned, template=template, max_length=3000)
    assert isinstance(stand.toy, Canned)
    stand.eos = tokens.token_to_id("<|endoftext|>")
    stand.engine.eos = frozenset({stand.eos})
    stand.toy.answer = [*tokens.encode(text, add_special_tokens=False).ids, stand.eos]
    return stand, call


def test_calls_of_tools(told: tuple[Stand, Any]) -> None:
    """The package adds deltas up to what it gets as a whole."""
    import openai
    from openai.lib.streaming.chat import ChatCompletionStreamState

    stand, call = told
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties}
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    ask: Any = dict(model="toy", messages=[{"role": "user", "content": "?"}], tools=tools)

    def visit(port: int) -> tuple[Any, Any, Any]:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k") as client:
            whole = client.chat.completions.create(**ask).choices[0]
            state = ChatCompletionStreamState(input_tools=tools)
            for chunk in client.chat.completions.create(**ask, stream=True):
                state.handle_chunk(chunk)
            results = [
                {"role": "tool", "tool_call_id": call.id, "content": "2"}
                for call in whole.message.tool_calls
            ]
            messages = [*ask["messages"], whole.message, *results]
            again = client.chat.completions.create(**(ask | {"messages": messages}))
            return whole, state.get_final_completion().choices[0], again

    (whole, added, again), _ = stand.serve(visit)
    for choice in (whole, added):
        assert choice.finish_reason == "tool_calls" and choice.message.content == "So: é"
        assert choice.message.reasoning_content == "I look."
        calls = choice.message.tool_calls
        assert [one.function.name for one in calls] == ["look"] * 2
        assert [json.loads(one.function.arguments) for one in calls] == [call] * 2
        assert len({one.id for one in calls}) == 2 and {one.type for one in calls} == {"function"}
    assert again.choices[0].finish_reason == "tool_calls"


def test_errors_are_those_of_the_package(client: openai.OpenAI, server: Server) -> None:
    import openai

    assert [model.id for model in client.models.list()] == ["toy"]
    with pytest.raises(openai.BadRequestError, match="400 tokens") as raised:
        client.completions.create(model="toy", prompt=[1] * 400)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="gpt", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").models.list()


def test_what_does_not_fit_is_refused_with_the_arithmetic(folder: Path) -> None:
    """Before weights are read."""
    from loopcoder.cli import serve

    settings = ["serve.port=0", "serve.places=100000"]
    with pytest.raises(InputError, match=r"weights of .* a cache of .*100,000 places") as e:
        serve.run([f"checkpoint={folder}", *settings])
    assert "serve.places=" in e.value.problems[0].fix
    with pytest.raises(InputError, match=r"serve.max_length=131073"):
        serve.run([f"checkpoint={folder}", "serve.port=0", "serve.max_length=131073"])


TASKS = {
    "local_mc": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_gen": """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}, {metric: bleu}]
""",
    "local_ppl": """
output_type: loglikelihood_rolling
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
}
WORDS = ("loop", "gate", "window", "value", "key", "return", "def", "é", "漢字")


@pytest.fixture
def tasks(tmp_path: Path, rng: random.Random) -> Path:
    """A folder of tasks on documents that are drawn."""
    with (tmp_path / "docs.jsonl").open("w") as file:
        for number in range(12):
            words = [rng.choice(WORDS) for _ in range(rng.randrange(3, 30))]
            choices = rng.sample(WORDS, 4)
            doc = {"question": f"def f{number}({' '.join(words)}", "choices": choices}
            file.write(json.dumps(doc | {"answer": rng.randrange(4)}) + "\n")
    for name, about in TASKS.items():
        text = "" if name == "local_ppl" else "{{question}}"
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\ndoc_to_text: '{text}'\n"
            f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'docs.jsonl'}}}}}\n"
            f"metadata: {{version: 1}}\n{about}"
        )
    return tmp_path


def in_process(engine: Any, prefix: int) -> Any:
    """Return the model of this process as lm-eval sees it."""
    from lm_eval.api.model import TemplateLM

    def told(ids: Sequence[int], continuation: int) -> tuple[float, bool]:
        request = Request(tuple(ids), 0, prompt_logprobs=1)
        tokens = engine.generate([request])[0].prompt[len(ids) - continuation :]
        return sum(t.logprob for t in tokens), all(t.logprob == t.top[0][1] for t in tokens)

    class InProcess(TemplateLM):
        eot_token_id = prefix

        def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
            return list(engine.tokenizer.encode(string).ids)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return [told([*ids, *more], len(more)) for _, ids, more in requests]

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            texts = [self.tok_encode(request.args[0]) for request in requests]
            return [told([prefix, *ids], len(ids))[0] for ids in texts]

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            return [self._generate(*request.args) for request in requests]

        def _generate(self, context: str, settings: Any) -> str:
            ids, stop = tuple(self.tok_encode(context)), tuple(settings["until"])
            most = settings["max_gen_toks"]
            request = Request(ids, most, stop=stop, stop_ids=engine.eos)
            return str(engine.generate([request])[0].text)

    return InProcess()


def test_lm_eval_scores_as_in_this_process(
    server: Server, folder: Path, engine: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last printed digit, through its own client of servers."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tasks / "hf"),
        "OPENAI_API_KEY": "k3y",
    }.items():
        monkeypatch.setenv(name, value)
    import lm_eval
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from loopcoder.infer.loading import load_decoder

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    through_server = LocalCompletionsAPI(
        base_url=f"{server.url}/completions",
        model="toy",
        tokenizer_backend="huggingface",
        tokenizer=str(folder),
        tokenized_requests=True,
        batch_size=4,
        num_concurrent=2,
        max_retries=1,
        max_length=300,
    )
    bos = load_decoder(folder, num_places=1, max_length=8, precision="fp32").bos_id
    found = [
        lm_eval.simple_evaluate(
            model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0
        )
        for model in (through_server, in_process(engine, bos))
    ]
    tables = [make_table(one) for one in found]
    assert tables[0] == tables[1], "\n".join(tables)
    for name in TASKS:
        theirs, ours = (one["samples"][name] for one in found)
        for one, other in zip(theirs, ours, strict=True):
            if name == "local_gen":
                assert one["resps"] == other["resps"]
            else:
                numbers = [torch.tensor(x["resps"], dtype=torch.float64) for x in (one, other)]
                torch.testing.assert_close(*numbers, rtol=0, atol=1e-4)
