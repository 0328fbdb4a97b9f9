"""Public IP addresses of documents.

Four numbers are a version, a section, an object identifier or a metre of a hymn far more often than
an address. So the surroundings must say that they are one: their syntax (a URL, a port, the line of
a hosts file), a word, another address, or numbers that hardly anything else has.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

Span = tuple[int, int]

# a search for a literal is thirty times as fast as one for digits, so the first dot or colon leads
_IP4_HINT = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d")
_IP4 = re.compile(r"(?<![\w.+-])(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?![\w+]|\.\w|-\w)")
_IP6_HINT = re.compile(r":[0-9a-fA-F]{0,4}:")
_IP6 = re.compile(r"(?<![\w:.-])[23][0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:]|\.\w)")
"""Global unicast addresses are 2000::/3, the rest is local, multicast or reserved."""
# resolvers that every manual names, and the address that counts to four
_WELL_KNOWN = {
    *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"),
    *("2001:4860:4860::8888", "2001:4860:4860::8844", "2606:4700:4700::1111"),
    *("2606:4700:4700::1001", "2620:fe::fe", "1.2.3.4", "4.3.2.1", "5.6.7.8"),
}
_LAST_DIGITS = re.compile(r"\d{0,4}")
_DOCUMENTATION_6 = ipaddress.ip_network("3fff::/20")  # RFC 9637, newer than Python 3.12

_PLACEHOLDER = "<IP_ADDRESS>"
_SMALL = 20
_LARGE = 100
"""Versions and sections hardly reach it, half of all addresses' numbers do."""
_LINE_CHARS, _AFTER_CHARS, _LIST_CHARS = 80, 40, 200
"""How far the surroundings reach: before on the line, after, and over lines in a list."""

# right before the numbers
_BEFORE_NUMBERING = re.compile(
    r"(?:[<>~^]|[<>=~^!]=|(?:\b|_)(?:v|ver|vers|version|versions|release|revision|rev|build|oid|section|"
    r"sect?|update|upgrade|since|until|chapter|clause|table|figure|sp|firmware)\W{0,3}|[A-Za-z0-9)]/"
    r"|[@#§])[\s\"'(]*$",
    re.I,
)
# somewhere before them on the line
_NUMBERING = re.compile(
    r"version|assembly|firmware|\boids?\b|object.?id|\bsect?\b|section|chapter|\brfc|\bjls\b|§|release"
    r"|revision|changelog|\bbuild|\bsvg|\bpath\b.*\bd=|viewbox|\bieee|\biec\b|\biso\b|specification"
    r"|\$id:|driver|player|user.?agent|mozilla",
    re.I,
)
_IN_URL = re.compile(r"//(?:[^\s/]*@)?$")
# NAME@ is the account of a login, or the name of a package (with versions of three numbers, mostly)
_ACCOUNT = re.compile(r"[\w$}.+-]@$")
_LOGIN = re.compile(
    r"\b(?:(?:dig|drill|kdig|delv)\b[^|;]*\s|sips?:[^\s@]+"
    r"|(?:ssh|autossh|sshpass|sshfs|ssh-copy-id|scp|sftp|rsync|mosh|git clone)\s[^|;]*)@$"
    r"|(?<![\w./-])(?:root|admin|administrator|ubuntu|ec2-user|azureuser|opc|pi|deploy|www-data)@$",
    re.I,
)
_LOGIN_AFTER = re.compile(r":[~/]|:[\w.-]+/|:[1-9]\d{1,4}\b|'s password")
_PORT_OR_HOST_MASK = re.compile(r"\]?:[1-9]\d{1,4}\b|/32\b")
_HOSTS_LINE = re.compile(r"[ \t]+(?:[a-z][\w-]*\.)+[a-z]{2,}\b|[ \t]+localhost\b")
_START_OF_LINE = re.compile(r"[\s#*>]*$")
_HEADING = re.compile(r"(?:\.?\s|&nbsp;|<tt>|</\w+>\s*)+\"?[A-Z0-9][A-Za-z]")
_STRONG = re.compile(
    # ip, IP and Ip as a word of a sentence or of a name: client-ip, publicIp, ip_src, IPAddress
    r"(?<![A-Za-z])ips?(?:v?4)?(?![a-z])|(?<![A-Z])IP(?:v?4)?s?(?![A-Z]{2}|[a-z]{2})|[a-z]Ips?(?![a-z])"
    r"|(?i:host|addr|ping\b|\bbind|listen|netmask|name.?server|gateway|\bdns|traceroute|whois|\binet"
    r"|servers\b|\bssh\b|\bscp\b|telnet|nslookup|\bdig\b|route\b|resolver|broadcast|received:|\bcidr|record_a\b"
    r"|\bIN\s+A\s*$)"
)
_WEAK = re.compile(
    r"server|client|remote|\bpeer|connect|network|subnet|proxy|relay|socket|endpoint|\bsrc|\bdst|\bdest"
    r"|source|\bvia\b|\bfrom\b|\bto\b|\bnode|lookup|curl|wget|nmap|firewall|allow|deny|\bban|white.?list"
    r"|black.?list|block|\bhop|\bvpn|\btcp|\budp|http|\bftp|smtp|\bmx\b|spf|upstream|backend|login|sender"
    r"|helo|\bA\s*$|domain|\bany\b|query|mail|interface|\beth\d|range|trusted",
    re.I,
)
_STRONG_AFTER = re.compile(r"^\W{0,4}(?:port|netmask|dev|via|gateway|host|address|server)\b", re.I)
_OTHER_ADDRESS = re.compile(
    r"(?<![\w.])(?:(?:10|127|169\.254|192\.168|172\.(?:1[6-9]|2\d|3[01])|198\.51|203\.0|255\.255)"
    r"(?:\.\d{1,3}){2,3}|8\.8\.[48]\.[48]|0\.0\.0\.0)(?![\w.])|(?<![\w:])(?:::1|[23f][\da-f]{3}:[\da-f:]*::?[\da-f]+)\b"
)


def ip_addresses(text: str) -> Iterator[Span]:
    """Yield the places of public addresses, first those of version 4."""
    last = -_LIST_CHARS
    for hint in _IP4_HINT.finditer(text):
        dot = hint.start()
        start = dot - len(_LAST_DIGITS.match(text[max(0, dot - 4) : dot][::-1])[0])  # type: ignore[index]
        match = _IP4.match(text, start)
        if match and _is_public(match[0]) and _is_host(match, start - last < _LIST_CHARS):
            last = match.end()
            yield match.span()
    for hint in _IP6_HINT.finditer(text):
        match = _IP6.match(text, max(0, hint.start() - 4))
        if match and _is_public(match[0]):
            yield match.span()


def _is_host(match: re.Match[str], follows_another: bool) -> bool:
    """Tell whether four numbers are the address of a host, by themselves and their surroundings."""
    numbers = [int(part) for part in match.groups()]
    text, (start, end) = match.string, match.span()
    is_behind_at = text.startswith("@", start - 1) and start > 0
    # numbers of versions and sections are small, those of networks end in 0 and name nobody
    if (sum(n < _SMALL for n in numbers) >= 3 and not is_behind_at) or numbers[3] == 0:
        return False
    line = text.rfind("\n", max(0, start - _LINE_CHARS), start) + 1 or max(0, start - _LINE_CHARS)
    before = text[line:start].replace(_PLACEHOLDER, "")
    after = text[end : end + _AFTER_CHARS].partition("\n")[0]
    if _IN_URL.search(before):
        return True
    if is_behind_at:
        return _is_of_login(numbers, before, after)
    if _BEFORE_NUMBERING.search(before) or _NUMBERING.search(before):
        return False
    starts_line = _START_OF_LINE.match(before) is not None
    if _PORT_OR_HOST_MASK.match(after) or (starts_line and _HOSTS_LINE.match(after)):
        return True
    num_large = sum(n >= _LARGE for n in numbers)
    is_heading = not num_large and (starts_line or before.endswith(">"))
    if after.startswith(".in-addr") or (is_heading and _HEADING.match(after)):
        return False
    # object identifiers start with 0, 1 or 2
    may_be_named = num_large > 0 and numbers[0] > 2 and len(set(numbers)) > 1
    if _STRONG.search(before) or _STRONG_AFTER.match(after):
        return may_be_named or numbers[0] > 2
    if not may_be_named:
        return False
    earlier = text[max(0, start - _LIST_CHARS) : start]
    follows_another = follows_another or _PLACEHOLDER in earlier
    around = (earlier + " " + text[end : end + _LIST_CHARS]).replace(_PLACEHOLDER, "")
    return (
        (num_large > 2 and len(set(numbers)) > 2)
        or follows_another
        or _WEAK.search(before) is not None
        or _OTHER_ADDRESS.search(around) is not None
        or _STRONG.search(around) is not None
    )


def _is_of_login(numbers: list[int], before: str, after: str) -> bool:
    """Tell whether the numbers behind an @ are a host, and not the version of a package."""
    if _LOGIN.search(before):
        return len(set(numbers)) > 1
    if numbers[0] <= 2 or not _ACCOUNT.search(before):
        return False
    num_large = sum(n >= _LARGE for n in numbers)
    return num_large > 1 or (num_large > 0 and _LOGIN_AFTER.match(after) is not None)


def _is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or str(ip) in _WELL_KNOWN:
        return False
    # what ends in 0, mostly in ::, is a network and names nobody
    return ip.version == 4 or (ip not in _DOCUMENTATION_6 and int(ip) % (1 << 16) != 0)
