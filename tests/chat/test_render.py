"""Texts, ids and what is learned are what transformers makes of the same template."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from data_pipeline.chat.tokens import tokenise
from loopcoder.chat.conversation import Conversation, Message, ToolCall, canonical
from loopcoder.chat.render import Renderer
from loopcoder.chat.templates import BUILT_IN, built_in
from loopcoder.chat.unusable import Unusable
from loopcoder.config.chat import ChatConfig
from tests.chat.chats import NAMES, conversation, public, tokenizer
from tests.parts import one_of

TEMPLATES = {
    **{name: built_in(name) for name in BUILT_IN},
    **{f"public {name}": public(name) for name in ("smollm2", "qwen2_5", "llama3")},
}
FEATURES = {
    "hermes": dict(reasoning=False),
    "qwen3": {},
    "qwen3_coder": dict(reasoning=False),
    "public qwen2_5": dict(reasoning=False),
}
"""The others have neither tools nor reasoning."""
ALL = ChatConfig()


@cache
def theirs() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **NAMES)


def renderer(name: str) -> Renderer:
    return Renderer.of(TEMPLATES[name], tokenizer(), NAMES)


def chat(name: str, rng: random.Random, **more: Any) -> Conversation:
    features = FEATURES.get(name, dict(tools=False, reasoning=False))
    return conversation(rng, **{**features, **more})


def check(name: str, given: Conversation) -> None:
    """Compare text, ids and mask with transformers'."""
    form = canonical(given)
    messages, tools, ours = form["messages"], form.get("tools"), renderer(name)
    other = dict(conversation=messages, tools=tools, chat_template=TEMPLATES[name])
    for prompt in (False, True):
        expected = theirs().apply_chat_template(
            **other, tokenize=False, add_generation_prompt=prompt
        )
        assert ours.text(messages, tools, add_generation_prompt=prompt) == expected
    ids, mask = tokenise(ours, tokenizer(), given, ALL)
    if name.startswith("public"):  # they have no `{% generation %}`; a copy has
        other["chat_template"] = public(f"{name.removeprefix('public ')}_marked")
    expected = theirs().apply_chat_template(
        **other, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids.tolist() == expected["input_ids"]
    assert mask.tolist() == [bool(one) for one in expected["assistant_masks"]]
    assert 0 < mask.sum() < len(mask)


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_ids_and_masks_are_those_of_transformers(name: str, rng: random.Random) -> None:
    for _ in range(25):
        check(name, chat(name, rng))


@pytest.mark.data_full
@pytest.mark.parametrize("name", one_of(list(TEMPLATES)))
def test_a_thousand_texts_ids_and_masks_are_those_of_transformers(
    name: str, rng: random.Random
) -> None:
    for _ in range(1000):
        check(name, chat(name, rng))


def learned(given: Conversation, template: str, **options: Any) -> str:
    """Return all that is learned of a conversation."""
    ours = Renderer.of(template, tokenizer(), NAMES)
    text, spans = ours.with_spans(given, **options)
    return "".join(text[start:end] for start, end in spans)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned_is_what_was_asked_for(name: str, rng: random.Random) -> None:
    """Every part of every message carries a name of its own, which is looked for."""
    for _ in range(15):
        given = chat(name, rng, untrained=True)
        named = tuple(
            replace(
                message,
                content=message.content and f"C{i}.{message.content.strip()}",
                reasoning=message.reasoning and f"R{i}.{message.reasoning.strip()}",
                tool_calls=tuple(
                    replace(call, arguments={"a": f"T{i}.{j}."})
                    for j, call in enumerate(message.tool_calls)
                ),
            )
            for i, message in enumerate(given.messages)
        )
        given = Conversation(named, given.tools)
        users = [sum(m.role == "user" for m in named[:i]) for i in range(len(named))]
        answers = [i for i, message in enumerate(named) if message.role == "assistant"]
        for turns in ("all", "first", "last"):
            for reasoning in ("train", "context"):
                turn = {"first": users[answers[0]], "last": users[answers[-1]]}.get(turns)
                wanted = [i for i in answers if turn in (None, users[i]) and named[i].train]
                expected = [
                    part
                    for i in wanted
                    for part in (
                        *([f"R{i}."] if named[i].reasoning and reasoning == "train" else []),
                        *([f"C{i}."] if named[i].content else []),
                        *(f"T{i}.{j}." for j in range(len(named[i].tool_calls))),
                    )
                ]
                found = learned(given, TEMPLATES[name], turns=turns, reasoning=reasoning)
                assert re.findall(r"C\d+\.|R\d+\.|T\d+\.\d+\.", found) == expected
                ends = found.count("<|im_end|>") + found.count("<|eot_id|>")
                assert ends == len(wanted)
                if reasoning == "context":  # nor the empty block of an answer without any
                    assert not re.search(r"<think>\n(R\d+\.|\n</think>)", found)


HELLO = (Message("user", "a"), Message("assistant", "b", reasoning="why"))


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_beginning_of_a_conversation_is_the_beginning_of_its_text(
    name: str, rng: random.Random
) -> None:
    for _ in range(10):
        form = canonical(chat(name, rng))
        ours, tools = renderer(name), form.get("tools")
        text = ours.text(form["messages"], tools)
        for i, message in enumerate(form["messages"]):
            before = ours.text(
                form["messages"][: i + 1], tools, add_generation_prompt=message["role"] != "system"
            )
            follows = form["messages"][i + 1 : i + 2]
            if follows and follows[0]["role"] == "assistant":
                assert text.startswith(before)
            assert text.startswith(ours.text(form["messages"][: i + 1], tools))


def test_an_answer_without_reasoning_continues_the_prompt_that_asks_for_it() -> None:
    """What qwen3 has in front of such an answer is what enable_thinking=false puts there."""
    messages = canonical(Conversation(HELLO))["messages"]
    without = [messages[0], {"role": "assistant", "content": "b"}]
    prompt = renderer("qwen3").text(messages[:1], add_generation_prompt=True, enable_thinking=False)
    assert renderer("qwen3").text(without).startswith(prompt + "b")
    with_it = renderer("qwen3").text(messages[:1], add_generation_prompt=True)
    assert renderer("qwen3").text(messages).startswith(with_it + "<think>\nwhy\n</think>\n\nb")


def test_a_template_that_rewrites_earlier_turns_is_found() -> None:
    """Qwen3's own leaves out what was thought before the last question."""
    last = (*HELLO, Message("user", "c"), Message("assistant", "d", reasoning="hm"))
    template = public("qwen3")
    with pytest.raises(Unusable) as found:
        learned(Conversation(last), template)
    assert found.value.reason == "template_rewrites_turns"
    said = "<think>\nhm\n</think>\n\nd<|im_end|>"
    assert learned(Conversation(last), template, turns="last") == said
    context = learned(Conversation(last), template, turns="last", reasoning="context")
    assert context == "d<|im_end|>"


CALLS = Conversation(
    (
        HELLO[0],
        Message("assistant", "So", None, (ToolCall("f", {"x": 1}), ToolCall("g", {"y": 'a"b'}))),
        Message("tool", "r"),
        Message("assistant", "", None, (ToolCall("f", {}),)),
    )
)
JSON_CALLS = """\
So
<tool_call>
{"name": "f", "arguments": {"x": 1}}
</tool_call>
<tool_call>
{"name": "g", "arguments": {"y": "a\\"b"}}
</tool_call><|im_end|>"""
JSON_CALL = """\
<tool_call>
{"name": "f", "arguments": {}}
</tool_call><|im_end|>"""
TAGGED_CALLS = """\
So
<tool_call>
<function=f>
<parameter=x>
1
</parameter>
</function>
</tool_call>
<tool_call>
<function=g>
<parameter=y>
a"b
</parameter>
</function>
</tool_call><|im_end|>"""
TAGGED_CALL = """\
<tool_call>
<function=f>
</function>
</tool_call><|im_end|>"""
NO_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hermes", [JSON_CALLS, JSON_CALL]),
        ("qwen3", [NO_THOUGHT + JSON_CALLS, NO_THOUGHT + JSON_CALL]),
        ("qwen3_coder", [TAGGED_CALLS, TAGGED_CALL]),
        ("public qwen2_5", [JSON_CALLS, JSON_CALL]),
    ],
)
def test_calls_are_written_as_their_format_is_known(name: str, said: list[str]) -> None:
    text, spans = renderer(name).with_spans(CALLS)
    assert [text[start:end] for start, end in spans] == said
    assert "<tool_response>\nr\n</tool_response><|im_end|>\n" in text


PLAIN = (HELLO[0], Message("assistant", "b"))
CALL = Message("assistant", "", tool_calls=(ToolCall("f", {}),))


@pytest.mark.parametrize(
    ("template", "messages", "reason", "said"),
    [
        ("{{ raise_exception('only users') }}", PLAIN, "template_error", "only users"),
        ("{% for x in %}", PLAIN, "template_error", "TemplateSyntaxError"),
        ("{{ messages[9].reasoning_content.x }}", HELLO, "template_error", "UndefinedError"),
        ("{{ ''.__class__.thinking }}", HELLO, "template_error", "SecurityError"),
        (built_in("chatml"), HELLO, "no_place_for_reasoning", "no_place_for_reasoning"),
        (built_in("qwen3_coder"), HELLO, "no_place_for_reasoning", "no_place_for_reasoning"),
        (built_in("chatml"), (HELLO[0], CALL), "no_place_for_tools", "no_place_for_tools"),
        # names alone are no place
        (
            "{{ messages[0].content }}{{ messages[0].thinking }}",
            HELLO,
            "no_place_for_reasoning",
            "no_place",
        ),
        ("{{ 'tool_calls' in messages[1] }}", (HELLO[0], CALL), "no_place_for_tools", "no_place"),
        (
            "{{ messages[-2:] | map(attribute='content') | join }}",
            (Message("system", "s"), *PLAIN),
            "no_place_for_system",
            "no_place_for_system",
        ),
        # one block in which two messages stand
        (
            "{% generation %}{{ messages | map(attribute='content') | join }}{% endgeneration %}",
            (HELLO[0], Message("assistant", "b"), HELLO[0], Message("assistant", "c", train=False)),
            "turns_not_found",
            "[1, 3]",
        ),
    ],
)
def test_conversations_that_a_template_cannot_write(
    template: str, messages: tuple[Message, ...], reason: str, said: str
) -> None:
    with pytest.raises(Unusable, match=re.escape(said)) as found:
        learned(Conversation(messages), template)
    assert found.value.reason == reason


@pytest.mark.parametrize(
    ("value", "is_read"),
    [
        ("1\n</parameter>\n<parameter=y>\n2", False),
        ("1\n</parameter>\n</function>\n</tool_call>", False),
        (["</parameter>\n<parameter=y>"], True),
        ("<tool_call> or </tool_call>", True),
        ("an </parameter> in a sentence", True),
        ({"a": "<function=f>"}, True),
    ],
)
def test_a_call_that_is_read_as_another(value: Any, is_read: bool) -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"x": value, "z": 1}),))
    given = Conversation((Message("user", "a"), call))
    assert renderer("hermes").with_spans(given)[1]
    if is_read:
        assert renderer("qwen3_coder").with_spans(given)[1]
        return
    with pytest.raises(Unusable, match="ambiguous_call"):
        renderer("qwen3_coder").with_spans(given)


def test_fields_that_are_null_are_not_there() -> None:
    asked = "{{ messages[0].content is defined }} {{ messages[0].name is defined }}"
    assert (
        Renderer(asked, {}).text([{"role": "user", "content": "a", "name": None}]) == "True False"
    )
