"""The section `generate` of a command line: how answers are drawn, and when they end."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from loopcoder.config.types import (
    STRICT,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SpecialTokensInText,
    ToolFormat,
)


@dataclass(frozen=True, config=STRICT)
class GenerateConfig:
    """What `loopcoder generate` asks of a model."""

    max_tokens: PositiveInt = 256
    """Most tokens of an answer."""
    temperature: NonNegativeFloat = 0.0
    """Of the distribution that tokens are drawn from; 0: always the most probable token."""
    top_k: NonNegativeInt = 0
    """Most tokens that may be drawn; 0: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The most probable tokens whose probabilities reach this sum may be drawn."""
    min_p: Fraction = 0.0
    """A token may be drawn from this share of the highest probability on."""
    seed: NonNegativeInt | None = None
    """Of the draws; null: another one each time."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer, which are left out of it."""
    ignore_end: bool = False
    """Go on past tokens that end a document or a turn."""
    system: str | None = None
    """With --chat: what stands before the conversation, as the message of the system."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """With --chat: options of the chat template, such as {enable_thinking: false} of Qwen3's."""
    tool_format: ToolFormat = "auto"
    """With --chat: how the model writes calls of tools; auto: as its chat template does; none: they
    stay text."""
    special_tokens: SpecialTokensInText = "refuse"
    """With --chat: what becomes of messages and tools that spell a special token, as <|im_end|>:
    they are refused, or kept: the model reads that token."""
    places: PositiveInt = 16
    """Prompts that are answered at a time; others wait."""
    kernels: Literal["auto", "stock", "cuda"] = "auto"
    """What a decoder on a GPU computes its layers with: stock parts, or the CUDA extension of
    kernels/; auto takes the extension where it is built, was tested and can run the model."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """Whether steps on a GPU are launched as CUDA graphs; auto: they are."""
