"""The section `serve` of a command line: where the server listens, and its limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from loopcoder.config.types import (
    STRICT,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SpecialTokensInText,
    ToolFormat,
)

MAX_LENGTH = 8192
"""Of a prompt and its answer where nothing is said, if the model has as many positions."""


@dataclass(frozen=True, config=STRICT)
class ServeConfig:
    """What `loopcoder serve` offers, to whom, and how much of it."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own (127.0.0.1, ::1, localhost) needs a key in
    $LOOPCODER_API_KEY."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0: any that is free, which is printed."""
    name: str | None = None
    """What the model is called; null: the name of its folder or run."""
    tool_format: ToolFormat = "auto"
    """How the model writes calls of tools in a chat; auto: as its chat template does; none: they
    stay text."""
    special_tokens: SpecialTokensInText = "refuse"
    """What becomes of a chat whose messages or tools spell a special token, as <|im_end|>: it is
    answered 400, or kept: the model reads that token, and whoever wrote it can speak for others."""
    places: PositiveInt = 16
    """Sequences that are decoded at a time, each with a cache of `serve.max_length` tokens."""
    max_length: PositiveInt | None = None
    """Most tokens of a prompt and its answer together; null: 8,192, or as many as the model has
    positions if those are fewer."""
    max_waiting: NonNegativeInt = 256
    """Sequences that may wait for a place; a request for more is answered 429."""
    max_body_bytes: PositiveInt = 8 * 2**20
    """Largest body of a request."""
    timeout_s: PositiveFloat = 600.0
    """Seconds after which a request is ended, waiting and sending included."""
    grace_s: NonNegativeFloat = 30.0
    """Seconds that running requests have to end when the server is asked to stop."""
    kernels: Literal["auto", "stock", "cuda"] = "auto"
    """What a decoder on a GPU computes its layers with: stock parts, or the CUDA extension of
    kernels/; auto takes the extension where it is built, was tested and can run the model."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """Whether steps on a GPU are launched as CUDA graphs; auto: they are."""
