"""What must not be written down: passwords in URLs, values of variables that hold secrets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

_NAME = re.compile(
    r"(?:^|_|^PG)(?:KEY|KEY_ID|APIKEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?"
    r"|CONNECTION_STRING)$"
)
_OF_FSSPEC = re.compile(r"FSSPEC_[A-Z0-9]+")
"""Variables with the options of a protocol as JSON, secrets among them."""
_SHORTEST = 8
"""Characters from which on a value is looked for in texts: shorter ones are found by chance."""
_HIDDEN = "***"
_IN_URLS = [
    re.compile(
        r"(?P<shown>\w[\w+.-]*://[^\s/@:'\"]*:)(?!\d+[/,])(?P<secret>[^\s@'\"]+)(?=@(?!sha256:))"
    ),
    # a token in place of a user
    re.compile(r"(?P<shown>\bhttps?://)(?P<secret>[^\s/@:'\"]{16,})(?=@)"),
    re.compile(
        r"(?P<shown>[?&](?:x-amz-signature|x-amz-security-token|x-goog-signature|sig|signature|"
        r"token|access_token|api_key|password|secret)=)(?P<secret>[^\s&'\"]+)",
        re.IGNORECASE,
    ),
]
_ASSIGNED = re.compile(
    r"\b(?P<name>[A-Z][A-Z0-9_]*)="
    r"(?:(?P<quote>['\"])(?P<quoted>.+?)(?P=quote)|(?P<bare>[^\s'\";]+))"
)


_FLAG = re.compile(
    r"(?P<name>--(?:api[-_]?key|key|password|passwd|token|secret))[= ]"
    r"(?P<quote>['\"]?)(?P<value>[^\s'\";$`-][^\s'\";]*)",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Tell by its name whether a variable holds a secret: WANDB_API_KEY, AWS_SECRET_ACCESS_KEY."""
    return _NAME.search(name.upper()) is not None


def secret_names(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables that hold a secret, or a URL or options with one, sorted."""
    return sorted(name for name, value in environ.items() if _secrets_of(name, value))


def secret_values(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the secrets of an environment that can be told from other words, with the variable
    of each: of eight characters or more, not letters alone, and no path."""
    found = {v: name for name, value in environ.items() for v in _secrets_of(name, value)}
    return {
        value: name
        for value, name in found.items()
        if len(value) >= _SHORTEST and not value.isalpha() and not _is_path(value)
    }


def _is_path(value: str) -> bool:
    return "\n" not in value and len(value) < 4096 and os.path.exists(value)  # noqa: PTH110


def _secrets_of(name: str, value: str) -> list[str]:
    """Return what is secret in the value of a variable."""
    if is_secret(name):
        return [value] if value else []
    found = [match["secret"] for pattern in _IN_URLS for match in pattern.finditer(value)]
    if _OF_FSSPEC.fullmatch(name):
        with suppress(ValueError):
            found += _within(json.loads(value))
    return found


def _within(options: object) -> list[str]:
    """Return the secrets of nested options."""
    if not isinstance(options, dict):
        return []
    own = [v for k, v in options.items() if is_secret(k) and isinstance(v, str)]
    return own + [secret for value in options.values() for secret in _within(value)]


def masked(text: str, values: Iterable[str] | None = None) -> str:
    """Return a text with *** in place of passwords in URLs and of secrets.

    Args:
        values: The secrets; None: those of the environment.
    """
    for value in secret_values() if values is None else values:
        if value in text:
            text = text.replace(value, _HIDDEN)
    if "://" in text:
        for pattern in _IN_URLS:
            text = pattern.sub(rf"\g<shown>{_HIDDEN}", text)
    return text


def assigned_secrets(text: str) -> list[str]:
    """Return the variables with secrets that a shell command, or NAME=VALUE, sets to a value that
    stands in it, and such flags; `NAME=$OTHER` and `NAME=$(cat FILE)` are none."""
    flags = [match["name"] for match in _FLAG.finditer(text)]
    return flags + [
        match["name"]
        for match in _ASSIGNED.finditer(text)
        if is_secret(match["name"]) and (match["quoted"] or match["bare"])[0] not in "$`"
    ]
