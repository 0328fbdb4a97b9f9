"""What is said of a chat with weights that were, or were not, trained on conversations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.chat.templates import built_in
from loopcoder.checkpoint.state import Specials
from loopcoder.cli.prompt_notes import notes_on


@pytest.mark.parametrize(
    ("specials", "is_noted"),
    [
        (None, True),
        (Specials({}, {}, None, None), True),
        (Specials({}, {}, None, built_in("chatml")), False),
        (Specials({}, {}, None, "{{ messages }}"), False),
    ],
)
def test_a_chat_with_weights_without_a_template_of_their_own(
    specials: Specials | None, is_noted: bool
) -> None:
    """ChatML may be the template that they were tuned with."""
    config = SimpleNamespace(stages=[SimpleNamespace(seq_length=99)])
    source: Any = SimpleNamespace(specials=specials, config=config, corpus="chats")
    made: Any = SimpleNamespace(template=built_in("chatml"))
    given: Any = [SimpleNamespace(text="a")]
    requests: Any = [SimpleNamespace(ids=(1, 2))]
    notes = list(notes_on(given, requests, source, made, is_chat=True))
    assert ["ChatML" in note for note in notes] == [True] * is_noted


@pytest.mark.parametrize(
    ("specials", "corpus", "is_noted"),
    [
        (None, "documents", True),
        (Specials({}, {}, None, built_in("chatml")), "chats", True),
        (Specials({"eos_token_id": 2}, {}, None, built_in("chatml")), "chats", False),
        (Specials({}, {}, None, None), None, False),
        (None, None, False),
    ],
)
def test_a_prompt_beyond_what_was_trained(
    specials: Specials | None, corpus: str | None, is_noted: bool
) -> None:
    """A tuned run says it too; of imported weights, tuned or not, nobody knows."""
    config = SimpleNamespace(stages=[SimpleNamespace(seq_length=5), SimpleNamespace(seq_length=9)])
    source: Any = SimpleNamespace(specials=specials, config=config, corpus=corpus)
    given: Any = [SimpleNamespace(text="a")]
    for length, is_long in ((9, False), (10, True)):
        requests: Any = [SimpleNamespace(ids=(1,) * length)]
        notes = list(notes_on(given, requests, source, SimpleNamespace(), is_chat=False))  # type: ignore[arg-type]
        assert ["sequences of 9" in note for note in notes] == [True] * (is_noted and is_long)
