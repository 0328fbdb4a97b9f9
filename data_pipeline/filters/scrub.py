"""Takes e-mail addresses, public IP addresses and secrets out of documents.

Precision comes first: a version number, an operator or an example that is taken for a secret would
teach a model wrong programs. Every placeholder is fixed and is left alone by a second pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from data_pipeline.filters.emails import email_addresses
from data_pipeline.filters.ips import ip_addresses
from data_pipeline.filters.keys import KINDS
from loopcoder.config.filters import FilterConfig

_Span = tuple[int, int]

EMAIL, IP_ADDRESS, KEY = "<EMAIL>", "<IP_ADDRESS>", "<KEY>"
_MAX_PASSES = 4


def scrub(text: str, rules: FilterConfig, notes: Counter[str]) -> str:
    """Return a document with placeholders, counting them in `notes`."""
    # secrets first: a token may hold what looks like an address
    if rules.scrub_secrets:
        text = _replaced(text, KINDS, KEY, "secrets_scrubbed", notes)
    if rules.scrub_emails and "@" in text:
        text = _replaced(text, [email_addresses], EMAIL, "emails_scrubbed", notes)
    if rules.scrub_ips:
        text = _replaced(text, [ip_addresses], IP_ADDRESS, "ips_scrubbed", notes)
    return text


def _replaced(
    text: str,
    kinds: Iterable[Callable[[str], Iterator[_Span]]],
    placeholder: str,
    note: str,
    notes: Counter[str],
) -> str:
    for kind in kinds:
        # a placeholder may be shorter than what it replaced, and bring other surroundings near
        for _ in range(_MAX_PASSES):
            text, found = _put(text, kind(text), placeholder)
            if not found:
                break
            notes[note] += found
    return text


def _put(text: str, spans: Iterable[_Span], placeholder: str) -> tuple[str, int]:
    """Return the text with a placeholder for each span, and their number; overlaps count once."""
    parts: list[str] = []
    done = 0
    for start, end in spans:
        if start >= done:
            parts += (text[done:start], placeholder)
            done = end
    return ("".join((*parts, text[done:])), len(parts) // 2) if parts else (text, 0)
