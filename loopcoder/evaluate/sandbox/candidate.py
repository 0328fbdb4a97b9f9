"""The process of a generated program: it defines a function, and calls it for the judge."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from loopcoder.evaluate.sandbox.values import SHOWN, decode, encode, receive, send


def serve(judge: int, message_bytes: int) -> NoReturn:
    """Run the program that the judge sends, and call its function as often as the judge asks.

    Args:
        judge: Descriptor of a socket; it becomes that of this process and of no other file.
    """
    code = 1
    try:
        _without_other_files(judge)
        function = _told(judge, partial(_defined, *receive(judge, message_bytes)))
        while True:
            _told(judge, partial(_value, function, *receive(judge, message_bytes)))
    except EOFError:
        code = 0  # the judge has what it wanted
    finally:
        os._exit(code)


def _without_other_files(judge: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, judge)
    os.closerange(judge + 1, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    sys.argv = ["candidate"]


def _defined(program: str, name: str) -> Any:
    names: dict[str, Any] = {"__name__": "candidate"}
    exec(compile(program, "candidate", "exec"), names)
    return names[name]


def _value(function: Any, arguments: Any, named: Any) -> Any:
    return encode(function(*decode(arguments), **decode(named)))


def _told(judge: int, made: Callable[[], Any]) -> Any:
    """Return what `made` returns, after the judge was told its value or its error."""
    try:
        value = made()
    except BaseException as error:  # also SystemExit: a program must not end its process
        send(judge, {"error": f"{type(error).__name__}: {error}"[:SHOWN]})
        return None
    send(judge, {"value": None if callable(value) else value})
    return value
