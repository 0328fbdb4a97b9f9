"""What a request is refused with, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from loopcoder.errors import InputError

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


@dataclass(eq=False)
class Refused(Exception):
    """A request that is not answered, and why."""

    status: int
    """Of HTTP."""
    message: str
    param: str | None = None
    """The field of the body that is wrong."""
    code: str | None = None
    """A word for programs."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def by(cls, error: InputError, param: str | None = None) -> Refused:
        """Make one of what the engine or a prompt found wrong."""
        found = [f"{p.fact}: {p.why}. {p.fix}" for p in error.problems]
        return cls(400, "; ".join(found), param)

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _KINDS.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=dict(self.headers))


def failed() -> Refused:
    """Return the answer to all that wait when decoding has failed; the reason is in the log."""
    return Refused(500, "the model failed while it answered; the log of the server has the reason")


def stopping() -> Refused:
    """Return the answer to what comes, or is not finished, when the server ends."""
    return Refused(503, "the server is stopping", code="stopping", headers={"Retry-After": "10"})
