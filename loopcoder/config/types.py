"""What all sections of the schema share: strictness, what a field changes, numbers with limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

Effect = Literal["nothing", "numbers", "corpus"]


@dataclass(frozen=True)
class Changes:
    """What another value of a field changes, said at the field: `Annotated[int, Changes(...)]`.

    A section says it for all its fields, unless one of them says something else. Where nothing is
    said, a field changes numbers.
    """

    effect: Effect
    """`nothing`: neither a corpus nor a number of a run, only where and how fast it is made.
    `numbers`: what a run computes, so it is another run with another hash. `corpus`: which corpus
    is built as well, so it has another fingerprint."""
    since: str | None = None
    """Date or version with which the field was added, if others were hashed before: at its
    default, which is what runs did without it, it stays out of the hash, and older runs keep
    their names."""


ToolFormat = Literal["auto", "hermes", "qwen3_coder", "none"]
"""How a model writes calls of tools; auto: as its chat template does; none: they stay text."""
SpecialTokensInText = Literal["refuse", "keep"]
"""Of conversations whose text spells a special token, which whoever writes it could forge turns of
others with."""
LearnedReasoning = Literal["train", "context"]
"""Whether what the assistant thinks is learned, or only read by what follows it."""
LearnedTurns = Literal["all", "first", "last"]
"""Which turns of the assistant are learned."""
NAME, FOLDER = r"^\w[\w.+=,@-]*$", r"^[^/\x00]+$"
Name = Annotated[str, Field(pattern=NAME)]
"""Part of a file's name."""
FolderName = Annotated[str, Field(pattern=FOLDER)]
"""Part of a folder's name; Name is stricter, and came when there were such folders."""
PATTERNS = {
    NAME: (
        "it is part of a folder's name: letters, digits and . _ - + = , @, and first a letter, a "
        "digit or _",
        r"^\W+|[^\w.+=@-]+",
    ),
    FOLDER: ("it is part of a folder's name: one character or more, none of them /", r"[/\x00]+"),
}
"""What a text with such a pattern may be, in words, and what of another one is replaced; a comma
would be quoted on a command line."""
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
