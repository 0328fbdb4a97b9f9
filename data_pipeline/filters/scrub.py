"""Takes e-mail addresses, public IP addresses and secrets out of documents.

Precision comes first: a version number, an operator or an example that is taken for a secret would
teach a model wrong programs. Every placeholder is fixed and is left alone by a second pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from data_pipeline.filters.emails import email_addresses
from data_pipeline.filters.ips import ip_addresses
from data_pipeline.filters.keys import kinds_in
from loopcoder.config.filters import FilterConfig

_Span = tuple[int, int]

EMAIL, IP_ADDRESS, KEY = "<EMAIL>", "<IP_ADDRESS>", "<KEY>"
_MAX_PASSES = 4


def scrub(text: str, rules: FilterConfig, notes: Counter[str]) -> str:
    """Return a document with placeholders, counting them in `notes`."""
    # secrets first: a token may hold what looks like an address
    if rules.scrub_secrets:
        for kind in kinds_in(text):
            text, found = _put(text, kind(text), KEY)
            _count(notes, "secrets_scrubbed", found)
    if rules.scrub_emails and "@" in text:
        text, found = _put(text, email_addresses(text), EMAIL)
        _count(notes, "emails_scrubbed", found)
    if rules.scrub_ips:
        # a placeholder may be shorter than what it replaced, and bring other surroundings near
        for _ in range(_MAX_PASSES):
            text, found = _put(text, ip_addresses(text), IP_ADDRESS)
            _count(notes, "ips_scrubbed", found)
            if not found:
                break
    return text


def _count(notes: Counter[str], note: str, found: int) -> None:
    if found:
        notes[note] += found


def _put(text: str, spans: Iterable[_Span], placeholder: str) -> tuple[str, int]:
    """Return the text with a placeholder for each span, and their number; overlaps count once."""
    parts: list[str] = []
    done = 0
    for start, end in spans:
        if start >= done:
            parts += (text[done:start], placeholder)
            done = end
    return ("".join((*parts, text[done:])), len(parts) // 2) if parts else (text, 0)
