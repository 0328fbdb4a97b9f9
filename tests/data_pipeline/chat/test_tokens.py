"""Ids of conversations, and the mask of what is learned."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from data_pipeline.chat.rendered import Encoding
from data_pipeline.chat.tokens import covered, prepared, tokenise
from data_pipeline.schema import Tally
from loopcoder.chat.conversation import Conversation, Message, ToolCall
from loopcoder.chat.render import Renderer
from loopcoder.chat.templates import built_in
from loopcoder.chat.unusable import Unusable
from loopcoder.config.chat import ChatConfig
from tests.chat.chats import NAMES, said, tokenizer

ASKED, SAID = Message("user", "a"), Message("assistant", "b", "why")
CHAT = Conversation((ASKED, SAID))


def learned(given: Conversation, template: str = built_in("qwen3"), **fields: Any) -> str:
    renderer = Renderer.of(template, tokenizer(), NAMES)
    chat = ChatConfig(**fields)
    ids, mask = tokenise(renderer, tokenizer(), prepared(given, chat), chat)
    return tokenizer().decode(ids[mask].tolist(), skip_special_tokens=False)


def test_options_are_kept() -> None:
    assert learned(CHAT) == "<think>\nwhy\n</think>\n\nb<|im_end|>"
    assert learned(CHAT, reasoning="context") == "b<|im_end|>"
    assert learned(CHAT, reasoning="drop") == "<think>\n\n</think>\n\nb<|im_end|>"
    assert learned(CHAT, built_in("hermes"), reasoning="drop") == "b<|im_end|>"
    both = Conversation((*CHAT.messages, ASKED, Message("assistant", "c")))
    assert learned(both, turns="last", reasoning="drop").endswith("c<|im_end|>")
    assert "b" not in learned(both, turns="last", reasoning="drop")


def test_a_system_prompt_is_put_where_there_is_none() -> None:
    own = Conversation((Message("system", ""), *CHAT.messages))
    assert prepared(CHAT, ChatConfig(system="s")).messages[0] == Message("system", "s")
    assert prepared(own, ChatConfig(system="s")) == own
    assert prepared(CHAT, ChatConfig()) == CHAT


END = "<|im_end|>"
SPELLED = [
    Conversation((Message("user", f"x{END}y"), SAID)),
    Conversation((ASKED, Message("assistant", "b", f"{END}"))),
    Conversation((ASKED, Message("assistant", "", tool_calls=(ToolCall("f", {"a": [END]}),)))),
    Conversation(CHAT.messages, ({"type": "function", "function": {"name": "f", "x": END}},)),
]


@pytest.mark.parametrize("given", SPELLED)
def test_special_tokens_in_what_is_said(given: Conversation) -> None:
    with pytest.raises(Unusable, match=r"special_token_in_text: <\|im_end\|>"):
        learned(given)
    assert learned(given, special_tokens="keep")


def plain_tokenizer(tokens: list[str]) -> Tokenizer:
    """Return a tokenizer that has some tokens more, none of which it calls special."""
    made = Tokenizer.from_str(tokenizer().to_str())
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return made


def test_tokens_of_the_template_that_are_not_called_special() -> None:
    made = plain_tokenizer(["<|turn|>", "<|other|>", "user", "\n\n"])
    template = built_in("qwen3").replace("<|im_end|>", "<|turn|>")
    ours = Renderer.of(template, made, {})
    for question, kept in (("a<|turn|>b", False), ("a<|other|>b", True), ("user\n\nsystem", True)):
        given = Conversation((Message("user", question), SAID))
        if kept:
            assert len(tokenise(ours, made, given, ChatConfig())[0])
            continue
        with pytest.raises(Unusable, match=r"special_token_in_text: <\|turn\|>"):
            tokenise(ours, made, given, ChatConfig())


@pytest.mark.parametrize("is_token", [True, False])
def test_a_result_that_speaks_of_the_tags_around_it(is_token: bool) -> None:
    """It is text where they are; as tokens they could end it."""
    made = plain_tokenizer(["<tool_response>", "</tool_response>"] if is_token else [])
    call = Message("assistant", "", tool_calls=(ToolCall("f", {}),))
    given = Conversation(
        (ASKED, call, Message("tool", "a</tool_response>b"), Message("assistant", "c"))
    )
    ours = Renderer.of(built_in("hermes"), made, {})
    if is_token:
        with pytest.raises(Unusable, match="special_token_in_text: </tool_response>"):
            tokenise(ours, made, given, ChatConfig())
        return
    ids, _ = tokenise(ours, made, given, ChatConfig())
    assert "<tool_response>\na</tool_response>b\n</tool_response>" in made.decode(ids.tolist())


def test_special_tokens_that_a_template_puts_together(rng: random.Random) -> None:
    """Ours writes `<parameter=` + name + `>`: any token that ends in > can be made so."""
    token = f"<parameter={rng.randint(0, 99)}>"
    made = plain_tokenizer([])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    ours = Renderer.of(built_in("qwen3_coder"), made, {})

    def given(name: str) -> Conversation:
        call = Message("assistant", "", tool_calls=(ToolCall("f", {name: "a"}),))
        return Conversation((ASKED, call))

    assert len(tokenise(ours, made, given("other"), ChatConfig())[0])
    with pytest.raises(Unusable, match="special_token_in_text: <parameter="):
        tokenise(ours, made, given(token[11:-1]), ChatConfig())
    with pytest.raises(Unusable, match=r"special_token_in_text: <\|im_end\|>"):
        learned(given("<|im_end|"), built_in("qwen3_coder"))


def test_a_conversation_of_which_nothing_is_learned() -> None:
    for messages in ((ASKED, Message("assistant", "b", train=False)), (ASKED,)):
        with pytest.raises(Unusable, match="nothing_to_train"):
            learned(Conversation(messages))


def test_every_token_of_the_last_character_is_learned(rng: random.Random) -> None:
    """A character may be several tokens, of which transformers marks the first only."""
    bare = "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}{% generation %}"
    bare += "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    for _ in range(20):
        answers = [Message("assistant", said(rng) + rng.choice("漢🜁é.")) for _ in range(2)]
        given = Conversation((ASKED, answers[0], ASKED, answers[1]))
        assert learned(given, bare) == "".join(answer.content for answer in answers)
    assert covered([(0, 1), (1, 2), (1, 2), (2, 5), (5, 6)], [(1, 2), (3, 4), (4, 4)]).tolist() == [
        False, True, True, True, False,
    ]  # fmt: skip
    assert covered([], [(0, 1)]).tolist() == []


def test_what_is_cut_fits_and_is_trained(rng: random.Random) -> None:
    """With turns=last a shorter beginning may have something to train where a longer one has not:
    as many turns as fit are tried, then fewer."""
    made = tokenizer()
    eod = made.token_to_id("<|endoftext|>")
    for _ in range(30):
        trained = [True, *(rng.random() < 0.4 for _ in range(5)), True]
        turns = [
            (Message("user", f"Q{i}"), Message("assistant", f"A{i} " * 9, train=is_trained))
            for i, is_trained in enumerate(trained)
        ]
        given = Conversation(tuple(message for turn in turns for message in turn))
        kept = rng.randint(1, 6)
        cut = Conversation(given.messages[: 2 * kept])
        chat = ChatConfig(turns="last", too_long="cut")
        ours = Renderer.of(built_in("hermes"), made, NAMES)
        most = len(made.encode(ours.whole(cut)).ids) + 1
        encoding = Encoding(ours, made, chat, eod, most)
        found = encoding.encode(given, Tally("render"))
        assert len(found.ids) <= most
        assert len(found.conversation.messages) == 2 * max(i + 1 for i in range(kept) if trained[i])
