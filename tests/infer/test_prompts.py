"""Prompts from texts, ids and conversations."""

from __future__ import annotations

import sys

import pytest

from loopcoder.chat.templates import built_in
from loopcoder.checkpoint.state import Specials
from loopcoder.errors import InputError
from loopcoder.hf.card import Tokenizer as SpecialTokens
from loopcoder.infer.prompts import Prompts
from tests.infer.stand_in import END, MARKER, tokenizer_of

TOKENIZER = tokenizer_of(["what the loop reads " * 10])
END_ID, MARKER_ID = TOKENIZER.token_to_id(END), TOKENIZER.token_to_id(MARKER)
HELLO = [{"role": "user", "content": "Hello"}]


def prompts(template: str | None) -> Prompts:
    ids = {END: END_ID, MARKER: MARKER_ID, "<bos>": 7}
    folder = Specials({"eos_token_id": [END_ID, MARKER_ID]}, {}, None, template)
    return Prompts(TOKENIZER, SpecialTokens("", "<bos>", END, END, ids, folder))


def test_texts_are_tokenised_as_documents_are_and_names_of_tokens_are_tokens() -> None:
    ids = prompts(None).of_text(f"the {MARKER} loop")
    assert MARKER_ID in ids and TOKENIZER.decode(ids, skip_special_tokens=False) == (
        f"the {MARKER} loop"
    )
    assert prompts(None).of_ids([3, 4]) == (3, 4)


def test_an_empty_prompt_begins_behind_the_end_of_a_document() -> None:
    made = prompts(None)
    assert made.of_text("") == made.of_ids([]) == (made.begin_id,)
    assert made.end_ids == {END_ID, MARKER_ID}


def test_a_conversation_is_written_with_the_template() -> None:
    messages = [{"role": "system", "content": "Be short."}, *HELLO]
    assert prompts(built_in("chatml")).rendered(messages) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    with_tools = "{{ bos_token }}{{ tools[0].name }}{{ messages | tojson }}{{ eos_token }}"
    said = prompts(with_tools).rendered(HELLO, [{"name": "look"}])
    assert said == '<bos>look[{"role": "user", "content": "Hello"}]' + END
    assert prompts(MARKER + "{{ messages[0].content }}").of_chat(HELLO)[0] == MARKER_ID


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('only users') }}", "only users"),
        ("{% for x in %}", "TemplateSyntaxError"),
        ("{{ messages[9].content.x }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_conversations_that_cannot_be_written(template: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prompts(template).of_chat(HELLO)


def test_what_renders_conversations_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install 'transformers"):
        prompts(built_in("chatml")).of_chat(HELLO)


def test_what_a_template_does_not_take_is_told_in_short() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    message = {"role": "user", "content": deep, "more": ["x" * 10**6] * 100}
    with pytest.raises(InputError) as found:
        prompts("{{ raise_exception(messages[0].more[0]) }}").rendered([message])
    assert len(str(found.value)) < 1000
