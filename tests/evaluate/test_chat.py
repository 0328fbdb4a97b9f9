"""Held-out conversations: which answers count as well-formed, and which calls as right."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from data_pipeline.tokenizer.encoder import train_tokenizer
from loopcoder.chat.conversation import canonical, restored
from loopcoder.chat.parsing import parse
from loopcoder.chat.templates import built_in
from loopcoder.config.benchmarks import ChatTaskConfig
from loopcoder.data.places import CHAT_TEMPLATE, HELD_OUT
from loopcoder.errors import InputError
from loopcoder.evaluate.chat import Exam, HeldOutTurns, Turn, Written, held_out
from loopcoder.evaluate.in_process import InProcess
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Answer, Request

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
CITY = "Tromsø"


def call(name: str = "weather", **arguments: Any) -> str:
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def calling(city: str, reply: str = "Cold.") -> dict[str, Any]:
    """A conversation with a call, its result, and an answer in words."""
    function = {"name": "weather", "arguments": {"city": city}}
    called = {"id": "1", "type": "function", "function": function}
    return {
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": f"How is it in {city}?"},
            {"role": "assistant", "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "1", "content": "-7"},
            {"role": "assistant", "content": reply},
        ],
    }


PLAIN = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]}


class Saying(InProcess):
    """Stands for a model in this process that says what it is told to, and whose own template has
    no tools."""

    max_length, at_once = 2000, 3
    _positions = None

    def __init__(self, folder: Path, template: str = "chatml"):
        train_tokenizer(["ab", "ba"], 330, folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special: Any = SimpleNamespace(
            chat_template=built_in(template), bos_id=0, end_ids=[1], bos="", eos="", pad=""
        )
        self.prompts, self.texts = Prompts(tokenizer, special), list[str | None]()
        self.prompted: list[str] = []

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        assert len(requests) <= self.at_once
        said = []
        for request in requests:
            self.prompted.append(
                self.prompts.tokenizer.decode(request.ids, skip_special_tokens=False)
            )
            text = self.texts.pop(0)
            said.append(Answer(text or "", (), "length" if text is None else "stop"))
        return said


def asked(tmp_path: Path, *rows: dict[str, Any]) -> list[Turn]:
    text = "".join(json.dumps(canonical(parse(row))) + "\n" for row in rows)
    (tmp_path / HELD_OUT).write_text(text, encoding="utf-8")
    (tmp_path / CHAT_TEMPLATE).write_text(built_in("qwen3"))
    return held_out([tmp_path], None).turns


def put(
    tmp_path: Path, found: Sequence[Turn], *texts: str | None, **settings: Any
) -> tuple[dict[str, float], list[Written]]:
    model = Saying(tmp_path)
    model.texts = list(texts)
    asked = HeldOutTurns(list(found), built_in("qwen3"))
    return Exam(model.prompts, asked, ChatTaskConfig(**settings)).put_to(model)


def test_the_references_themselves_are_right(tmp_path: Path, rng: random.Random) -> None:
    """What the template writes for them, of any number and order of conversations."""
    rows = [calling(f"{CITY} {n}") if rng.random() < 0.6 else PLAIN for n in range(9)]
    found = asked(tmp_path, calling(CITY), PLAIN, *rows)
    texts = [
        call(**turn.reference.tool_calls[0].arguments) if turn.reference.tool_calls
        else turn.reference.content
        for turn in found
    ]  # fmt: skip
    metrics, said = put(tmp_path, found, *texts)
    assert metrics == {
        name: value
        for each in ("well_formed", "calls_well_formed", "calls", "calls_alike", "no_calls")
        for name, value in ((each, 1.0), (f"{each}_stderr", 0.0))
    }
    assert [one.turn for one in said] == found
    assert len(found) == 1 + sum(1 + ("tools" in row) for row in [calling(CITY), *rows])


@pytest.mark.parametrize(
    ("text", "well_formed", "calls", "alike"),
    [
        (call(city=CITY), True, True, True),
        (f"<think>\nIt asks.\n</think>\n\n{call(city=CITY)}", True, True, True),
        (call(city="Oslo"), True, True, False),
        (call(city=CITY) + "\n" + call(city=CITY), True, True, False),
        (call(place=CITY), True, False, False),  # against the schema
        (call(city=7), True, False, False),
        (call("snow", city=CITY), True, False, False),  # no such tool
        ("It is cold.", True, False, False),
        (
            '<tool_call>\n{"name": "weather", "arguments": {"city"}}\n</tool_call>',
            False,
            False,
            False,
        ),
        (call(city=CITY).removesuffix("</tool_call>"), False, False, False),
        (f"<think>\nIt asks. {call(city=CITY)}", False, False, False),  # reasoning does not end
        (None, False, False, False),  # nor does the answer
        ("", False, False, False),
        ("<think>\nIt asks.\n</think>\n\n", False, False, False),
    ],
)
def test_a_call(
    tmp_path: Path, text: str | None, well_formed: bool, calls: bool, alike: bool
) -> None:
    metrics, (one,) = put(tmp_path, asked(tmp_path, calling(CITY))[:1], text)
    assert (metrics["well_formed"], metrics["calls"], metrics["calls_alike"]) == (
        float(well_formed),
        float(calls),
        float(alike),
    )
    assert "no_calls" not in metrics
    assert json.loads(json.dumps(one.as_dict()))["well_formed"] is well_formed


def test_calls_are_well_formed_of_all_that_are_begun(tmp_path: Path) -> None:
    """Two of five: the others have no end, no such tool, and one of two with an argument
    of another type; words are no call."""
    found = asked(tmp_path, calling(CITY), calling(CITY), calling(CITY))
    texts = [
        call(city="Oslo"),
        call(city=CITY),  # where words were wanted
        call(city=CITY).removesuffix("</tool_call>"),
        call("snow", city=CITY),
        f"{call(city=CITY)}\n{call(city=7)}",
        "It is cold.",
    ]
    metrics, said = put(tmp_path, found, *texts)
    assert metrics["calls_well_formed"] == 2 / 5
    wrong = [one.as_dict()["wrong_calls"] for one in said]
    assert [len(each) for each in wrong] == [0, 0, 0, 1, 1, 0]
    assert "snow" in wrong[3][0] and "string" in wrong[4][0]
    assert "calls_well_formed" not in put(tmp_path, found[:1], "It is cold.")[0]


def test_an_answer_in_words_should_call_nothing(tmp_path: Path) -> None:
    found = asked(tmp_path, calling(CITY), calling(CITY, "Very cold."))
    texts = [call(city=CITY), call(city=CITY), call(city=CITY), "Very cold."]
    metrics, _ = put(tmp_path, found, *texts)
    assert metrics["no_calls"] == 0.5 and metrics["no_calls_stderr"] == pytest.approx(0.125**0.5)
    assert metrics["well_formed"] == 1.0
    for text in (call(city=CITY).removesuffix("</tool_call>"), None, ""):
        assert put(tmp_path, found[1:2], text)[0]["no_calls"] == 0.0  # nor is this an answer


def test_a_right_call_that_does_not_end_is_none(tmp_path: Path) -> None:
    class Babbling(Saying):
        def answers(self, requests: Sequence[Request]) -> list[Answer]:
            return [Answer(f"{call(city=CITY)}\nOn and on", (), "length")]

    model = Babbling(tmp_path)
    one = HeldOutTurns(asked(tmp_path, calling(CITY))[:1], built_in("qwen3"))
    metrics, _ = Exam(model.prompts, one, ChatTaskConfig()).put_to(model)
    assert metrics["calls_alike"] == 0.0


def test_without_tools_a_call_is_text_as_in_the_server(tmp_path: Path) -> None:
    metrics, (one,) = put(tmp_path, asked(tmp_path, PLAIN), call(city=CITY))
    assert metrics["well_formed"] == 1.0 and not one.read.tool_calls
    assert one.read.content == call(city=CITY)


def test_whole_numbers_are_alike_however_they_are_written(
    tmp_path: Path, rng: random.Random
) -> None:
    number = rng.randint(0, 9)
    row = calling(CITY)
    row["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    function = row["messages"][1]["tool_calls"][0]["function"]
    function["arguments"] = {"days": [number, {"of": float(number)}], "all": True}
    found = asked(tmp_path, row)[:1]
    for days, alike in (
        ([float(number), {"of": number}], 1.0),
        ([number + 0.5, {"of": number}], 0.0),
    ):
        metrics, _ = put(tmp_path, found, call(days=days, all=True))
        assert metrics["calls_alike"] == alike
    assert put(tmp_path, found, call(days=[number, {"of": number}], all=1))[0]["calls_alike"] == 0


def test_each_answer_is_asked_for_behind_what_was_written_before_it(tmp_path: Path) -> None:
    found = asked(tmp_path, calling(CITY))
    model = Saying(tmp_path)
    model.texts = ["x", "y"]
    Exam(model.prompts, HeldOutTurns(found, built_in("qwen3")), ChatTaskConfig()).put_to(model)
    first, second = model.prompted
    assert CITY in first and "weather" in first and "-7" not in first
    assert second.startswith(first.removesuffix("<|im_start|>assistant\n"))
    assert call(city=CITY) in second and second.endswith("<|im_start|>assistant\n")


def test_only_what_is_trained_is_asked(tmp_path: Path) -> None:
    row = calling(CITY)
    row["messages"][1]["train"] = False
    (turn,) = asked(tmp_path, row)
    assert turn.reference.content == "Cold." and len(turn.before) == 3
    assert restored({"messages": []}).messages == ()


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read(.|\n)*chat\.corpus="):
        held_out([tmp_path], None)
    (tmp_path / HELD_OUT).write_text("{}\n")
    with pytest.raises(InputError, match="cannot be read"):
        held_out([tmp_path], None)
    (tmp_path / HELD_OUT).write_text("")
    (tmp_path / CHAT_TEMPLATE).write_text("")
    with pytest.raises(InputError, match="no answer"):
        held_out([tmp_path], None)


def test_all_prompts_have_room_or_the_longest_says_what_helps(
    tmp_path: Path, rng: random.Random
) -> None:
    rows = [calling(CITY * n) for n in rng.sample(range(1, 40), 5)]
    found = asked(tmp_path, *rows)
    model = Saying(tmp_path)
    exam = Exam(model.prompts, HeldOutTurns(found, built_in("qwen3")), ChatTaskConfig())
    longest = max(len(request.ids) for request in exam.requests)
    assert exam.room == longest + 512
    answer = rng.randint(1, 99)
    for spare in (0, 1):
        model.max_length = longest + answer - spare
        model.texts = ["x"] * len(found)
        asked_now = Exam(
            model.prompts,
            HeldOutTurns(found, built_in("qwen3")),
            ChatTaskConfig(max_tokens=answer),
        )
        if not spare:
            asked_now.put_to(model)
            continue
        with pytest.raises(InputError, match=rf"max_length={longest + answer}, or a lower chat\."):
            asked_now.put_to(model)
        model._positions = longest + answer - 1  # which no max_length exceeds
        with pytest.raises(InputError, match=rf"chat\.max_tokens={answer - 1} tasks\.max_l"
                           if answer > 1 else "a model of more than"):  # fmt: skip
            asked_now.put_to(model)


def test_several_corpora_are_asked_in_turn_and_those_of_documents_not(
    tmp_path: Path, rng: random.Random
) -> None:
    folders = [tmp_path / name for name in ("a", "documents", "b")]
    for folder in folders:
        folder.mkdir()
    few, more = asked(folders[0], calling(CITY)), asked(folders[2], PLAIN, calling("Oslo"))
    both = held_out(folders, None)
    assert [(t.conversation, t.reference) for t in both.turns] == [
        *((0, turn.reference) for turn in few),
        *((turn.conversation + 1, turn.reference) for turn in more),
    ]
    assert held_out(folders, 2).turns == both.turns[:-2]
    (folders[2] / CHAT_TEMPLATE).write_text(built_in("chatml"))
    with pytest.raises(InputError, match="2 chat templates"):
        held_out(folders, None)


def test_the_fingerprint_is_of_what_is_asked_wherever_it_lies(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        asked(folder, calling(CITY), PLAIN)
    first, second = (held_out([folder], None).fingerprint for folder in folders)
    assert first == second != held_out([folders[0]], 1).fingerprint
    asked(folders[1], calling(CITY, "Warm."), PLAIN)
    assert held_out([folders[1]], None).fingerprint != first
    asked(folders[1], calling(CITY), PLAIN)
    (folders[1] / CHAT_TEMPLATE).write_text(built_in("hermes"))
    assert held_out([folders[1]], None).fingerprint != first
