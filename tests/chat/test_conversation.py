"""Rows of several forms become conversations, or are refused by reason."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from loopcoder.chat.conversation import (
    Conversation,
    Message,
    ToolCall,
    canonical,
    plain_text,
    restored,
)
from loopcoder.chat.parsing import parse
from loopcoder.chat.unusable import REASONS, Unusable
from tests.chat.chats import conversation

ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PAIR = Conversation((Message("user", "a"), Message("assistant", "b")))
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def call(arguments: Any = "{}", name: str = "f", call_id: str | None = "1") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": call_id, "function": function}]}


def result(**more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "r", **more}


def test_what_was_parsed_is_kept_as_json(rng: random.Random) -> None:
    for _ in range(50):
        given = conversation(rng, untrained=True)
        form = json.loads(json.dumps(canonical(given), ensure_ascii=False))
        assert restored(form) == given
        assert parse(form, markup="keep") == given
        assert all(m.content in plain_text(given) for m in given.messages)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, SAID]},
        {"messages": json.dumps([ASKED, SAID]), "tools": None},
        {"conversations": [ASKED, {"role": "model", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"prompt": [ASKED], "completion": [SAID]},
        {"instruction": "a", "input": "", "output": "b"},
        {"messages": [{**ASKED, "content": [{"type": "text", "text": "a"}]}, SAID]},
        {"messages": [{**ASKED, "name": None, "tool_calls": None}, {**SAID, "tool_calls": []}]},
        {"messages": [ASKED, {**SAID, "content": "<think>\n\n</think>\n\nb"}]},
    ],
)
def test_every_form_of_a_pair(row: dict[str, Any]) -> None:
    assert parse(row) == PAIR


def test_columns_may_be_named() -> None:
    row = {"messages": "other", "chat": [ASKED, call("")], "api": json.dumps(TOOLS)}
    found = parse(row, messages_field="chat", tools_field="api")
    assert found.tools == tuple(TOOLS)
    assert found.messages[1].tool_calls == (ToolCall("f", {}, "1"),)
    with pytest.raises(Unusable, match="no_messages"):
        parse(row, messages_field="missing")


def test_what_a_question_is_about_is_put_behind_it() -> None:
    dolly = {"instruction": "a", "context": "c", "response": "b", "category": "closed_qa"}
    for row, asked in (
        (dolly, "a\n\nc"),
        (dolly | {"context": " "}, "a"),
        (dolly | {"context": None}, "a"),
        (dolly | {"context": ["c", " ", "d\n"]}, "a\n\nc\n\nd\n"),
        (dolly | {"context": [""]}, "a"),
        (dolly | {"input": ["i", "j"], "context": []}, "a\n\ni\n\nj"),
        (dolly | {"input": "i"}, "a\n\ni\n\nc"),
        ({"prompt": "a", "context": "c", "completion": "b"}, "a\n\nc"),
        ({"instruction": "", "input": "i", "output": "b"}, "i"),
    ):
        assert parse(row).messages == (Message("user", asked), Message("assistant", "b"))


def test_fields_of_messages() -> None:
    row = {
        "system": "s",
        "instruction": "a",
        "input": "x",
        "output": "<think>\nwhy\n</think>\n\nb",
    }
    assert parse(row).messages == (
        Message("system", "s"),
        Message("user", "a\n\nx"),
        Message("assistant", "b", "why"),
    )
    for reasoning in ("reasoning_content", "reasoning", "thinking"):
        found = parse({"messages": [ASKED, {**SAID, reasoning: "why", "train": False}]})
        assert found.messages[1] == Message("assistant", "b", "why", train=False)
    for flag in ({"train": 0}, {"train": 0.0}, {"weight": 0.0}, {"weight": False}):
        assert not parse({"messages": [ASKED, {**SAID, **flag}]}).messages[1].train
    weighed = parse({"messages": [ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "weight": 1}]})
    assert [m.train for m in weighed.messages] == [True, False, True, True]


def test_calls_and_results_of_every_form() -> None:
    calls = (ToolCall("f", {"x": 1}),)
    expected = (
        Message("user", "a"),
        Message("assistant", "", None, calls),
        Message("tool", '{"r": [1]}'),
        Message("assistant", "b"),
    )
    written = {"name": "f", "arguments": {"x": 1}}
    as_text = {**written, "arguments": '{"x": 1}'}
    one, tool = {"role": "assistant", "content": None}, {"role": "tool", "content": {"r": [1]}}
    share_gpt = {"from": "function_call", "value": json.dumps(written)}
    for said, answered in (
        ({**one, "tool_calls": [{"function": written}]}, tool),
        ({**one, "tool_calls": [written]}, tool),
        ({**one, "tool_calls": json.dumps([written])}, tool),
        ({**one, "function_call": as_text}, {**tool, "role": "function"}),
        (share_gpt, {"from": "observation", "value": '{"r": [1]}'}),
    ):
        row = {"messages": [ASKED, said, answered, SAID], "tools": [{"name": "f"}]}
        found = parse(row)
        assert found.messages == expected
        assert found.tools == ({"type": "function", "function": {"name": "f"}},)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "function", "function": {"name": "f"}, "arguments": {"x": 1}},
        {"type": "function", "function": {"name": "f"}, "parameters": '{"x": 1}'},
        {"function": {"name": "f", "arguments": "{}"}, "parameters": {"x": 1}},
        {"name": "f", "arguments": {}, "parameters": {"x": 1}},
        {"name": "f", "arguments": None, "parameters": {"x": 1}},
        {"name": "f", "arguments": {"x": 1}, "parameters": {"x": 1}, "function": None},
        {"name": "f", "arguments": "{'x': 1}"},
    ],
)
def test_arguments_wherever_a_call_has_them(given: dict[str, Any]) -> None:
    said = {"role": "assistant", "tool_calls": [given]}
    assert parse({"messages": [ASKED, said]}).messages[1].tool_calls == (ToolCall("f", {"x": 1}),)


def test_a_content_by_either_name() -> None:
    row = {
        "messages": [
            {"role": "system", "text": "s"},
            {"from": "Human", "content": "a"},
            {"role": "assistant", "tool_calls": "[{'name': 'f', 'arguments': {}}]"},
            {"role": "Tool", "content": "", "value": "r"},
            {"from": "GPT", "value": "b", "content": "b", "text": "c"},
        ]
    }
    assert [(m.role, m.content) for m in parse(row).messages] == [
        ("system", "s"), ("user", "a"), ("assistant", ""), ("tool", "r"), ("assistant", "b"),
    ]  # fmt: skip


def test_what_says_nothing_is_no_call_of_a_function() -> None:
    for nothing in ("", None):
        row = {"messages": [{**one, "function_call": nothing} for one in (ASKED, SAID)]}
        assert parse(row) == PAIR


def test_tools_as_json_in_a_list() -> None:
    assert parse({"messages": [ASKED, SAID], "tools": ['{"name": "f"}']}).tools == (
        {"type": "function", "function": {"name": "f"}},
    )


def test_what_was_said_before_is_read() -> None:
    row = {"instruction": "a", "output": "b", "history": [["q", "r"]], "system_prompt": "s"}
    said = [(m.role, m.content) for m in parse(row).messages]
    assert said == [
        ("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "a"), ("assistant", "b"),
    ]  # fmt: skip
    with pytest.raises(Unusable, match="history"):
        parse(row | {"history": "q"})


BAD: list[tuple[str, dict[str, Any]]] = [
    ("no_messages", {"text": "a"}),
    ("no_messages", {"messages": []}),
    ("no_messages", {"messages": "[{"}),
    ("missing_role", {"messages": [{"content": "a"}, SAID]}),
    ("missing_role", {"messages": ["a", "b"]}),
    ("unknown_role", {"messages": [{"role": "critic", "content": "a"}, SAID]}),
    ("unknown_role", {"messages": [{"role": ["user"], "content": "a"}, SAID]}),
    ("content_not_text", {"messages": [{**ASKED, "content": 7}, SAID]}),
    ("content_not_text", {"messages": [{**ASKED, "content": [{"type": "image"}]}, SAID]}),
    ("content_not_text", {"messages": [ASKED, {**SAID, "reasoning": ["a"]}]}),
    ("content_not_text", {"instruction": "a", "context": ["c", 1], "response": "b"}),
    ("content_not_text", {"instruction": "a", "context": {"c": "d"}, "response": "b"}),
    ("content_not_text", {"instruction": "a", "input": {"c": 1}, "output": "b"}),
    ("content_not_text", {"prompt": [ASKED], "context": "c", "completion": [SAID]}),
    ("content_not_text", {"system": ["s"], "messages": [ASKED, SAID]}),
    ("invalid_tool_json", {"messages": [{**ASKED, "tool_calls": [{"name": "f"}]}, SAID]}),
    ("empty_turn", {"messages": [{**ASKED, "content": " \n"}, SAID]}),
    ("empty_turn", {"messages": [ASKED, {**SAID, "content": None}]}),
    ("bad_reasoning", {"messages": [ASKED, {**SAID, "content": "<think>why"}]}),
    (
        "bad_reasoning",
        {"messages": [ASKED, {**SAID, "content": "\n<think>a</think>b", "reasoning": "c"}]},
    ),
    ("bad_reasoning", {"messages": [ASKED, {**SAID, "reasoning_content": "a</think>b"}]}),
    (
        "bad_reasoning",
        {"messages": [ASKED, {**SAID, "content": "<think><think>a</think></think>b"}]},
    ),
    ("empty_turn", {"messages": [ASKED, {**SAID, "content": "<think>why</think>"}]}),
    ("no_assistant_turn", {"messages": [ASKED]}),
    ("roles_out_of_order", {"messages": [SAID, ASKED]}),
    ("roles_out_of_order", {"messages": [ASKED, SAID, SAID]}),
    ("roles_out_of_order", {"messages": [ASKED, {"role": "system", "content": "s"}, SAID]}),
    ("roles_out_of_order", {"messages": [ASKED, SAID, result()]}),
    ("roles_out_of_order", {"messages": [ASKED, call(), ASKED, SAID]}),
    ("roles_out_of_order", {"messages": [ASKED, call(), result(), result(), SAID]}),
    ("roles_out_of_order", {"messages": [ASKED, call(), result(tool_call_id="2"), SAID]}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": "look"}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": {"name": "f"}}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": ["f"]}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": [{"name": ""}]}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": [{"name": "f"}, {"name": "f"}]}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": [{"name": "f", "parameters": []}]}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": [{"name": "f", "x": float("nan")}]}),
    ("invalid_tool_json", {"messages": [ASKED, call('{"a": ')]}),
    ("invalid_tool_json", {"messages": [ASKED, call("[1]")]}),
    ("invalid_tool_json", {"messages": [ASKED, call('{"a": 1, "b": {"c": 1, "c": 2}}')]}),
    (
        "invalid_tool_json",
        {"messages": [ASKED, {**SAID, "tool_calls": [{"name": "f", "args": {}}]}]},
    ),
    *(
        (
            "invalid_tool_json",
            {"messages": [ASKED, {**SAID, "tool_calls": [{"name": "f", **more}]}]},
        )
        for more in (
            {"arguments": "", "input": {"x": 1}},
            {"arguments": {}, "input": {"x": 1}},
            {"arguments": {"y": 1}, "parameters": {"x": 1}},
        )
    ),
    ("content_not_text", {"messages": [{**ASKED, "value": "c"}, SAID]}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": ["{'name': 'f'}"]}),
    ("no_messages", {"messages": '[{"role": "user", "content": "a", "content": "b"}]'}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": '[{"name": "f", "name": "g"}]'}),
    ("invalid_tool_json", {"messages": [ASKED, call('{"a": NaN}')]}),
    ("invalid_tool_json", {"messages": [ASKED, call({"a": float("inf")})]}),
    ("invalid_tool_json", {"messages": [ASKED, call(name="")]}),
    ("invalid_tool_json", {"messages": [ASKED, call(name="|im_end|>")]}),
    ("invalid_tool_json", {"messages": [ASKED, call({"|im_end|": 1, "a b": 2})]}),
    ("bad_tools", {"messages": [ASKED, SAID], "tools": [{"name": "<f"}]}),
    ("invalid_tool_json", {"messages": [ASKED, {**call(), "function_call": {"name": "f"}}]}),
    *(
        ("bad_train_flag", {"messages": [ASKED, {**SAID, name: value}]})
        for name, value in (
            ("train", "false"),
            ("train", 0.5),
            ("train", []),
            ("weight", "0"),
            ("weight", 0.5),
            ("weight", -1),
            ("weight", float("nan")),
        )
    ),
    ("invalid_tool_json", {"messages": [ASKED, {**SAID, "tool_calls": "f()"}]}),
    ("invalid_tool_json", {"messages": [ASKED, {"from": "function_call", "value": "f()"}]}),
    ("unknown_tool", {"messages": [ASKED, call(name="g")], "tools": TOOLS}),
    ("surrogate", {"messages": [ASKED, {**SAID, "content": "b\ud800"}]}),
    ("surrogate", {"messages": [ASKED, call({"a": "\udc00"})]}),
    ("surrogate", {"messages": [ASKED, SAID], "tools": [{"name": "f", "description": "\ud800"}]}),
]


@pytest.mark.parametrize(("reason", "row"), BAD)
def test_what_must_not_be_trained_on_is_refused(reason: str, row: dict[str, Any]) -> None:
    with pytest.raises(Unusable) as found:
        parse(row)
    assert found.value.reason == reason and reason in REASONS
    assert reason in str(found.value) and len(str(found.value)) < 500


def test_rows_that_are_no_worse_than_these_are_taken() -> None:
    parse({"messages": [ASKED, ASKED, SAID, ASKED]})
    parse({"messages": [{"role": "system", "content": ""}, ASKED, call(), result(), SAID]})
    parse({"messages": [ASKED, call(call_id=None), result(tool_call_id="x"), call(name="any")]})
