"""API keys, tokens and private keys of known forms in documents.

Digests, UUIDs, vectors of tests and the keys of manuals have no such form, or are told by what they
are made of.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator

Span = tuple[int, int]

_TOKENS = {
    "AKIA": r"[0-9A-Z]{16}(?![0-9A-Za-z])",  # AWS access key id
    "ASIA": r"[0-9A-Z]{16}(?![0-9A-Za-z])",
    **{f"gh{kind}_": r"[A-Za-z0-9]{36,251}(?!\w)" for kind in "pousr"},  # GitHub
    "github_pat_": r"[A-Za-z0-9]{22}_[A-Za-z0-9]{59}",
    "glpat-": r"[\w-]{20,}",  # GitLab
    **{f"xox{kind}-": r"[0-9A-Za-z]{8,}-[0-9A-Za-z-]{10,}" for kind in "abeoprs"},  # Slack
    "xapp-": r"\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}",
    "hooks.slack.com/services/": r"T\w{8,}/B\w{8,}/\w{20,}",
    "AIza": r"[\w-]{35}(?![\w-])",  # Google
    "GOCSPX-": r"[\w-]{28}",
    "ya29.": r"[\w-]{40,}",
    "sk-": r"(?:proj|svcacct|admin|ant)-[\w-]{40,}|[A-Za-z0-9]{32,}(?![\w-])",  # OpenAI, Anthropic
    "sk_live_": r"[0-9A-Za-z]{24,}",  # Stripe
    "rk_live_": r"[0-9A-Za-z]{24,}",
    "SG.": r"[\w-]{22}\.[\w-]{43}",  # SendGrid
    "npm_": r"[A-Za-z0-9]{36}(?!\w)",
    "pypi-AgEIcHlwaS5vcmc": r"[\w-]{50,}",
    "hf_": r"[A-Za-z0-9]{34}(?!\w)",  # Hugging Face
    "eyJ": r"[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}",  # JWT
}
"""Rest of a token, by its start."""
# one search per first letter: each skips to that letter by memchr, and one for all is half as fast
_TOKEN_STARTS = [
    re.compile("|".join(map(re.escape, starts)))
    for _, starts in itertools.groupby(sorted(_TOKENS), key=lambda start: start[0])
]
_TOKEN_REST = {start: re.compile(rest) for start, rest in _TOKENS.items()}
_RARE_SIGNS = "-_.IJ"
"""One of them is in every start."""
_SECRET_VALUE = r"[\"']?\s*(?:=>|=|:)\s*[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
_AWS_SECRETS = [  # letters of both cases in one expression would be sought one by one
    re.compile("ecret(?:_?[Aa]ccess)?_?[Kk]ey" + _SECRET_VALUE),
    re.compile("ECRET_(?:ACCESS_)?KEY" + _SECRET_VALUE),
]
_PEM_BEGIN = re.compile(r"-----BEGIN ([A-Z0-9 ]{0,20}PRIVATE KEY(?: BLOCK)?)-----")
_MAX_PEM_CHARS = 20_000
# what stands around a key's lines in a file or in a literal: line ends, quotes, escapes, and a plus
# that joins literals (beside a quote; any other is of the key)
_PEM_FIRST = re.compile(r"(?:\\[nr]|[\s\"',;]|\+(?=\s*[\"']))*+")
_PEM_LAST = re.compile(r"(?:[nr]\\|[\s\"',;]|\+(?=\s*[\"']))*+")  # of the reversed text
_PEM_BODY = re.compile(r"[A-Za-z0-9+/]{32}")
_MIN_DISTINCT = 8


def _tokens(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    for start in pattern.finditer(text):
        rest = _TOKEN_REST[start[0]].match(text, start.end())
        # after a letter it is the tail of a longer name: task-..., self_...
        if (
            rest
            and not _is_in_word(text, start.start())
            and not _is_made_up(text[start.start() : rest.end()])
            and (start[0] != "eyJ" or _is_issued(text[start.start() : rest.end()]))
        ):
            yield start.start(), rest.end()


def _is_in_word(text: str, start: int) -> bool:
    before = text[start - 1 : start]
    return before.isalnum() or before == "_"


def _aws_secrets(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    for match in pattern.finditer(text):
        # a hexadecimal digest has letters of one case only
        if not _is_made_up(match[1]) and not match[1].islower() and not match[1].isupper():
            yield match.span(1)


def _pem_bodies(text: str) -> Iterator[Span]:
    """Yield the part between the first and the last line of a key, so that a literal stays one."""
    if "PRIVATE KEY" not in text:
        return
    for begin in _PEM_BEGIN.finditer(text):
        start = begin.end()
        end = text.find(f"-----END {begin[1]}-----", start, start + _MAX_PEM_CHARS)
        if end > 0 and any(map(_is_random, _PEM_BODY.findall(text, start, end))):
            body = text[start:end]
            first, last = _PEM_FIRST.match(body), _PEM_LAST.match(body[::-1])
            yield start + (first.end() if first else 0), end - (last.end() if last else 0)


def _is_random(line: str) -> bool:
    return len(set(line)) >= _MIN_DISTINCT


def _is_issued(token: str) -> bool:
    """Tell whether a JSON web token was issued to somebody, and is none of a manual.

    Those that are issued say when they were or when they end (RFC 7519, section 4.1).
    """
    payload = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return False
    is_dated = isinstance(claims, dict) and not {"iat", "exp", "nbf", "auth_time"}.isdisjoint(
        claims
    )
    # the token of jwt.io, which manuals copy
    return is_dated and "John Doe" not in claims.values() and claims.get("sub") != "1234567890"


def _is_made_up(token: str) -> bool:
    """Tell the keys of manuals: EXAMPLE in it, xxxx, 0000, one word and no digit."""
    upper = token.upper()
    return (
        "EXAMPLE" in upper
        or "XXXX" in upper
        or "0000000" in upper
        or len(set(token[-20:])) < _MIN_DISTINCT
        or not any(c.isdigit() for c in token)
    )


def _hint(sign: str) -> re.Pattern[str]:
    """Return what finds every token whose start has a rare sign, sought by that sign."""
    tokens, signs_before = [], ""
    for start, rest in _TOKENS.items():
        if sign == next(s for s in _RARE_SIGNS if s in start):
            before, after = map(re.escape, start.rsplit(sign, 1))
            tokens.append(f"(?<={before}{re.escape(sign)}){after}(?:{rest})")
            signs_before += before[-1]
    sign = re.escape(sign)
    return re.compile(f"{sign}(?<=[{signs_before}]{sign})(?:{'|'.join(tokens)})")


_TOKEN_HINTS = [_hint(sign) for sign in _RARE_SIGNS]
Kind = Callable[[str], Iterator[Span]]
_TOKEN_KINDS: tuple[Kind, ...] = tuple(
    functools.partial(_tokens, pattern=pattern) for pattern in _TOKEN_STARTS
)
_OTHER_KINDS: tuple[Kind, ...] = (
    _pem_bodies,
    *(functools.partial(_aws_secrets, pattern=pattern) for pattern in _AWS_SECRETS),
)


def kinds_in(text: str) -> tuple[Kind, ...]:
    """Return the kinds of secrets that may be in a text; each yields their places in it."""
    # hardly any text has a token, and to look for five signs takes half as long as for all starts
    has_token = any(hint.search(text) for hint in _TOKEN_HINTS)
    return _TOKEN_KINDS + _OTHER_KINDS if has_token else _OTHER_KINDS
