"""Values for the parameters of a tool, drawn by their type and by what their name says."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from data_pipeline.tools.chat_set.tool import Parameter, words

_FIRST = """
amber atlas autumn billing blue cedar copper coral delta eastern ember falcon field garden
granite green harbor indigo inner juniper lake lemon maple meadow mercury metro north nova ocean
olive orbit outer pearl pine polar prairie quartz quiet rapid raven river ruby saffron silver
solar south spring stone summer tango tidal topaz umber upper valley velvet violet western
willow winter yellow zephyr zinc
"""
_SECOND = """
analytics archive backup cache catalog checkout cluster console content dashboard docs export
feed fleet frontend gateway images index ingest inventory invoices journal ledger lookup mail
metrics mobile monitor notes orders panel parser payments photos pipeline portal profile queue
records registry reports scanner search sensors service sessions shop signals snapshot staging
stats store stream survey sync tickets tracker training users vault weather website worker
"""
_PEOPLE = """
amara ben carla diego elena farid grace hana ivan jonas keiko lars mina noor olga pavel quinn
rosa samir tessa umar vera wanda xavier yusuf zoe
"""
_TEXTS = (
    "The meeting moves to Thursday at ten.", "Please review the attached figures.",
    "All checks passed on the second attempt.", "Our shop opens again in March.",
    "The pump on line four needs a new seal.", "Rain is expected in the afternoon.",
    "Backup of the old database before the upgrade.", "Thank you for your patience.",
    "First draft, not for publication.", "The quick brown fox jumps over the lazy dog.",
    "Readings from the sensors in building C.", "Used by the night shift only.",
    "Temporary copy for the load test.", "Deliveries are late because of the snow.",
    "Version for customers in Canada.", "Keep this until the audit is over.",
)  # fmt: skip
_ENDINGS = ("csv", "json", "txt", "log", "md", "yaml", "xml", "parquet", "tar.gz", "html")
_REGIONS = ("us-east-1", "us-west-2", "eu-central-1", "eu-west-3", "ap-south-1", "sa-east-1")
_LANGUAGES = ("en", "de", "fr", "es", "ja", "pt", "it", "nl", "pl", "sv")

_WHOLE = (
    (r"port$", 1024, 65535), (r"year", 1950, 2030), (r"month", 1, 12), (r"^day|days?$", 1, 30),
    (r"hour", 1, 23), (r"axis|dim$", 0, 2), (r"timeout|seconds|interval", 5, 900),
    (r"seed|random state", 0, 9999), (r"width|height|resolution", 64, 2048),
    (r"decimals?|digits?|precision|ndim|degree|order|level|depth", 1, 9),
    (r"percent", 1, 99), (r"bytes|memory", 256, 65536),
)  # fmt: skip
"""By pattern of the name in words: the least and the most."""


def _one(names: str, rng: random.Random) -> str:
    return rng.choice(names.split())


def slug(rng: random.Random) -> str:
    """Return a name such as people give to projects and resources."""
    name = f"{_one(_FIRST, rng)}{rng.choice('--_')}{_one(_SECOND, rng)}"
    return f"{name}-{rng.randint(2, 40)}" if rng.random() < 0.25 else name


def value_of(parameter: Parameter, rng: random.Random) -> Any:
    """Return a value that fits the schema of a parameter and its name."""
    schema, name = parameter.schema, words(parameter.name)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema["type"] == "array":
        return _list(schema["items"]["type"], name, rng)
    return _plain(schema["type"], name, parameter, rng)


def _plain(kind: str, name: str, parameter: Parameter, rng: random.Random) -> Any:
    if kind == "boolean":
        return rng.random() < 0.7
    if kind == "integer":
        return _whole(name, parameter, rng)
    if kind == "number":
        if re.search(r"prob|alpha|ratio|fraction|tol|threshold|rate|^p$|^q$", name):
            return rng.choice((0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95))
        return round(rng.uniform(0.1, 60), rng.choice((1, 1, 2)))
    return _text(name, parameter.description.lower(), rng)


def _whole(name: str, parameter: Parameter, rng: random.Random) -> int:
    low, high = next(((a, b) for pattern, a, b in _WHOLE if re.search(pattern, name)), (1, 60))
    low = max(low, parameter.schema.get("minimum", low))
    most = parameter.schema.get("maximum", max(high, low))
    return rng.randint(min(low, most), max(min(low, most), min(max(high, low), most)))


def _list(kind: str, name: str, rng: random.Random) -> list[Any]:
    number = rng.randint(2, 5)
    if kind == "string":
        one = name.removesuffix("s") if not name.endswith("ss") else name
        return list(dict.fromkeys(_text(one, "", rng) for _ in range(number)))
    if kind == "boolean":
        return [rng.random() < 0.5 for _ in range(number)]
    if kind == "integer" or rng.random() < 0.5:
        return [rng.randint(0, 40) for _ in range(number)]
    return [round(rng.uniform(-9, 30), 1) for _ in range(number)]


def _date(rng: random.Random) -> str:
    return f"{rng.randint(2019, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _digits(number: int, rng: random.Random) -> str:
    return "".join(rng.choice("123456789") for _ in range(number))


def _hex(number: int, rng: random.Random) -> str:
    return "".join(rng.choice("0123456789abcdef") for _ in range(number))


def _path(name: str, rng: random.Random) -> str:
    folder = rng.choice(("data", "reports", "/var/log", "/srv/files", "out", "/home/mina", "docs"))
    stem = slug(rng)
    if re.search(r"dir|folder|directory|root|home", name):
        return f"{folder}/{stem}"
    ending = next((e for e in ("yaml", "json", "csv", "ttf") if e in name), rng.choice(_ENDINGS))
    return f"{folder}/{stem}.{'ttf' if 'font' in name else ending}"


def _identifier(name: str, rng: random.Random) -> str:
    of = re.sub(r"\b(id|identifier|unique|the)\b", "", name).split() or ["id"]
    return f"{of[-1].lower()}-{_hex(rng.choice((6, 8, 12)), rng)}"


def _text(name: str, told: str, rng: random.Random) -> str:
    """Return a text for what its name, in words, is about."""
    person = _one(_PEOPLE, rng)
    makers: tuple[tuple[str, Callable[[], str]], ...] = (
        (r"\barns?$", lambda: f"arn:aws:{_service(name)}:{rng.choice(_REGIONS)}:{_digits(12, rng)}"
                              f":{_kind(name)}/{slug(rng)}"),
        (r"account( id)?$", lambda: _digits(12, rng)),
        (r"e-?mail", lambda: f"{person}@example.{rng.choice(('com', 'org'))}"),
        (r"repo id$", lambda: f"{person}/{slug(rng)}"),
        (r"\bids?$|identifier$|hash$|handle$", lambda: _identifier(name, rng)),
        (r"country", lambda: rng.choice(("DE", "FR", "JP", "CA", "BR"))),
        (r"url|uri|endpoint|href|link", lambda: f"https://example.com/{slug(rng)}"),
        (r"cidr", lambda: f"10.{rng.randint(0, 250)}.{rng.randint(0, 250)}.0/24"),
        (r"\bip\b|address$", lambda: f"10.{rng.randint(0, 250)}.4.{rng.randint(2, 250)}"),
        (r"zone$", lambda: rng.choice(_REGIONS) + rng.choice("abc")),
        (r"region", lambda: rng.choice(_REGIONS)),
        (r"host|server|domain", lambda: f"{_one(_FIRST, rng)}.example.org"),
        (r"path|file|font$|dir$|directory|folder|^root$|put$", lambda: _path(name, rng)),
        (r"date|time|\bday\b|start$|end$|since|until|before|after", lambda: _date(rng)),
        (r"user|author|owner|person|alias|member|manager", lambda: person),
        (r"locale|lang", lambda: rng.choice(_LANGUAGES)),
        (r"version|release", lambda: f"{rng.randint(0, 9)}.{rng.randint(0, 20)}.0"),
        (r"branch|revision|\bref\b|\btag\b", lambda: rng.choice(("main", "develop", slug(rng)))),
        (r"encoding|charset", lambda: rng.choice(("utf-8", "latin-1", "ascii", "utf-16"))),
        (r"color|colour", lambda: f"#{_hex(6, rng)}"),
        (r"separator|delimiter|\bsep\b", lambda: rng.choice((",", ";", "|", ":"))),
        (r"pattern|regex|\bpat\b", lambda: rng.choice((r"\d{4}", "^error", "*.log", "test_.*"))),
        (r"currency", lambda: rng.choice(("EUR", "USD", "JPY", "CHF"))),
        (r"text|message|description|comment|content|query|prompt|string|\bs\b|note|reason|summary",
         lambda: rng.choice(_TEXTS)),
    )  # fmt: skip
    for pattern, make in makers:
        if re.search(pattern, name):
            return make()
    if re.search(r"\bpath\b|\bfile\b", told):
        return _path(name, rng)
    return slug(rng)


def _service(name: str) -> str:
    match = re.search(r"role|user|policy", name)
    return "iam" if match else next((w for w in ("topic", "queue") if w in name), "service")


def _kind(name: str) -> str:
    of = [word for word in name.lower().split() if word not in ("arn", "arns")]
    return of[-1] if of else "resource"


def spoken(value: Any, rng: random.Random) -> str:
    """Return a value as someone writes it in a request."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        parts = [spoken(one, rng) if isinstance(one, str) else str(one) for one in value]
        if rng.random() < 0.5 or len(parts) < 2:
            return f"[{', '.join(parts)}]"
        return f"{', '.join(parts[:-1])} and {parts[-1]}"
    if isinstance(value, str):
        if " " in value or not re.search(r"[\w/]$", value):
            return f'"{value}"'
        return rng.choice((value, f'"{value}"', f"`{value}`", value))
    return str(value)
