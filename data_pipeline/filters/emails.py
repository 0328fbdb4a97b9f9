"""E-mail addresses of documents that may be somebody's.

Much that has the form `a@b.c` is none: products of matrices, decorators, logins (`git@host:path`,
`https://user:password@host`), names of algorithms (`chacha20-poly1305@openssh.com`), ids of
messages, and what manuals and tests write for somebody (`user@example.com`, `foo@bar.com`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

_DOMAIN = re.compile(
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+)([A-Za-z]{2,14}?)(?:(?=E<gt>)|(?![\w-]))"
)
_OPENS, _CLOSES = ("<", "&lt;", "E<lt>"), (">", "&gt;", "E<gt>")
"""Around an address in text, in HTML and in Pod; in between every top-level domain is one."""
# roff writes \- for a hyphen
_LOCAL_REVERSED = re.compile(r"(?:-\\|[\w.%+-]){1,64}")
_TOP_NAMES = (
    "com org net edu gov mil int info biz name pro mobi jobs app dev tech cloud online site store "
    "xyz email academy science systems software solutions company group team world network agency "
    "berlin hamburg london paris wien swiss asia africa tokyo cat museum coop aero"
)
_TOP = frozenset(_TOP_NAMES.split())
_COUNTRY_NAMES = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs "
    "bt bv bw by bz ca cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee "
    "eg er es et eu fi fj fk fm fo fr ga gb gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk "
    "hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la "
    "lb lc li lk lr ls lt lu lv ly ma mc me mg mh mk mn mo mp mq mr ms mu mv mw mx my mz na nc ne "
    "nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pn pr pt pw qa re ro rs ru rw sa sb sc sd "
    "se sg si sj sk sl sm sn sr st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz "
    "ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw"
)
# without those that end names of files first of all, which count within angle brackets
_COUNTRIES = frozenset(_COUNTRY_NAMES.split())
_ENDINGS = (
    "png jpg jpeg gif svg webp css scss js mjs ts tsx jsx html htm json yaml yml xml txt zip tar "
    "gz service timer target socket mount device slice scope"
)
_NOT_TOP = frozenset(_ENDINGS.split())
"""What no address ends in, even within angle brackets: names of files, units of systemd."""
_MEMBER_NAMES = "name id info email app jobs group team network store online"
_MEMBERS = frozenset(_MEMBER_NAMES.split())
"""Names of domains that are names of attributes first: row@item.name."""

_EXAMPLES = re.compile(
    r"(?:^|\.)(?:[\w-]*example\.[a-z]+|(?:examples?|exemple|domain|mycorp|company|acme|contoso|foo|bar|baz|foobar|test|tests"
    r"|host|hostname|somewhere|nowhere|none|evil|abc|xyz|email|nospam|your-?\w*|my-?(?:domain|company|site|host)"
    r"|some-?(?:domain|company|site|host|where)|[a-z0-9])"
    r"\.(?:com|org|net|edu|co\.\w\w)|[\w-]+\.(?:example|test|tld|invalid|localhost|local|localdomain|internal|lan|addr))\.?$"
)
_NOBODY = {
    *("git", "hg", "svn", "cvs", "ssh", "noreply", "no-reply", "donotreply", "do-not-reply"),
    *("keepalive", "keep-alive"),  # of SSH
    *("nobody", "this", "self", "super", "return", "break", "continue", "it", "user", "username"),
    *("root", "you", "your.name", "yourname", "your-email", "youremail", "email", "name", "foo"),
    *("bar", "baz", "someone", "somebody", "test", "xxx", "joe.user", "john.doe"),
    *("jane.doe", "johndoe", "janedoe", "your-name", "your_name", "your_email", "your-account"),
}
_LOGINS = {"git", "hg", "svn", "cvs", "ssh"}
"""Accounts of servers, but mailboxes of people whose address is within angle brackets."""
_HOSTS_OF_CODE = re.compile(r"(?:^|\.)(?:github|gitlab|bitbucket|codeberg)\.\w+$")
# protocols of SSH are named name@domain
_ALGORITHMS = re.compile(
    r"(?:^|\.)(?:openssh\.com|libssh\.org|lysator\.liu\.se|putty\.projects\.tartarus\.org)$"
)
_ALGORITHM = re.compile(
    r"(?:ssh|sk|sha\d|hmac|umac|ecdsa|cert|gcm|poly1305|chacha20|aes|rijndael|curve25519|zlib|kex|etm"
    r"|delay|hostkeys|statvfs|rename|limits|keepalive|eow|auth-agent|tun|streamlocal|sntrup"
    r"|\bv0\d$|^(?:fsync|hardlink|lsetstat|expand-path|copy-data|home-directory|ping|winadj|simple"
    r"|no-more-sessions|session-bind|restrict-destination|users-groups-by-id)$)"
)
_LOGIN_BEFORE = re.compile(
    r"[a-z][a-z+.\d-]*://[^\s/@\"'<>]*$|\b(?:ssh|scp|sftp|rsync)\b[^|;\n]*\s$|[$!~@%]$"
    r"|(?:message-id|in-reply-to|references):?\W*$",
    re.I,
)
_MAIL_TO = "mailto:"
_MAIL_BEFORE = re.compile(r"mail|author|contact|copyright|maint|support|\bby\b|<$|;$", re.I)
_PATH_AFTER = re.compile(r",\d|:(?:[~/.]|\d{2,5}\b|[\w.-]+/)|@")
_ESCAPE = re.compile(r"[nrtabfv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[0-7]{3}")
_CALLS = ("(", "[", "=")
_BEFORE_CHARS = 60


def email_addresses(text: str) -> Iterator[Span]:
    """Yield the places of addresses."""
    for match in _DOMAIN.finditer(text):
        start = _start(text, match)
        if start is not None:
            yield start, match.end()


def _start(text: str, match: re.Match[str]) -> int | None:
    """Return where the address that contains this domain begins, or None if it is none."""
    top = match[2].lower()
    domain = match[1].lower() + top
    is_closed = text.startswith(_CLOSES, match.end())
    if not _may_be_top(match[2], top, is_closed) or _EXAMPLES.search(domain):
        return None
    # a call or an index follows an attribute: a@b.me(), x@w.at[0]; a path or a port follows a host
    after = text[match.end() : match.end() + _BEFORE_CHARS]
    if after.startswith(_CALLS) or _PATH_AFTER.match(after):
        return None
    # the local part ends at the sign, so it is matched backwards
    at = match.start()
    local = _LOCAL_REVERSED.match(text[max(0, at - 64) : at][::-1])
    if not local:
        return None
    start = at - local.end()
    # the letter of an escape sequence is no part of a name: "\\nada@..."
    escape = _ESCAPE.match(text, start) if text[max(0, start - 1) : start] == "\\" else None
    start = min(escape.end(), at) if escape else start
    name = text[start:at]
    start += len(name) - len(name.lstrip(".-+"))
    name = text[start:at].lower()
    if not any(map(str.isalnum, name)) or name[-1] == "." or name[0] == "%" or ".." in name:
        return None
    is_enclosed = is_closed and text.endswith(_OPENS, 0, start)
    if not is_enclosed and top not in _TOP and top not in _COUNTRIES:
        return None
    is_mailbox = is_enclosed and name in _LOGINS and not _HOSTS_OF_CODE.search(domain)
    if name.rstrip("0123456789") in _NOBODY and not is_mailbox:
        return None
    if _ALGORITHMS.search(domain) and _ALGORITHM.search(name):
        return None
    before = text[max(0, start - _BEFORE_CHARS) : start]
    before = before[before.rfind("\n") + 1 :].replace("<EMAIL>", "")
    if _LOGIN_BEFORE.search(before) and not before.lower().endswith(_MAIL_TO):
        return None
    if top in _MEMBERS and match[1].count(".") == 1 and not _MAIL_BEFORE.search(before):
        return None
    # a product of matrices: a@b.de
    return None if len(name) <= 2 and len(top) == 2 and len(domain) <= 4 else start


def _may_be_top(written: str, top: str, is_closed: bool) -> bool:
    if not (written.islower() or written.isupper()):
        return written.istitle() and top in ("com", "org", "net", "edu")
    return top in _COUNTRIES or top in _TOP or (is_closed and top not in _NOT_TOP)
