"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.infer.serve.test_completions import events
from tests.infer.serve.toy import Stand

URL = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é?"}]


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"messages": MESSAGES, "temperature": 0} | body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_an_answer_and_its_stream(stand: Stand, client: TestClient) -> None:
    body = {"max_completion_tokens": 9, "logprobs": True, "top_logprobs": 2, "n": 2}
    answer = ask(client, **body)
    prompt = stand.served.prompts.of_text("system: Be brief.user: é?assistant:")
    ids = stand.toy.greedy(prompt, 9)
    ids = ids[: ids.index(stand.eos) + 1] if stand.eos in ids else ids
    choice = answer["choices"][1]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == stand.engine.bytes_of.text(
        [i for i in ids if i != stand.eos]
    )
    told = choice["logprobs"]["content"]
    assert len(told) == len(ids)
    assert bytes(told[0]["bytes"]) == stand.engine.bytes_of.named(ids[0])
    best = stand.toy.logprobs(prompt).topk(2)
    assert [t["logprob"] for t in told[0]["top_logprobs"]] == pytest.approx(
        best.values.tolist(), abs=1e-5
    )
    stream = {"messages": MESSAGES, "temperature": 0, "stream_options": {"include_usage": True}}
    *chunks, usage = events(client, URL, **stream, **body)
    assert usage["usage"] == answer["usage"]
    of_one = [c for chunk in chunks for c in chunk["choices"] if c["index"] == 1]
    assert of_one[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["delta"].get("content", "") for c in of_one) == choice["message"]["content"]
    assert [x for c in of_one[1:] for x in c["logprobs"]["content"]] == told
    assert of_one[-1]["finish_reason"] == choice["finish_reason"]


def test_without_a_limit_an_answer_has_the_rest_of_the_context(
    stand: Stand, client: TestClient
) -> None:
    used = ask(client, ignore_eos=True)["usage"]
    assert used["total_tokens"] == stand.toy.max_length
    assert ask(client, ignore_eos=True, max_tokens=3)["usage"]["completion_tokens"] == 3


def test_what_the_template_gets(stand: Stand, client: TestClient) -> None:
    """Content in parts becomes one text, and the arguments of calls an object."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    seen = []
    of_text = stand.served.prompts.of_text
    stand.served.prompts.of_text = lambda text: (seen.append(text), of_text("a"))[1]
    ask(client, messages=messages, tools=tools, max_tokens=1)
    ask(client, messages=messages, tools=tools, tool_choice="none", max_tokens=1)
    rendered = "user: abassistant: 2tool: 2assistant:"
    assert seen == [json.dumps(tools) + rendered, rendered]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "me", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}, "tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "tool_calls"),
        *(
            (
                {
                    "messages": [
                        {
                            "role": "assistant",
                            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
                        }
                    ]
                },
                "cannot be written",
            )
            for arguments in ("[" * 10**5, '"\\ud800"', '{"\\ud800": 1}', '{"x": NaN}')
        ),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "it does not"),
        ({"top_logprobs": 1}, "needs logprobs: true"),
        ({"logprobs": 1}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "not supported"),
        ({"max_tokens": 0}, "asks for nothing"),
        ({"max_completion_tokens": 60}, "max_tokens=60"),
        ({"prompt": "x"}, "unknown field prompt"),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, wrong: dict[str, Any], said: str) -> None:
    answer = client.post(URL, json={"messages": MESSAGES} | wrong)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_a_model_without_a_template_says_so(stand: Stand) -> None:
    with stand.client(template=False) as client:
        answer = client.post(URL, json={"messages": MESSAGES})
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]
