"""An answer that is put together from its pieces."""

from __future__ import annotations

from dataclasses import dataclass, field

from loopcoder.infer.request import Answer, Finish, Piece, Token


@dataclass
class Gathered:
    """What has come of an answer so far."""

    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    prompt: tuple[Token, ...] = ()
    finish: Finish | None = None
    stopped_by: str | int | None = None

    def add(self, piece: Piece) -> None:
        """Take the next piece."""
        self.texts.append(piece.text)
        self.tokens += piece.tokens
        self.prompt += piece.prompt
        self.finish, self.stopped_by = piece.finish, piece.stopped_by

    @property
    def is_whole(self) -> bool:
        return self.finish is not None

    def answer(self) -> Answer:
        """Return the answer, of which the last piece has come."""
        assert self.finish is not None
        text = "".join(self.texts)
        return Answer(text, tuple(self.tokens), self.finish, self.prompt, self.stopped_by)
