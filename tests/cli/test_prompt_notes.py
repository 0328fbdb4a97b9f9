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
    source: Any = SimpleNamespace(specials=specials, config=config)
    made: Any = SimpleNamespace(template=built_in("chatml"))
    given: Any = [SimpleNamespace(text="a")]
    requests: Any = [SimpleNamespace(ids=(1, 2))]
    notes = list(notes_on(given, requests, source, made, is_chat=True))
    assert ["ChatML" in note for note in notes] == [True] * is_noted
