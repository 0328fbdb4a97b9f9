"""An answer in a chat, as who calls the library gets it."""

from __future__ import annotations

from dataclasses import dataclass

from loopcoder.chat.calls import Answer, AnswerStream
from loopcoder.infer.request import Answer as Generated
from loopcoder.infer.request import Finish


@dataclass(frozen=True, kw_only=True)
class ChatAnswer(Answer):
    """What an assistant has written, read, and why it ended."""

    text: str
    """As it was written, with reasoning, calls and their tags."""
    finish: Finish
    """`length`: max_tokens cut it, so that a call or reasoning may be open."""
    stopped_by: str | int | None = None
    """The text or token that ended it."""

    @classmethod
    def of(cls, generated: Generated, reader: AnswerStream) -> ChatAnswer:
        """Read a whole answer.

        Args:
            reader: Of `Prompts.reader`, which has read nothing yet.
        """
        reader.add(generated.text)
        reader.end()
        read = reader.answer
        return cls(
            read.content,
            read.reasoning,
            read.tool_calls,
            read.problems,
            text=generated.text,
            finish=generated.finish,
            stopped_by=generated.stopped_by,
        )
