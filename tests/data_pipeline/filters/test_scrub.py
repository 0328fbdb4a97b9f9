"""Scrubbing: what must go, and what looks like it and must stay."""

from __future__ import annotations

import random
import string
from collections import Counter
from typing import Any

import pytest

from data_pipeline.filters import FilterConfig
from data_pipeline.filters.scrub import scrub


def scrubbed(text: str, **rules: Any) -> tuple[str, dict[str, int]]:
    notes: Counter[str] = Counter()
    result = scrub(text, FilterConfig(**rules), notes)
    assert scrub(result, FilterConfig(**rules), Counter()) == result, "a second pass changed it"
    return result, dict(notes)


@pytest.mark.parametrize(
    "address",
    [
        "ada@lovelace.org",
        "Ada.King+loops@mail.analytical-engine.co.uk",
        "jörg@uni-koeln.de",
        "a_b%c@x.io",
        "ADA@LOVELACE.ORG",
        "12345@bugs.debian.org",
    ],
)
def test_emails_go(address: str) -> None:
    for form in ("{}", "by <{}>,", "mailto:{}.", '"{}"', "a {}\nb", "({})", "x:{}"):
        text, notes = scrubbed(form.format(address))
        assert text == form.format("<EMAIL>")
        assert notes == {"emails_scrubbed": 1}
    assert scrubbed(address, scrub_emails=False) == (address, {})


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com me@mail.example.org x@company.com you@host.test root@localhost",
        "git clone git@github.com:a/b.git",
        "noreply@github.com",
        "@pytest.fixture\ndef f(): ...",
        "y = x@w.T + a@b.to(device) + z@w.at[0] + u@v.mT",
        "npm install left-pad@1.2.3 @babel/core@7.1.0",
        "icon@2x.png user@host.service a@b.py",
        "return@forEach.it this@Main.name",
        "@ @@ a@ @b a@b a@.com",
        "https://medium.com/@user.name",
        "<EMAIL>",
    ],
)
def test_no_emails(text: str) -> None:
    assert scrubbed(text) == (text, {})


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "5.9.141.202", "185.199.108.153", "2a00:1450:4001:82b::200e",
     "2606:2800:220:1:248:1893:25c8:1946"],
)  # fmt: skip
def test_public_addresses_go(address: str) -> None:
    forms = ["{}", "host {}.", "ip = '{}'", "({})", "a\n{}\nb"]
    forms += ["http://{}/x", "{}:8080"] if "." in address else ["http://[{}]/x", "{}/64"]
    for form in forms:
        text, notes = scrubbed(form.format(address))
        assert text == form.format("<IP_ADDRESS>")
        assert notes == {"ips_scrubbed": 1}
    assert scrubbed(address, scrub_ips=False) == (address, {})


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1 0.0.0.0 255.255.255.0 10.1.2.3 192.168.1.44 172.16.99.1 169.254.169.254",
        "192.0.2.33 198.51.100.77 203.0.113.99 224.0.0.251 8.8.8.8 1.1.1.1",
        "version 5.10.104.93, v4.19.208.77, release-3.40.61.99, ==2.31.44.55, >= 6.7.88.99",
        'Chrome/89.0.43.82 AssemblyVersion("6.2.31.0") 1.2.3.4 section 2.13.4.1',
        "| nvidia-cufft | 12.0.0.61 | ('7.1.4.34', 8.2.4.44)",
        "1.3.6.1.4.1.311 93.184.216.345 93.184.216.34.55 a93.184.216.34 93.184.216.34b",
        "::1 fe80::1 2001:db8::8a2e:370:7334 3fff::1 fc00::99 ff02::1 2001:4860:4860::8888",
        "std::vector<a::b> x; d::cafe; 2023:04:05 12:34:56 2023:04:05:06:07:08 2001::std",
        "mac 20:11:22:33:44:55 and 2001:2002:2003 in a slice",
        "<IP_ADDRESS>",
    ],
)
def test_no_public_addresses(text: str) -> None:
    assert scrubbed(text) == (text, {})


def token(rng: random.Random, num_chars: int, alphabet: str) -> str:
    """Random characters, with a digit among them."""
    chars = [rng.choice(alphabet) for _ in range(num_chars - 1)]
    return "".join(chars[:5]) + "7" + "".join(chars[5:])


MIXED = string.ascii_letters + "123456789"
UPPER = string.ascii_uppercase + "23456789"


@pytest.mark.parametrize(
    "form",
    [
        ("AKIA", 16, UPPER),
        ("ghp_", 36, MIXED),
        ("gho_", 36, MIXED),
        ("glpat-", 20, MIXED),
        ("AIza", 35, MIXED + "-_"),
        ("sk-", 48, MIXED),
        ("sk-proj-", 64, MIXED + "-_"),
        ("sk-ant-api03-", 90, MIXED + "-_"),
        ("xoxb-123456789012-1234567890123-", 24, MIXED),
        ("npm_", 36, MIXED),
        ("hf_", 34, MIXED),
        ("sk_live_", 24, MIXED),
        ("hooks.slack.com/services/T02ABCDEF/B03ABCDEFGH/", 24, MIXED),
    ],
)
def test_secrets_go(rng: random.Random, form: tuple[str, int, str]) -> None:
    start, length, alphabet = form
    secret = (
        start
        + token(rng, length - 1, alphabet)
        + "a" * (alphabet != UPPER)
        + "Q" * (alphabet == UPPER)
    )
    for around in ("{}", "key = '{}'", "export KEY={}\n", "Bearer {}"):
        text, notes = scrubbed(around.format(secret))
        assert text == around.format("<KEY>")
        assert notes == {"secrets_scrubbed": 1}
    assert scrubbed(secret, scrub_secrets=False) == (secret, {})
    assert scrubbed("x" + secret)[0] == "x" + secret or "services" in secret
    for made_up in (start + "x" * length, start + "EXAMPLE" + secret[len(start) + 7 :]):
        assert scrubbed(made_up) == (made_up, {})
    short = secret[: max(len(start) // 2, 4) + 6]
    assert scrubbed(short) == (short, {})


def test_more_secrets_go(rng: random.Random) -> None:
    jwt = ".".join(("eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0In0", token(rng, 43, MIXED)))
    assert scrubbed(f"t='{jwt}'") == ("t='<KEY>'", {"secrets_scrubbed": 1})
    pat = f"github_pat_{token(rng, 22, MIXED)}_{token(rng, 59, MIXED)}"
    assert scrubbed(pat)[0] == "<KEY>"
    value = token(rng, 40, MIXED)
    for name in ("aws_secret_access_key = ", "AWS_SECRET_ACCESS_KEY=", '"SecretAccessKey": "'):
        assert scrubbed(name + value) == (f"{name}<KEY>", {"secrets_scrubbed": 1})
    manual = "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    assert scrubbed(manual) == (manual, {})
    sha1 = "commit 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
    assert scrubbed(sha1) == (sha1, {})


@pytest.mark.parametrize("kind", ["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY"])
def test_private_keys_go(rng: random.Random, kind: str) -> None:
    lines = [token(rng, 64, MIXED + "+/") for _ in range(12)]
    if rng.random() < 0.5:
        lines[0], lines[-1] = "+" + lines[0][1:], lines[-1][:-1] + "+"
    plain = "\n".join((f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----\n"))
    text, notes = scrubbed(plain)
    assert text == f"-----BEGIN {kind}-----\n<KEY>\n-----END {kind}-----\n"
    assert notes == {"secrets_scrubbed": 1}
    literal = "".join(f'"{line}\\n"\n' for line in plain.splitlines())
    assert scrubbed(literal)[0] == (
        f'"-----BEGIN {kind}-----\\n"\n"<KEY>\\n"\n"-----END {kind}-----\\n"\n'
    )
    joined = " +\n".join(f"'{line}\\n'" for line in plain.splitlines())
    assert scrubbed(joined)[0] == (
        f"'-----BEGIN {kind}-----\\n' +\n'<KEY>\\n' +\n'-----END {kind}-----\\n'"
    )
    public = plain.replace(kind, "PUBLIC KEY")
    assert scrubbed(public) == (public, {})
    shape = f"-----BEGIN {kind}-----\n{'...' * 30}\n-----END {kind}-----\n"
    assert scrubbed(shape) == (shape, {})


def test_several_in_one_document() -> None:
    text = "ada@lovelace.org, alan@turing.uk: 93.184.216.34, 93.184.216.35\n" * 3
    result, notes = scrubbed(text)
    assert result == "<EMAIL>, <EMAIL>: <IP_ADDRESS>, <IP_ADDRESS>\n" * 3
    assert notes == {"emails_scrubbed": 6, "ips_scrubbed": 6}
