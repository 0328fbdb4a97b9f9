"""Why conversations are not trained on."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.chat.rendered import END_INSIDE, TOO_LONG
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
    assert [name for name in (*REASONS, "too_large") if f"`{name}`" not in docs] == []
    for reason in raised:
        assert REASONS[reason] in str(Unusable(reason))
    assert str(Unusable("another")) == "another"


def test_every_reason_has_a_fix() -> None:
    assert FIXES.keys() == REASONS.keys()
    assert fix_of("unreadable_call", "data.build.sources.3").startswith(
        "data.build.sources.3.markup=keep"
    )
    assert not any(sign in fix_of(reason) for reason in REASONS for sign in ("{source", "{{"))
