"""The content of state.json: where a run stands, and what has to fit when it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from loopcoder.data.ledger import Ledger
from loopcoder.data.sampler import Position

FORMAT_VERSION = 3


def _to_version_2(content: dict[str, Any]) -> dict[str, Any]:
    folder = str(PurePath(str(content.get("tokenizer_path", ""))).parent)
    return content | {"corpus_dir": folder, "warmup_steps": None}


def _to_version_3(content: dict[str, Any]) -> dict[str, Any]:
    position = content.get("position")
    return (
        content | {"position": position | {"before": None}}
        if isinstance(position, dict)
        else content
    )


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _to_version_2,
    2: _to_version_3,
}
"""By version: what makes the content of a state.json that of the next version."""


@dataclass(frozen=True)
class Specials:
    """What a folder that was imported said of special tokens, generation and chat, and the template
    of the chats that a run was trained on; exports say it again."""

    ids: dict[str, int | list[int]]
    """`bos_token_id`, `eos_token_id` and `pad_token_id` of its config.json, where they are."""
    names: dict[str, str]
    """`bos_token`, `eos_token` and `pad_token` of its tokenizer, where they are."""
    generation_config: str | None
    """Text of generation_config.json."""
    chat_template: str | None
    """Text of the chat template, in Jinja."""


def with_template(specials: Specials | None, chat_template: str | None) -> Specials | None:
    """Return what a run says of its tokens that is trained on chats.

    Args:
        specials: What it began with.
        chat_template: What its chats are rendered with; None: it has none, and says what it began
            with.
    """
    if chat_template is None:
        return specials
    said = specials or Specials({}, {}, None, None)
    return replace(said, chat_template=chat_template)


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says of its run, beside the config."""

    position: Position
    """Where the run stands in its data; its step names the folder."""
    num_loops: int
    vocab_size: int
    """Rows of embedding and head."""
    tokenizer_hash: str
    tokenizer_path: str
    corpus: str
    """Fingerprint of the corpus."""
    corpus_dir: str
    """Folder of the corpus."""
    config_hash: str
    world_size: int
    """Ranks that wrote it; any number reads it."""
    warmup_steps: int | None
    """Of the learning rate, as the run had them; None, from version 1: those of its config."""
    reader: Literal["megatron", "packed", "shuffled"] | None = None
    """`data.reader` of its run; None: of a version that did not record it."""
    ledger: Ledger | None = None
    """Tokens trained by domain, language and source; None: of a version that did not count them."""
    tokens: int | None = None
    """Rows of embedding and head without padding, of weights that were imported; None: the
    tokenizer knows it."""
    specials: Specials | None = None
    """Of weights that were imported or trained on chats; None: what loopcoder makes of the
    tokenizer."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.position.step

    @property
    def has_tokenizer(self) -> bool:
        """It is known what its ids mean; weights may be imported without a tokenizer."""
        return self.tokenizer_hash != ""

    @property
    def is_trained(self) -> bool:
        """It is of a run, and not of weights that were imported."""
        return self.corpus != ""

    def to_json(self) -> dict[str, Any]:
        """Return the content of state.json."""
        return {"format_version": FORMAT_VERSION, "step": self.step, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CheckpointState:
        """Read the content of a state.json of this or an earlier version.

        Raises UnknownFormat, and ValueError where a field is missing or of the wrong kind.
        """
        version = content.get("format_version")
        while version in MIGRATIONS:
            content, version = MIGRATIONS[version](content), version + 1
        if version != FORMAT_VERSION:
            raise UnknownFormat(version)
        try:
            state = TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ValueError("; ".join(wrong)) from error
        if state.ledger is not None:
            state.ledger.check(state.position)
        return state


class UnknownFormat(Exception):
    """A state.json of a version that there is no migration for."""
