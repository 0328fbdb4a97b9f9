"""Answers that are read, whole and in pieces."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from loopcoder.chat import calls
from loopcoder.chat.call_formats import read_call
from loopcoder.chat.calls import Answer, AnswerStream, Delta, Format, format_of, read_answer
from loopcoder.chat.conversation import Message, ToolCall
from loopcoder.chat.conversation import written as written_message
from loopcoder.chat.render import Renderer
from loopcoder.chat.templates import built_in
from loopcoder.chat.tool_checks import check_call
from loopcoder.errors import InputError

HERMES, CODER = Format("hermes", reasoning=True), Format("qwen3_coder", reasoning=True)
PROPERTIES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    "flag": {"type": "boolean"},
    "items": {"type": "array"},
    "about": {"type": "object"},
    "mode": {"enum": ["1", "fast"]},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": PROPERTIES, "required": ["text"]},
        },
    }
]
TEXTS = (
    "é漢 ",
    "\n",
    "a{",
    '"',
    "\\",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "</",
    "}",
)
PIECES = (
    *TEXTS,
    "<function=f>",
    "</function>",
    "<parameter=text>",
    "</parameter>",
    '<tool_call>{"name": "f", "arguments": {"text": "',
    '{"name": "g", "arguments": {}}',
    "<tool_call>\n",
    "\n</tool_call>",
)


def text_of(rng: random.Random) -> str:
    return "".join(rng.choices(TEXTS, k=rng.randrange(6)))


def arguments_of(rng: random.Random) -> dict[str, Any]:
    values = {
        "text": text_of(rng),
        "count": rng.randrange(-9, 9),
        "share": rng.choice([None, rng.random(), 3]),
        "flag": rng.random() < 0.5,
        "items": [text_of(rng), {"x": None}],
        "about": {text_of(rng): [text_of(rng)]},
        "mode": rng.choice(["1", "fast"]),
    }
    return {name: values[name] for name in rng.sample([*values], rng.randrange(len(values)))}


def written(name: str, arguments: dict[str, Any], form: Format) -> str:
    if form.calls == "hermes":
        body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    else:
        body = f"<function={name}>\n" + "".join(
            f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n"
            "</parameter>\n"
            for key, value in arguments.items()
        )
        body += "</function>"
    return f"<tool_call>\n{body}\n</tool_call>"


def in_pieces(text: str, form: Format, rng: random.Random, *, in_reasoning: bool = False) -> Answer:
    """Read a text cut at random; what is told piece by piece must be the answer."""
    stream, at = AnswerStream(form, TOOLS, in_reasoning=in_reasoning), 0
    deltas: list[Delta] = []
    while at < len(text):
        end = at + rng.choice((1, 1, 2, 5, 40))
        deltas += stream.add(text[at:end])
        at = end
    deltas += stream.end()
    answer = stream.answer
    assert all(bool(d.content) + bool(d.reasoning) + (d.call is not None) == 1 for d in deltas)
    assert "".join(d.content for d in deltas) == answer.content
    assert "".join(d.reasoning for d in deltas) == (answer.reasoning or "")
    assert [d.call for d in deltas if d.call] == [*answer.tool_calls]
    return answer


@pytest.mark.parametrize("form", [HERMES, CODER], ids=["hermes", "qwen3_coder"])
def test_what_was_written_is_read(form: Format, rng: random.Random) -> None:
    """Whatever stands in the arguments, and however the text is cut."""
    for _ in range(200):
        calls = [ToolCall("f", arguments_of(rng)) for _ in range(rng.randrange(4))]
        reasoning = rng.choice([None, "", "Why <tool_call>?\n\nSo."])
        content = rng.choice(["", "é {before}", "a\n\nb < c"])
        parts = [] if reasoning is None else [f"<think>\n{reasoning}\n</think>\n\n"]
        text = "".join(parts) + "\n".join(
            [*([content] if content else []), *(written(c.name, c.arguments, form) for c in calls)]
        )
        want = Answer(content, reasoning or None, tuple(calls))
        assert read_answer(text, form, TOOLS) == want, text
        assert in_pieces(text, form, rng) == want, text


@pytest.mark.parametrize(
    "form",
    [HERMES, CODER, Format("hermes"), Format(reasoning=True), Format()],
    ids=["hermes", "qwen3_coder", "no_reasoning", "no_calls", "text"],
)
def test_how_a_text_is_cut_changes_nothing_and_nothing_is_lost(
    form: Format, rng: random.Random
) -> None:
    for _ in range(400):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 14)))
        in_reasoning = form.reasoning and rng.random() < 0.2
        whole = read_answer(text, form, TOOLS, in_reasoning=in_reasoning)
        assert in_pieces(text, form, rng, in_reasoning=in_reasoning) == whole, text
        if not whole.tool_calls and not (
            in_reasoning or (text.lstrip().startswith("<think>") and form.reasoning)
        ):
            assert whole.content == text
        told = whole.content + (whole.reasoning or "") + f"{whole.tool_calls}"
        for letter in "é漢":
            assert told.count(letter) >= text.count(letter), text
        if form.calls and text.count("<tool_call>") > told.count("<tool_call>"):
            assert whole.tool_calls, text


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"name": "f", "arguments": {"text": 1}', "no JSON"),
        ("{'name': 'f'}", "no JSON"),
        ('{"name": "f", "arguments": {"x": NaN}}', "no JSON"),
        ('{"name": "f", "arguments": {"x": 1e999}}', "no JSON"),
        ('{"name": "f", "arguments": "{}"}', "arguments is no object"),
        ('{"name": "f"}', "no object of name and arguments"),
        ('{"name": "", "arguments": {}}', "name is no text"),
        ('{"name": "f", "arguments": {}} and more', "no JSON"),
        ('{"name": "f", "arguments": {"x": "a\nb"}}', "no JSON"),
        ('{"name": "f", "arguments": {"x": "\\ud800"}}', "no JSON"),
        ("[1]", "does not begin with {"),
        ("", "does not begin with {"),
        ("{" * 10**4, "no JSON"),
    ],
)
def test_what_is_no_call_is_content_and_a_problem(body: str, reason: str) -> None:
    """And a call behind it is read."""
    text = f"See\n<tool_call>\n{body}\n</tool_call>"
    good = written("f", {"text": "x"}, HERMES)
    answer = read_answer(f"{text}\n{good}", HERMES)
    assert answer.content == text
    assert answer.tool_calls == (ToolCall("f", {"text": "x"}),)
    [problem] = answer.problems
    assert problem.reason == "invalid_call" and reason in problem.detail


@pytest.mark.parametrize(
    "body",
    [
        "<function=f>\n<parameter=text>\nx\n</parameter>\n",
        "<function=f>\nx</function>",
        "<function=f>\n<parameter=a>1</parameter><parameter=a>1</parameter></function>",
        "<function=>\n</function>",
        "<function f>",
    ],
)
def test_tags_that_are_no_call(body: str) -> None:
    text = f"<tool_call>\n{body}\n</tool_call>"
    answer = read_answer(text, CODER, TOOLS)
    assert answer.content == text and answer.problems[0].reason == "invalid_call"


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        '<tool_call>\n{"name": "f", "arguments": {}}\n',
        '<tool_call>{"a": "</tool_call>',
    ],
)
def test_half_a_call_at_the_end_is_content(text: str) -> None:
    answer = read_answer(f"a\n{text}", HERMES)
    assert answer.content == f"a\n{text}" and answer.problems[0].reason == "unclosed_call"


def test_reasoning_that_does_not_end(rng: random.Random) -> None:
    answer = in_pieces("<think>\nSo <tool_call>", HERMES, rng)
    assert (answer.content, answer.reasoning) == ("", "So <tool_call>")
    assert answer.problems[0].reason == "unclosed_reasoning"
    assert read_answer("<think>", HERMES).problems == answer.problems


def test_an_answer_that_begins_behind_the_tag_of_its_prompt(rng: random.Random) -> None:
    assert HERMES.begins_in_reasoning("<|im_start|>assistant\n<think>\n")
    assert not HERMES.begins_in_reasoning("assistant\n<think>\n\n</think>\n\n")
    assert not Format().begins_in_reasoning("<think>")
    answer = in_pieces("So.\n</think>\n\nYes\n", HERMES, rng, in_reasoning=True)
    assert (answer.content, answer.reasoning) == ("Yes\n", "So.")


def test_values_of_tags_are_of_the_types_of_the_schema() -> None:
    """Where they can be; an unknown function's are texts."""
    given = {"text": "1", "count": "x", "share": "None", "flag": "True", "mode": "1", "other": "2"}
    [call] = read_answer(written("f", given, CODER), CODER, TOOLS).tool_calls
    assert call.arguments == given | {"share": None, "flag": True}
    [call] = read_answer(written("g", {"count": 1}, CODER), CODER, TOOLS).tool_calls
    assert call.arguments == {"count": "1"}


def test_the_format_of_a_template() -> None:
    assert format_of(None) == format_of("{{ messages }}") == Format()
    assert format_of("<tool_call> <think></think>") == HERMES
    assert format_of("<tool_call><function=x><parameter=y>") == Format("qwen3_coder")


LONG = [
    ('<tool_call>{"a": "\\"', HERMES),
    ('<tool_call>{"name": "</tool_call>', HERMES),
    ('<tool_call>{"name": </tool_call>', HERMES),
    ('<tool_call>{"name": "', HERMES),
    ("<tool_call>", HERMES),
    ("<tool_call><function=f><parameter=x></tool_call>", CODER),
    ("<tool_call><function=f></tool_call>", CODER),
]


@pytest.mark.parametrize(("unit", "form"), LONG)
def test_texts_that_are_made_to_take_long(unit: str, form: Format) -> None:
    """They are read in a second, as long as answers are: half a minute and more if each beginning
    of a call were looked for at each end of one."""
    text = unit * 20_000
    assert read_answer(text, form).content == text


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in_pieces"])
@pytest.mark.parametrize("form", [HERMES, CODER], ids=["hermes", "qwen3_coder"])
@pytest.mark.parametrize("closed", [True, False])
def test_what_is_parsed_goes_with_the_length_of_a_call(
    form: Format, closed: bool, pieces: bool, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ends of calls stand in its values."""
    parsed = []

    def counting(text: str, *rest: Any) -> ToolCall | None:
        parsed.append(len(text))
        return read_call(text, *rest)

    monkeypatch.setattr(calls, "read_call", counting)
    for count in (500, 4000):
        arguments = {f"x{i}": "é</tool_call>" * 10 for i in range(count // 10)}
        text = written("f", arguments, form)[: None if closed else -13]
        parsed.clear()
        answer = in_pieces(text, form, rng) if pieces else read_answer(text, form)
        assert answer.tool_calls == ((ToolCall("f", arguments),) if closed else ())
        assert sum(parsed) < 5 * len(text), (sum(parsed), len(text))
        assert len(parsed) < 25


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("f", {"text": "x", "count": 1, "share": 1, "items": [], "flag": True}, None),
        ("g", {}, "unknown function g"),
        ("f", {}, "text"),
        ("f", {"text": "x", "count": True}, "count"),
        ("f", {"text": "x", "count": 1.5}, "count"),
        ("f", {"text": "x", "about": []}, "about"),
    ],
)
def test_calls_are_checked(name: str, arguments: dict[str, Any], problem: str | None) -> None:
    found = check_call(ToolCall(name, arguments), TOOLS)
    assert found is None if problem is None else found is not None and problem in found


def test_calls_are_not_half_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(InputError, match="pip install 'jsonschema"):
        check_call(ToolCall("f", {"text": "x"}), TOOLS)


@pytest.mark.parametrize(
    "schema",
    [{"enum": 5}, {"anyOf": True}, {"oneOf": {"a": 1}}, {"type": 5}, {"type": [[1]]}, 5, None],
)
def test_a_value_is_read_whatever_its_schema_is(schema: Any) -> None:
    tools = [{"name": "f", "parameters": {"properties": {"x": schema}}}]
    text = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    [call] = read_answer(text, CODER, tools).tool_calls
    assert call == ToolCall("f", {"x": "1"})


def test_a_schema_that_names_another_place_is_not_fetched() -> None:
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    tools: Sequence[dict[str, Any]] = [{"name": "f", "parameters": schema}]
    found = check_call(ToolCall("f", {}), tools)
    assert found is not None and "cannot be applied" in found


@pytest.mark.parametrize("name", ["hermes", "qwen3", "qwen3_coder"])
def test_what_the_templates_write_is_read(name: str, rng: random.Random) -> None:
    """A model that has learned a template writes what the server understands."""
    renderer, form = Renderer(built_in(name), {}), format_of(built_in(name))
    for _ in range(60):
        calls = tuple(ToolCall("f", arguments_of(rng)) for _ in range(rng.randrange(4)))
        content = rng.choice(["é {before}", "a\n\nb < c"] + ([""] if calls else []))
        reasoning = rng.choice([None, "Why <tool_call>?\n\nSo."]) if form.reasoning else None
        asked = [{"role": "user", "content": "?"}]
        said = written_message(Message("assistant", content, reasoning, calls))
        prompt = renderer.text(asked, TOOLS, add_generation_prompt=True)
        text = renderer.text([*asked, said], TOOLS)
        assert text.startswith(prompt) and text.endswith("<|im_end|>\n")
        answer = read_answer(text[len(prompt) : -len("<|im_end|>\n")], form, TOOLS)
        assert answer == Answer(content, reasoning, calls), text
