"""Templates by name, beside tokenizers, and of other tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from loopcoder.chat.fit import check_fit, foreign_tokens
from loopcoder.chat.templates import BUILT_IN, built_in, end_ids, named, template_of, token_names_of
from loopcoder.errors import InputError
from tests.chat.chats import NAMES, public, tokenizer


def test_a_setting_names_a_template_or_a_file(tmp_path: Path) -> None:
    assert all(named(name) == built_in(name) for name in BUILT_IN)
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages }}\n")
    assert named(str(own)) == "{{ messages }}\n"
    with pytest.raises(InputError, match="chatml, hermes"):
        named("chatlm")


@pytest.mark.parametrize(
    "entry", ["B", [{"name": "rag", "template": "C"}, {"name": "default", "template": "B"}]]
)
def test_the_template_beside_a_tokenizer(tmp_path: Path, entry: Any) -> None:
    place = tmp_path / "tokenizer.json"
    place.touch()
    assert template_of(tmp_path) is template_of(place) is None
    assert token_names_of(place) == {}
    names = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    config = json.dumps({**names, "chat_template": entry})
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert template_of(place) == "B"
    assert token_names_of(tmp_path) == {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("A")
    assert template_of(place) == template_of(tmp_path) == "A"


@pytest.mark.parametrize("content", ["[]", "{", '"chat_template"'])
def test_a_damaged_file_beside_a_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match="tokenizer_config"):
        template_of(tmp_path)


def test_a_template_of_another_tokenizer_is_found() -> None:
    ours = tokenizer()
    for template in (*map(built_in, BUILT_IN), *map(public, ("llama3", "smollm2", "qwen2_5"))):
        assert foreign_tokens(template, ours) == []
        check_fit(template, ours, "here")
    gemma = "{{ '<start_of_turn>' + messages[0]['role'] + messages[0]['content'] }}</s>"
    assert set(foreign_tokens(gemma, ours)) == {"<start_of_turn>", "</s>"}
    pieces = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    assert set(foreign_tokens(pieces, ours)) == {"<|system|>", "<|user|>", "<|assistant|>"}
    branch = "{% if tools %}<|python_tag|>{% endif %}{{ messages }}"
    assert foreign_tokens(branch, ours) == ["<|python_tag|>"]
    with pytest.raises(InputError, match=r"(?s)elsewhere.*python_tag.*another one") as found:
        check_fit(branch, ours, "elsewhere")
    assert "fix:" in str(found.value)


def test_a_token_that_stands_for_all_that_is_unknown() -> None:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert set(foreign_tokens(built_in("hermes"), made)) == {"<|im_start|>", "<|im_end|>"}


def test_a_template_that_asks_for_the_date_is_refused() -> None:
    with pytest.raises(InputError, match=r"own\.jinja.*date"):
        check_fit("{{ strftime_now('%d') }}{{ messages }}", tokenizer(), "own.jinja")


def test_special_tokens_that_nothing_names_are_refused() -> None:
    check_fit(public("llama3"), tokenizer(), "here", NAMES)
    check_fit(built_in("hermes"), tokenizer(), "here", {})
    with pytest.raises(InputError, match="here writes bos_token, which nothing names"):
        check_fit(public("llama3"), tokenizer(), "here", {"eos_token": "<|endoftext|>"})


def test_what_is_no_template_is_said_at_once() -> None:
    with pytest.raises(InputError, match=r"own.jinja.*TemplateSyntaxError"):
        check_fit("{% for %}", tokenizer(), "own.jinja")


def test_what_ends_an_answer() -> None:
    ids = {"<|im_start|>": 1, "<|im_end|>": 2, "</s>": 3, "<eos>": 4}
    plain = {"</s>": 3, "<eos>": 4}
    assert end_ids(plain, None, None) == []
    assert end_ids(plain, None, "<none>") == []
    assert end_ids(plain, None, "</s>") == [3]  # weights that name it and do not number it
    assert end_ids(plain, 4, "</s>") == [4]
    assert end_ids(ids, [4, 2], "</s>") == [4, 2]
    assert end_ids(ids, 3, None) == [3, 2]
