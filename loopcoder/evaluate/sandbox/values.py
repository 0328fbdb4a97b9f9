"""Plain values as JSON between two processes of which one is not trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

SHOWN = 200
"""Characters of an error's text that are handed on."""
_LENGTH_BYTES = 8


class NotPlain(Exception):
    """A value that cannot be handed over, or a message that is none."""


def encode(value: Any) -> Any:
    """Return what `json` can write of a value.

    Numbers, texts, bytes and the containers of Python, as well as their subclasses, which arrive as
    what they are a subclass of. Raises NotPlain of everything else.
    """
    if value is None or isinstance(value, bool | str):
        return value
    for name, (kind, parts, _) in _KINDS.items():
        if isinstance(value, kind):
            return [name, parts(value)]
    raise NotPlain(f"a value of type {type(value).__name__}")


def decode(written: Any) -> Any:
    """Return the value that `encode` wrote. Raises NotPlain of what it cannot have written."""
    if written is None or isinstance(written, bool | str):
        return written
    match written:
        case [str(name), parts] if name in _KINDS:
            return _KINDS[name][2](parts)
    raise NotPlain("a message that is no value")


def _sequence(values: Any) -> list[Any]:
    return [encode(value) for value in values]


def _pairs(values: Any) -> list[Any]:
    return [[encode(key), encode(value)] for key, value in values.items()]


def _decoded(parts: list[Any]) -> list[Any]:
    return [decode(part) for part in parts]


_KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda part: int(part, 16)),
    "float": (float, float.hex, float.fromhex),
    "complex": (
        complex,
        lambda value: [value.real.hex(), value.imag.hex()],
        lambda parts: complex(*map(float.fromhex, parts)),
    ),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "decimal": (Decimal, str, Decimal),
    "fraction": (Fraction, str, Fraction),
    "list": (list, _sequence, _decoded),
    "tuple": (tuple, _sequence, lambda parts: tuple(_decoded(parts))),
    "set": (set, _sequence, lambda parts: set(_decoded(parts))),
    "frozenset": (frozenset, _sequence, lambda parts: frozenset(_decoded(parts))),
    "dict": (dict, _pairs, lambda parts: {decode(k): decode(v) for k, v in parts}),
}


def send(descriptor: int, message: Any) -> None:
    """Write a message of what `json` can write."""
    data = json.dumps(message).encode()
    data = len(data).to_bytes(_LENGTH_BYTES, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int, most_bytes: int) -> Any:
    """Read a message.

    Raises:
        EOFError: the other side has gone.
        NotPlain: it is longer than `most_bytes`, or no JSON.
    """
    length = int.from_bytes(_exactly(descriptor, _LENGTH_BYTES), "big")
    if length > most_bytes:
        raise NotPlain(f"a message of {length} bytes; {most_bytes} are allowed")
    try:
        return json.loads(_exactly(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise NotPlain("a message that is no JSON") from error


def _exactly(descriptor: int, number: int) -> bytes:
    data = bytearray()
    while len(data) < number:
        part = os.read(descriptor, min(number - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
