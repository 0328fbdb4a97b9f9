"""Takes e-mail addresses, public IP addresses and secrets out of documents.

Precision comes first: a version number, an operator or an example that is taken for a secret would
teach a model wrong programs. Every placeholder is fixed and is left alone by a second pass.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from loopcoder.config.filters import FilterConfig

_Span = tuple[int, int]

EMAIL, IP_ADDRESS, KEY = "<EMAIL>", "<IP_ADDRESS>", "<KEY>"


def scrub(text: str, rules: FilterConfig, notes: Counter[str]) -> str:
    """Return a document with placeholders, counting them in `notes`."""
    # secrets first: a token may hold what looks like an address
    if rules.scrub_secrets:
        text = _scrub_secrets(text, notes)
    if rules.scrub_emails and "@" in text:
        text = _scrub_emails(text, notes)
    if rules.scrub_ips:
        text = _scrub_ips(text, notes)
    return text


# secrets

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


def _scrub_secrets(text: str, notes: Counter[str]) -> str:
    found = 0
    for pattern in _TOKEN_STARTS:
        text, keys = _put(text, _tokens(text, pattern), KEY)
        found += keys
    if "PRIVATE KEY" in text:
        text, keys = _put(text, _pem_bodies(text), KEY)
        found += keys
    for pattern in _AWS_SECRETS:
        text, keys = _put(text, _aws_secrets(text, pattern), KEY)
        found += keys
    if found:
        notes["secrets_scrubbed"] += found
    return text


def _tokens(text: str, pattern: re.Pattern[str]) -> Iterator[_Span]:
    for start in pattern.finditer(text):
        rest = _TOKEN_REST[start[0]].match(text, start.end())
        # after a letter it is the tail of a longer name: task-..., self_...
        if (
            rest
            and not _is_in_word(text, start.start())
            and not _is_made_up(text[start.start() : rest.end()])
        ):
            yield start.start(), rest.end()


def _is_in_word(text: str, start: int) -> bool:
    before = text[start - 1 : start]
    return before.isalnum() or before == "_"


def _aws_secrets(text: str, pattern: re.Pattern[str]) -> Iterator[_Span]:
    for match in pattern.finditer(text):
        if not _is_made_up(match[1]):
            yield match.span(1)


def _pem_bodies(text: str) -> Iterator[_Span]:
    """Yield the part between the first and the last line of a key, so that a literal stays one."""
    for begin in _PEM_BEGIN.finditer(text):
        start = begin.end()
        end = text.find(f"-----END {begin[1]}-----", start, start + _MAX_PEM_CHARS)
        if end > 0 and _PEM_BODY.search(text, start, end):
            body = text[start:end]
            first, last = _PEM_FIRST.match(body), _PEM_LAST.match(body[::-1])
            yield start + (first.end() if first else 0), end - (last.end() if last else 0)


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


# e-mail

_DOMAIN = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+)([A-Za-z]{2,14})(?![\w-])")
_LOCAL_REVERSED = re.compile(r"[\w.%+-]{1,64}")
_TOP_NAMES = (
    "com org net edu gov mil int info biz name pro mobi jobs app dev tech cloud online site store "
    "xyz email academy science systems software solutions company group team world network agency "
    "berlin hamburg london paris wien swiss asia africa"
)
_TOP = frozenset(_TOP_NAMES.split())
# domains of countries that are first of all endings of files; any other pair of letters is taken
_NOT_TOP = {"py", "js", "ts", "sh", "md", "so", "cc", "cs", "rb", "hs", "mm", "mt", "gz", "ps"}
_EXAMPLES = re.compile(
    r"(?:^|\.)(?:(?:example|domain|yourdomain|mydomain|yourcompany|company|acme|foo|bar|test|host)"
    r"\.(?:com|org|net|edu|co\.\w\w)|[\w-]+\.(?:example|test|invalid|localhost|local))\.?$"
)
_NOBODY = {
    *("git", "hg", "svn", "cvs", "ssh", "noreply", "no-reply", "donotreply", "do-not-reply"),
    *("nobody", "this", "self", "super", "return", "break", "continue", "it", "user", "username"),
    *("root", "you", "your.name", "yourname", "your-email", "youremail", "email", "name", "foo"),
}


def _scrub_emails(text: str, notes: Counter[str]) -> str:
    text, found = _put(text, _emails(text), EMAIL)
    if found:
        notes["emails_scrubbed"] += found
    return text


def _emails(text: str) -> Iterator[_Span]:
    for match in _DOMAIN.finditer(text):
        start = _email_start(text, match)
        if start is not None:
            yield start, match.end()


def _email_start(text: str, match: re.Match[str]) -> int | None:
    """Return where the address that contains this domain begins, or None if it is none."""
    domain, top = match[1].lower(), match[2]
    if not (top.islower() or top.isupper()) or not _is_top(top.lower()):
        return None
    # a call or an index follows an attribute: a@b.me(), x@w.at[0]
    if text[match.end() : match.end() + 1] in ("(", "[", "="):
        return None
    if _EXAMPLES.search(domain + top.lower()):
        return None
    # the local part ends at the sign, so it is matched backwards
    at = match.start()
    local = _LOCAL_REVERSED.match(text[max(0, at - 64) : at][::-1])
    if not local:
        return None
    name = local[0][::-1].lstrip(".-%+")
    if not any(map(str.isalnum, name)) or name.lower() in _NOBODY or name[-1] == ".":
        return None
    return at - len(name)


def _is_top(top: str) -> bool:
    return top not in _NOT_TOP if len(top) == 2 else top in _TOP


# IP addresses

# a search for a literal is thirty times as fast as one for digits, so the first dot or colon leads
_IP4_HINT = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d")
_IP4 = re.compile(r"(?<![\w.+-])(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?![\w+]|\.\w|-\w)")
_IP6_HINT = re.compile(r":[0-9a-fA-F]{0,4}:")
_IP6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:]|\.\w)")
"""Global unicast addresses are 2000::/3, the rest is local, multicast or reserved."""
_BEFORE_VERSION = re.compile(
    r"(?:[<>~^]|[<>=~^!]=|(?:\b|_)(?:v|ver|vers|version|versions|release|revision|rev|build|oid|section|"
    r"update|upgrade|since|chapter|sp|firmware)\W{0,3}|[A-Za-z0-9)]/|[@#§])[\s\"'(]*$",
    re.I,
)
# resolvers that every manual names, and the address that counts to four
_WELL_KNOWN = {
    *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"),
    *("2001:4860:4860::8888", "2001:4860:4860::8844", "2606:4700:4700::1111"),
    *("2606:4700:4700::1001", "2620:fe::fe", "1.2.3.4", "4.3.2.1", "5.6.7.8"),
}
_LAST_DIGITS = re.compile(r"\d{0,4}")
_DOCUMENTATION_6 = ipaddress.ip_network("3fff::/20")  # RFC 9637, newer than Python 3.12
_SMALL = 20


def _scrub_ips(text: str, notes: Counter[str]) -> str:
    text, found4 = _put(text, _ip4s(text), IP_ADDRESS)
    text, found6 = _put(text, _ip6s(text), IP_ADDRESS)
    if found4 or found6:
        notes["ips_scrubbed"] += found4 + found6
    return text


def _ip4s(text: str) -> Iterator[_Span]:
    for hint in _IP4_HINT.finditer(text):
        dot = hint.start()
        start = dot - len(_LAST_DIGITS.match(text[max(0, dot - 4) : dot][::-1])[0])  # type: ignore[index]
        match = _IP4.match(text, start)
        if match and _is_ip4(match):
            yield match.span()


def _is_ip4(match: re.Match[str]) -> bool:
    parts = match.groups()
    # numbers of versions and sections are small, those of networks end in 0 and name nobody
    if sum(int(p) < _SMALL for p in parts) >= 3 or int(parts[3]) == 0:
        return False
    before = match.string[max(0, match.start() - 24) : match.start()]
    if not before.endswith("//") and _BEFORE_VERSION.search(before):
        return False
    return _is_public(match[0])


def _ip6s(text: str) -> Iterator[_Span]:
    for hint in _IP6_HINT.finditer(text):
        match = _IP6.match(text, max(0, hint.start() - 4))
        if match and _is_public(match[0]):
            yield match.span()


def _is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or str(ip) in _WELL_KNOWN:
        return False
    return not (ip.version == 6 and ip in _DOCUMENTATION_6)


def _put(text: str, spans: Iterable[_Span], placeholder: str) -> tuple[str, int]:
    """Return the text with a placeholder for each span, and their number; overlaps count once."""
    parts: list[str] = []
    done = 0
    for start, end in spans:
        if start >= done:
            parts += (text[done:start], placeholder)
            done = end
    return ("".join((*parts, text[done:])), len(parts) // 2) if parts else (text, 0)
