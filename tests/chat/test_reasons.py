"""Why conversations are not trained on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_pipeline.chat.rendered import END_INSIDE, TOO_LONG
from loopcoder.chat.parsing import parse
from loopcoder.chat.probes import PARTS
from loopcoder.chat.unusable import FIXES, REASONS, Unusable, fix_of

ROOT = Path(__file__).parents[2]


def test_every_reason_is_explained() -> None:
    """Those that the source names, in REASONS and in the docs."""
    sources = [
        path.read_text(encoding="utf-8")
        for folder in ("loopcoder/chat", "data_pipeline/chat")
        for path in sorted((ROOT / folder).glob("*.py"))
    ]
    raised = {name for text in sources for name in re.findall(r'Unusable\(\s*"(\w+)"', text)}
    raised |= {part.reason for part in PARTS.values()} | {TOO_LONG, END_INSIDE}
    assert len(raised) > 15
    assert raised <= REASONS.keys()
    docs = (ROOT / "docs/chats.md").read_text(encoding="utf-8")
    assert [name for name in REASONS if f"`{name}`" not in docs] == []
    for reason in raised:
        assert REASONS[reason] in str(Unusable(reason))
    assert str(Unusable("another")) == "another"


@pytest.mark.parametrize("said", ["<think>why", "<think>a<think>b</think>c"])
def test_the_fix_of_reasoning_is_not_to_keep_it_as_text(said: str) -> None:
    row = {"prompt": "a", "completion": said}
    for markup in ("read", "keep"):
        with pytest.raises(Unusable) as refused:
            parse(row, markup=markup)
        assert "markup=keep does not help" in fix_of(refused.value.reason)


def test_calls_stay_text_only_where_no_tool_answers_them() -> None:
    call = {"from": "gpt", "value": "<tool_call>{}</tool_call>"}
    asked = {"from": "human", "value": "a"}
    answered = [asked, call, {"from": "tool", "value": "r"}, {"from": "gpt", "value": "b"}]
    assert parse({"conversations": [asked, call]}, markup="keep")
    with pytest.raises(Unusable) as refused:
        parse({"conversations": answered}, markup="keep")
    assert "data.build.sources.0.markup=read" in fix_of(
        refused.value.reason, "data.build.sources.0"
    )


def test_every_reason_has_a_fix() -> None:
    assert FIXES.keys() == REASONS.keys()
    assert fix_of("unreadable_call", "data.build.sources.3").startswith(
        "data.build.sources.3.markup=keep"
    )
    for reason in ("unreadable_call", "text_behind_call", "markup_in_text"):
        assert "if no turn of a tool answers" in fix_of(reason)
    assert not any(sign in fix_of(reason) for reason in REASONS for sign in ("{source", "{{"))
