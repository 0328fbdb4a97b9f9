"""Rows that spell calls, results and reasoning as text."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest

from loopcoder.chat import calls, markup
from loopcoder.chat.call_formats import read_call
from loopcoder.chat.calls import Format, read_answer
from loopcoder.chat.conversation import Conversation, Message, ToolCall, canonical
from loopcoder.chat.parsing import parse
from loopcoder.chat.render import Renderer
from loopcoder.chat.templates import built_in
from loopcoder.chat.unusable import Unusable
from loopcoder.chat.values import DECODER
from tests.chat.chats import conversation

TOOLS = [
    {
        "name": "f",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    }
]
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
CODER = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
RESULT = "<tool_response>\n2\n</tool_response>"
F = ToolCall("f", {"x": 1})


def row(said: str, *more: tuple[str, str], **columns: Any) -> dict[str, Any]:
    turns = [("human", "a"), ("gpt", said), *more]
    return {"conversations": [{"from": who, "value": what} for who, what in turns], **columns}


@pytest.mark.parametrize("template", ["hermes", "qwen3", "qwen3_coder"])
def test_what_a_template_has_written_is_read_again(template: str, rng: random.Random) -> None:
    """Answers and results as the template spells them, of random conversations."""
    renderer = Renderer(built_in(template), {})
    read = 0
    for _ in range(60):
        given = conversation(rng, reasoning=template == "qwen3")
        given = replace(given, messages=tuple(map(_bare, given.messages)))
        form = canonical(given)
        spelled = []
        for message in form["messages"]:
            said, role = message["content"], message["role"]
            if role in ("assistant", "tool"):
                turn = renderer.text([message])
                said = turn[turn.index("\n") + 1 : turn.rindex("<|im_end|>")]
                role = turn[len("<|im_start|>") : turn.index("\n")]
            spelled.append({"role": role, "content": said})
        found = parse({"messages": spelled, "tools": form.get("tools")})
        assert renderer.whole(found) == renderer.whole(given)
        assert [[c.name for c in m.tool_calls] for m in found.messages] == [
            [c.name for c in m.tool_calls] for m in given.messages
        ]
        read += any(m.tool_calls for m in given.messages)
    assert read > 3


def _bare(message: Message) -> Message:
    """Return a message of the assistant without tags, and blanks at its ends."""
    if message.role != "assistant":
        return message
    said, thought = (
        text and (re.sub("</?(think|tool_call)>", "", text).strip() or "b")
        for text in (message.content, message.reasoning)
    )
    return replace(message, content=said or "", reasoning=thought)


@pytest.mark.parametrize("call", [CALL, CODER], ids=["hermes", "qwen3_coder"])
@pytest.mark.parametrize("who", ["tool", "human"])
def test_calls_and_results_in_rows_of_sharegpt(call: str, who: str) -> None:
    said = f"<think>\nwhy\n</think>\nI look. \n{call}\n{call}"
    both = f"{RESULT}\n{RESULT}"
    found = parse(row(said, (who, both), ("gpt", "b"), tools=json.dumps(TOOLS)))
    assert found.messages == (
        Message("user", "a"),
        Message("assistant", "I look.", "why", (F, F)),
        Message("tool", "2"),
        Message("tool", "2"),
        Message("assistant", "b"),
    )


def test_calls_written_as_dicts_of_python(rng: random.Random) -> None:
    """As the sets of Hermes spell them, one beside another in JSON."""
    for _ in range(100):
        text = "".join(rng.choices("ab \"'\\\n\té{}<", k=rng.randrange(12)))
        arguments = {"x": rng.randrange(9), "y": [None, True, rng.random(), {text: text}]}
        calls = [{"arguments": arguments, "name": "f"}, {"name": "f", "arguments": {"x": 1}}]
        written = [str(calls[0]), json.dumps(calls[1])]
        order = rng.sample([0, 1], 2)
        said = "\n".join(f"<tool_call>\n{written[i]}\n</tool_call>" for i in order)
        read = parse(row(said, tools=[{"name": "f"}])).messages[1].tool_calls
        assert read == tuple(ToolCall("f", dict(calls[i]["arguments"])) for i in order)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("[True, null, {'y': false}]", [True, None, {"y": False}]),
    ],
)
def test_dicts_of_python_with_names_of_json(written: str, value: Any) -> None:
    """As sets have them that were put together from both."""
    said = f"<tool_call>{{'name': 'f', 'arguments': {{'x': {written}}}}}</tool_call>"
    (call,) = parse(row(said)).messages[1].tool_calls
    assert call.arguments == {"x": value}


GLAIVE = """<functioncall> {"name": "f", "arguments": '{"x": 1, "y": "it\'s \\n \\"so\\""}'} """


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": [true]}"}</tool_call>', [{"x": [True]}]),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', [{}]),
        ('<tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call>', [{"x": 1}]),
        ("<tool_call>{'name': 'f', 'parameters': '{\"x\": 1}'}</tool_call>", [{"x": 1}]),
        (
            '<tool_call>[{"name": "f", "arguments": {"x": "</tool_call>"}},\n'
            ' {"name": "f", "arguments": {}}]</tool_call>\n' + CALL,
            [{"x": "</tool_call>"}, {}, {"x": 1}],
        ),
        ("<tool_call>\n[{'name': 'f', 'arguments': {'x': None}}]\n</tool_call>", [{"x": None}]),
        (GLAIVE, [{"x": 1, "y": 'it\'s \n "so"'}]),
        (GLAIVE.replace("'s", "\\'s"), [{"x": 1, "y": 'it\'s \n "so"'}]),
        (GLAIVE.replace("it's", "\\\\'s"), [{"x": 1, "y": '\\\'s \n "so"'}]),
        (GLAIVE.replace(" ", "\n", 1) + "</functioncall>", [{"x": 1, "y": 'it\'s \n "so"'}]),
        ('<function_call>{"name": "f", "arguments": {}}</function_call>', [{}]),
        (
            CALL + CALL.replace('{"x": 1}', '{"x": "<functioncall> {"}'),
            [{"x": 1}, {"x": "<functioncall> {"}],
        ),
    ],
)
def test_the_ways_in_which_data_sets_spell_calls(
    said: str, arguments: list[dict[str, Any]]
) -> None:
    found = parse(row(f"I look.\n{said}", tools=TOOLS)).messages[1]
    assert found.content == "I look."
    assert found.tool_calls == tuple(ToolCall("f", one) for one in arguments)
    with_results = row(said, *[("tool", "r")] * len(arguments), ("gpt", "b"))
    assert len(parse(with_results).messages) == 3 + len(arguments)


def test_a_sentence_may_speak_of_tags_where_there_are_no_tools() -> None:
    for said in (
        "Mistral begins calls with [TOOL_CALLS].",
        "What does `<functioncall>` mean?",
        "std::function<void()> f; // <function=foo>",
        '{"name": "f", "arguments": {}}',
    ):
        assert parse(row(said)).messages[1] == Message("assistant", said)
    assert parse(row('{"name": "f"}', tools=TOOLS)).messages[1].content == '{"name": "f"}'


def test_a_user_may_speak_of_results_behind_them() -> None:
    said = "<tool_response> is odd, why?"
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}] * 2}
    turns = [{"role": "user", "content": "a"}, call, {"role": "tool", "content": "1"}]
    answer = {"role": "assistant", "content": "b"}
    found = parse({"messages": [*turns, {"role": "user", "content": said}, answer]})
    assert found.messages[3] == Message("user", said)


def test_calls_that_are_never_closed_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be looked at up to the end of the answer."""
    read: list[int] = []

    def counted(text: str, *args: Any) -> Any:
        read.append(len(text))
        return read_call(text, *args)

    monkeypatch.setattr(calls, "read_call", counted)
    given = row("<tool_call><function=f>" * 100 + "</tool_call>")
    with pytest.raises(Unusable, match="unreadable_call"):
        parse(given)
    assert 0 < sum(read) <= 2 * len(given["conversations"][1]["value"])


def test_each_block_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an error of the decoder says of its place is counted from the beginning of its text."""
    read: list[int] = []

    class Counted(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            read.append(len(s))
            return DECODER.raw_decode(s, idx)

    monkeypatch.setattr(markup, "DECODER", Counted())
    said = "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>" * 100
    assert len(parse(row(said)).messages[1].tool_calls) == 100
    assert 0 < sum(read) <= 2 * len(said)


def test_the_server_reads_what_its_template_asks_for_alone() -> None:
    """So that what tuning evaluates as well-formed is what was asked for."""
    said = '<tool_call>{"name": "f", "parameters": {}}</tool_call>'
    assert not read_answer(said, Format("hermes")).tool_calls
    assert parse(row(said)).messages[1].tool_calls


def test_values_in_tags_are_texts_where_no_schema_types_them() -> None:
    """As vLLM and transformers read them."""
    assert parse(row(CODER)).messages[1].tool_calls == (ToolCall("f", {"x": "1"}),)
    assert parse(row(CODER, tools=TOOLS)).messages[1].tool_calls == (F,)


def test_what_a_tool_returns_may_speak_of_tags_where_calls_are_not_spelled() -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}
    for said, expected in (
        (f"See {RESULT}.", f"See {RESULT}."),
        ("so </tool_response>", "so </tool_response>"),
        (RESULT, "2"),
    ):
        turns = [{"role": "user", "content": "a"}, call, {"role": "tool", "content": said}]
        assert parse({"messages": turns}).messages[2] == Message("tool", expected)


@pytest.mark.parametrize(
    ("reason", "given"),
    [
        ("unreadable_call", row("<tool_call>\n{name: 'f'}\n</tool_call>")),
        ("unreadable_call", row("<tool_call>\n{'name': 'f', 'arguments': {1, 2}}\n</tool_call>")),
        ("unreadable_call", row("<tool_call>\n{'name': f(), 'arguments': {}}\n</tool_call>")),
        ("unreadable_call", row(f"{CALL}\n<tool_call>\n")),
        ("unreadable_call", row("Write <tool_call>, then the call.")),
        ("unreadable_call", row("<tool_call>[]</tool_call>")),
        ("unreadable_call", row('<tool_call>[{"name": "f"}]</tool_call>')),
        ("unreadable_call", row('<tool_call>{"name": "f", "args": {}}</tool_call>')),
        ("unreadable_call", row('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>')),
        ("unreadable_call", row(CALL.replace('"x": 1', '"x": 1, "x": 2'))),
        (
            "unreadable_call",
            row("<tool_call>{'name': 'f', 'arguments': {'x': 1, 'x': 2}}</tool_call>"),
        ),
        (
            "unreadable_call",
            row("<tool_call>{'name': 'f', 'arguments': {1: 1, '1': 2}}</tool_call>"),
        ),
        (
            "unreadable_call",
            row("<tool_call>{'name': 'f', 'arguments': {1: 1, True: 2}}</tool_call>"),
        ),
        (
            "unreadable_call",
            row("<tool_call>{'name': 'f', 'arguments': {'a': 1, u'a': 2}}</tool_call>"),
        ),
        (
            "unreadable_call",
            row(GLAIVE.replace('"y"', '"x"').replace("functioncall", "tool_call") + "</tool_call>"),
        ),
        ("invalid_tool_json", row('<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>')),
        ("unreadable_call", row('{"name": "f", "arguments": {}}</tool_call>')),
        ("unreadable_call", row("<function=f>{}</function>")),
        ("unreadable_call", row("<functioncall> f()")),
        ("unreadable_call", row("b</functioncall>")),
        ("unreadable_call", row('[TOOL_CALLS] [{"name": "f", "arguments": {}}]')),
        ("unreadable_call", row('<|python_tag|>{"name": "f", "parameters": {}}')),
        ("text_behind_call", row(f"{CALL}\nThat was it.")),
        ("text_behind_call", row(f"{CALL}\nAnd\n{CALL}")),
        ("unknown_tool", row(CALL.replace("f", "g", 1).replace('"f"', '"g"'), tools=TOOLS)),
        ("invalid_tool_json", row(CALL.replace('"f"', '"f g"'))),
        ("markup_in_text", row("b <think>why</think> c")),
        ("markup_in_text", row("why</think>b")),
        ("markup_in_text", row(CALL, ("tool", f"x {RESULT}"), ("gpt", "b"))),
        ("roles_out_of_order", row(CALL, ("human", f"{RESULT} x"), ("gpt", "b"))),
        ("unreadable_call", row('<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>')),
        ("unreadable_call", row('<tool_calls>[{"name": "f"}]</tool_calls>')),
        ("unreadable_call", row('<|tool_call|>[{"name": "f"}]')),
        ("unreadable_call", row('<function_calls>\n<invoke name="f">\n</invoke>')),
        ("unreadable_call", row("I look.\n<|tool_calls_section_begin|>f")),
        ("unreadable_call", row("<\uff5ctool\u2581calls\u2581begin\uff5c>f")),
        ("unreadable_call", row("I look. <function-call> {}", tools=TOOLS)),
        ("unreadable_call", row("Calls begin with [TOOL_CALLS].", tools=TOOLS)),
        ("unreadable_call", row('{"name": "f", "arguments": {"x": 1}}', tools=TOOLS)),
        ("unreadable_call", row(' [{"name": "f", "parameters": {}}]\n', tools=TOOLS)),
        ("markup_in_text", row(CALL, ("tool", f"{RESULT}\nx\n{RESULT}"), ("gpt", "b"))),
        ("markup_in_text", row(CALL, ("tool", f"<tool_response>a{RESULT}"), ("gpt", "b"))),
        ("markup_in_text", row(f"{RESULT}\nIt is 2.")),
        ("markup_in_text", row("It is 2.</tool_response>")),
        (
            "markup_in_text",
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": CALL, "tool_calls": [{"name": "f"}]},
                ]
            },
        ),
        ("roles_out_of_order", row(CALL, ("human", "well?"), ("gpt", "b"))),
    ],
)
def test_what_cannot_be_read_is_counted_by_its_reason(reason: str, given: dict[str, Any]) -> None:
    with pytest.raises(Unusable) as found:
        parse(given)
    assert found.value.reason == reason


def test_text_is_kept_where_it_is_asked_for() -> None:
    for said in (CALL, GLAIVE, "b <think>why</think> c", "so </tool_call>"):
        found = parse(row(said, ("human", RESULT), ("gpt", "b")), markup="keep")
        assert [m.content for m in found.messages] == ["a", said, RESULT, "b"]


def test_users_may_speak_of_tags() -> None:
    for asked in (CALL, RESULT, "<think>", "What is <tool_call>?"):
        given = [{"role": "user", "content": asked}, {"role": "assistant", "content": "b"}]
        expected = Conversation((Message("user", asked), Message("assistant", "b")))
        assert parse({"messages": given}) == expected
