"""Scrubbing: what must go, and what looks like it and must stay."""

from __future__ import annotations

import random
import string
from collections import Counter
from typing import Any

import pytest

from data_pipeline.filters import FilterConfig, keys
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
        "ciphers aes128-gcm@openssh.com, sk-ssh-ed25519-cert-v01@openssh.com, kex@libssh.org",
        "https://ada:s3cret@lovelace.org/x ssh ada@lovelace.org scp a ada@lovelace.org:/tmp",
        "Message-ID: <20031209.ab12@mail.lovelace.org>",
        "$user@lovelace.org %s@lovelace.org {&lt;ada@lovelace.org,5,0&gt;}",
        "me@somewhere.com your-account@your-isp.com test1@lovelace.org a..b@lovelace.org",
        '<tr id="row@item.name"> C = A@B.it',
        'kex = f"kex-strict-{side}-v00@openssh.com" m.add_string("keepalive@lovelace.org")',
        "fsync@openssh.com ping@openssh.com winadj@putty.projects.tartarus.org",
        "ada@lovelace.bike <icon@2x.png> <getty@tty1.service> Ada <ada@lovelace.lan>",
        "ssh -T <git@github.com> git@lovelace.org Ada <noreply@lovelace.org>",
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
    forms = ["host {}.", "ip = '{}'", "bind({})", "ping -c 3 {}\nb", "servers:\n  - {}\n"]
    forms += ["http://{}/x", "{}:8080"] if "." in address else ["http://[{}]/x", "{}/64", "{}"]
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
        '[assembly: AssemblyVersion("4.22.35.21")]',
        '[assembly: AssemblyFileVersion("11.202.235.21")] <Version>11.26.23.77</Version>',
        "version=4.22.35.21 v4.22.35.21 firmware: 93.184.216.34",
        "3.29.20.1 3D key\n<h4>13.29.24.31 Preformatted Text</h4>\nSee section 13.29.24.31.",
        'Ed25519("1.3.101.112"), "2.5.29.31": "cRLDistributionPoints"',
        "a hymn with a meter of 87.87.87.87 (or 76.76.77.86)",
        '<path d="M4.48,12.4.84.32,2.79-.46,5.76-3.59"/>',
        "the server was built with driver 23.121.13.88, the client with player 11.202.235.21",
        "OTP\n21.3.8.23 (ERTS version 10.3.5.18).",
        "=ERROR REPORT==== 9-Dec-2003::13:25:02 ===",
        "the networks 2a00:1450::/32 and 2a00:1450::0:0/80",
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
ISSUED = "eyJzdWIiOiI3IiwiaWF0IjoxNzAwMDAwMDAwfQ"  # {"sub":"7","iat":1700000000}
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
    jwt = ".".join(("eyJhbGciOiJIUzI1NiJ9", ISSUED, token(rng, 43, MIXED)))
    assert scrubbed(f"t='{jwt}'") == ("t='<KEY>'", {"secrets_scrubbed": 1})
    undated = jwt.replace(ISSUED, "eyJzb21lIjoicGF5bG9hZCJ9")
    assert scrubbed(undated) == (undated, {}), "it was issued to nobody"
    pat = f"github_pat_{token(rng, 22, MIXED)}_{token(rng, 59, MIXED)}"
    assert scrubbed(pat)[0] == "<KEY>"
    value = token(rng, 40, MIXED)
    for name in ("aws_secret_access_key = ", "AWS_SECRET_ACCESS_KEY=", '"SecretAccessKey": "'):
        assert scrubbed(name + value) == (f"{name}<KEY>", {"secrets_scrubbed": 1})
    manual = "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    assert scrubbed(manual) == (manual, {})
    sha1 = "commit 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
    assert scrubbed(sha1) == (sha1, {})


def test_every_kind_of_token_is_looked_for(rng: random.Random) -> None:
    rests = {
        "xox": f"12345678-{token(rng, 12, MIXED)}",
        "xapp-": f"1-A1-12-{token(rng, 32, 'abcdef123456')}",
        "hooks.": f"T12345678/B12345678/{token(rng, 24, MIXED)}",
        "SG.": f"{token(rng, 22, MIXED)}.{token(rng, 43, MIXED)}",
        "eyJ": f"hbGciOiJIUzI1NiJ9.{ISSUED}.{token(rng, 43, MIXED)}",
        "github_pat_": f"{token(rng, 22, MIXED)}_{token(rng, 59, MIXED)}",
        "AKIA": token(rng, 16, UPPER),
        "ASIA": token(rng, 16, UPPER),
        "AIza": token(rng, 35, MIXED),
        "npm_": token(rng, 36, MIXED),
        "hf_": token(rng, 34, MIXED),
        "GOCSPX-": token(rng, 28, MIXED),
    }
    for start in keys._TOKENS:
        rest = next((r for s, r in rests.items() if start.startswith(s)), token(rng, 50, MIXED))
        text = f"- _x. IJ {start}{rest} -"
        assert any([*kind(text)] for kind in keys.kinds_in(text)), text
        assert len(keys.kinds_in(text.replace(start, start[:-1]))) < len(keys.kinds_in(text))


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'\\nada@lovelace.org'", "'\\n<EMAIL>'"),
        ("Ada <mh+ada\\-list@lovelace.org>", "Ada <<EMAIL>>"),
        ("Ada <ada@lovelace.cc>", "Ada <<EMAIL>>"),
        ("Ada <ada@lovelace.bike>", "Ada <<EMAIL>>"),
        ("Ada &lt;ada@lovelace.museum&gt;", "Ada &lt;<EMAIL>&gt;"),
        ("Ada E<lt>ada@lovelace.co.ukE<gt>", "Ada E<lt><EMAIL>E<gt>"),
        (
            "L<mailto:ada@lovelace.org>, Ada E<lt>ada@lovelace.expertE<gt>",
            "L<mailto:<EMAIL>>, Ada E<lt><EMAIL>E<gt>",
        ),
        ("author Ada <git@lovelace.org>", "author Ada <<EMAIL>>"),
        ("ada@lovelace.cat", "<EMAIL>"),
        ("ada@Lovelace.Org wrote", "<EMAIL> wrote"),
    ],
)
def test_whole_addresses_go(text: str, expected: str) -> None:
    assert scrubbed(text)[0] == expected


@pytest.mark.parametrize(
    "line",
    [
        "{} www.lovelace.org lovelace",
        "ifconfig eth0 {} netmask 255.255.255.0",
        "Received: from a.lovelace.org (a.lovelace.org [{}])",
        'client.publicIp = "{}";',
        "route add {} via 10.0.0.1",
        "www.lovelace.org. 7200 IN A {}",
        "Permanently added 'lovelace.org,{}' (RSA) to the list of known hosts.",
    ],
)
def test_surroundings_make_an_address(line: str) -> None:
    assert scrubbed(line.format("5.9.141.202"))[0] == line.format("<IP_ADDRESS>")


@pytest.mark.parametrize("address", ["5.9.141.202", "54.12.9.7", "185.199.108.153"])
@pytest.mark.parametrize(
    "line",
    [
        "ssh user@{}",
        "ssh -i key.pem ec2-user@{} -p 2200",
        "scp x user@{}:",
        "rsync -av build/ x@{}:/srv/release",
        "sftp bob@{}",
        "dig @{} lovelace.org",
        'prod_host="root@{}"',
        "git clone git@{}:x.git",
        "<sip:bob@{}:5060>",
        "mongodb://guest:p@ss@{}:27017/x",
    ],
)
def test_behind_a_login_is_an_address(line: str, address: str) -> None:
    assert scrubbed(line.format(address))[0] == line.format("<IP_ADDRESS>") or (
        "//" in line and address == "54.12.9.7"  # made up, for all that a URL says
    )


@pytest.mark.parametrize(
    "line",
    ["ping {}", "curl {}:8080/x", "curl -s {}/x", "nslookup {}", "nslookup lovelace.org {}",
     "wget {}/a.tar.gz", "mysql -h {}", "telnet {} 25", "grader@{} -p 22", "jenkins@{}:/usr"],
)  # fmt: skip
def test_commands_name_an_address(line: str) -> None:
    assert scrubbed(line.format("85.214.132.117"))[0] == line.format("<IP_ADDRESS>")


@pytest.mark.parametrize(
    "line",
    [
        "npm i foo@4.22.35.21 chrome@116.0.58.96 ssh2@11.202.35.21",
        "brew install mysql@8.0.33.1",
        "electron@13.121.13.88: 23 files",
        "https://unpkg.com/foo@13.121.13.88/dist/x.js",
        "pkg:maven/foo@23.121.13.88",
        "Aspire.Hosting.Redis@13.5.3.200 @23.121.13.88",
        "ssh user@192.168.1.73 root@1.2.3.4 root@2.2.2.2",
    ],
)
def test_versions_behind_a_name_stay(line: str) -> None:
    assert scrubbed(line) == (line, {})


def test_addresses_of_a_list_go() -> None:
    lines = "".join(f"5.9.141.{n}\n" for n in range(200, 240))
    text, notes = scrubbed("# nameservers\n" + lines)
    assert text == "# nameservers\n" + "<IP_ADDRESS>\n" * 40
    assert notes == {"ips_scrubbed": 40}


def test_digests_and_made_up_keys_stay() -> None:
    sha1 = 'secret_key = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"'
    lines = "X" * 64 + "\n"
    pem = f"-----BEGIN RSA PRIVATE KEY-----\n{lines * 12}-----END RSA PRIVATE KEY-----\n"
    for text in (sha1, pem, "id = 'sk-123e4567-e89b-12d3-a456-426614174000'"):
        assert scrubbed(text) == (text, {})
