"""What an assistant has written, read: reasoning, tool calls, and what it says besides.

<think>
It asks for the weather.
</think>

I will look.
<tool_call>
{"name": "weather", "arguments": {"city": "Oslo"}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loopcoder.chat.call_ends import CallEnd, beginning, begun_at_end
from loopcoder.chat.call_formats import BEGINNINGS, CLOSE, OPEN, CallFormat, NotACall, read_call
from loopcoder.chat.conversation import THINK, THOUGHT, ToolCall

TAGS = (THINK, THOUGHT, OPEN, CLOSE)
"""What is read here. Where a tokenizer has them as special tokens, they have to be in the text."""
Reason = Literal["invalid_call", "unclosed_call", "unclosed_reasoning"]


@dataclass(frozen=True)
class Format:
    """How an assistant writes what is more than text."""

    calls: CallFormat | None = None
    """Of tool calls; None: what looks like one is text."""
    reasoning: bool = False
    """Whether it may begin with `<think>`."""

    def begins_in_reasoning(self, prompt: str) -> bool:
        """Say whether a prompt ends with `<think>`, so that the answer has no such tag."""
        return self.reasoning and prompt.rstrip().endswith(THINK)


def format_of(template: str | None) -> Format:
    """Return what a chat template, a text in Jinja, writes and tells the model to write."""
    if template is None:
        return Format()
    calls: CallFormat | None = "hermes" if OPEN in template else None
    if "<function=" in template and "<parameter=" in template:
        calls = "qwen3_coder"
    return Format(calls, THOUGHT in template)


@dataclass(frozen=True)
class Problem:
    """What is not as the format wants it. The text it is about is in the answer all the same."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class Answer:
    """What an assistant has written."""

    content: str = ""
    """Without reasoning and calls, and the newlines between these."""
    reasoning: str | None = None
    """None: none, or an empty one."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Without ids."""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Delta:
    """What an answer has more: one of these."""

    content: str = ""
    reasoning: str = ""
    call: ToolCall | None = None


def read_answer(
    text: str,
    format: Format,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    in_reasoning: bool = False,
) -> Answer:
    """Read a whole answer.

    Args:
        tools: As in a request; their schemas say of which types the arguments of qwen3_coder are.
        in_reasoning: The prompt ends with `<think>`.
    """
    stream = AnswerStream(format, tools, in_reasoning=in_reasoning)
    stream.add(text)
    stream.end()
    return stream.answer


@dataclass
class _Part:
    """Content or reasoning, whose newlines at its ends are held back until it is known whether
    they belong to it."""

    text: list[str] = field(default_factory=list)
    newlines: str = ""
    at_border: bool = False
    """Whether nothing but newlines has come since what the part stands behind."""

    def add(self, new: str) -> str:
        """Return what is certain of it, and was not returned before."""
        new = self.newlines + new
        bare = new.rstrip("\n")
        self.newlines = new[len(bare) :]
        if bare and self.at_border:
            bare, self.at_border = bare.lstrip("\n"), False
        return self._kept(bare)

    def end(self, *, at_border: bool) -> str:
        """Return the rest of it.

        Args:
            at_border: Something follows, or stood before, that newlines only separate from it.
        """
        rest, self.newlines = "" if at_border else self.newlines, ""
        return self._kept(rest)

    def _kept(self, certain: str) -> str:
        if certain:
            self.text.append(certain)
        return certain


class AnswerStream:
    """Reads an answer while it comes; how its text is cut into pieces changes nothing.

    A call is told once it is whole and well formed. What is not, is content: from `<tool_call>` to
    the end of the answer where that was never closed.
    """

    def __init__(
        self,
        format: Format,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        in_reasoning: bool = False,
        stops_at_a_problem: bool = False,
    ):
        """See `read_answer`.

        Args:
            stops_at_a_problem: Nothing is read behind the first one, for readers who take no such
                answer: with many calls that never end, each is looked for up to the end.
        """
        self.format, self._tools = format, tools
        self._stops = stops_at_a_problem
        self._content, self._reasoning = _Part(), _Part(at_border=True)
        self._calls: list[ToolCall] = []
        self._problems: list[Problem] = []
        self._held, self._at = "", 0
        """Text of which some is still to be read, and from where on."""
        self._looked = 0
        """Behind `<tool_call>`: how far there are only blanks."""
        self._end: CallEnd | None = None
        """Of the call that has begun as it should."""
        self._deltas: list[Delta] = []
        self._read = self._start if format.reasoning else self._text
        if in_reasoning:
            self._begin_reasoning()

    @property
    def answer(self) -> Answer:
        """All that was told; after `end` the whole answer."""
        return Answer(
            "".join(self._content.text),
            "".join(self._reasoning.text) or None,
            tuple(self._calls),
            tuple(self._problems),
        )

    def add(self, text: str) -> list[Delta]:
        """Take the next piece of the text; return what is certain by now."""
        held, self._held = self._held, ""
        held += text  # in place, as nobody else has it: a long call may come in small pieces
        self._held = held
        return self._told(final=False)

    def end(self) -> list[Delta]:
        """Return the rest."""
        deltas = self._told(final=True)
        if self._read == self._call:
            self._problems.append(Problem("unclosed_call", f"no {CLOSE}"))
            self._say(self._content.add(OPEN + self._held[self._at :]))
        elif self._read == self._think:
            self._problems.append(Problem("unclosed_reasoning", f"no {THOUGHT}"))
        self._say(self._content.end(at_border=self._content.at_border or bool(self._calls)))
        return deltas + self._taken()

    def _told(self, *, final: bool) -> list[Delta]:
        while self._at < len(self._held) and self._read(final):
            if self._stops and self._problems:
                break
        if self._read != self._call:  # which knows places in it
            self._held, self._at = self._held[self._at :], 0
        return self._taken()

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _start(self, final: bool) -> bool:
        """Find out whether it begins with reasoning. Each of these readers returns whether there
        may be more to be read of what is held."""
        begun = self._held.lstrip()
        if THINK.startswith(begun) and begun != THINK and not final:
            return False
        if begun.startswith(THINK):
            self._held = begun.removeprefix(THINK)
            self._begin_reasoning()
        else:
            self._read = self._text
        return True

    def _begin_reasoning(self) -> None:
        self._read = self._think

    def _think(self, final: bool) -> bool:
        if (found := self._held.find(THOUGHT, self._at)) >= 0:
            self._reason(self._held[self._at : found])
            self._at, self._read = found + len(THOUGHT), self._text
            self._content.at_border = True
            return True
        self._reason(self._taken_up_to(THOUGHT, final))
        return False

    def _text(self, final: bool) -> bool:
        if self.format.calls is None:
            self._say(self._content.add(self._held[self._at :]))
            self._say(self._content.end(at_border=self._content.at_border))
            self._at = len(self._held)
            return False
        if (found := self._held.find(OPEN, self._at)) >= 0:
            self._say(self._content.add(self._held[self._at : found]))
            self._at, self._read = found + len(OPEN), self._call
            self._looked, self._end = self._at, None
            return True
        self._say(self._content.add(self._taken_up_to(OPEN, final)))
        return False

    def _call(self, final: bool) -> bool:
        """Read behind `<tool_call>`; `end` has what was never closed."""
        form = self.format.calls
        assert form is not None
        if self._end is None:
            fits, self._looked = beginning(self._held, self._looked, form)
            if not fits:
                return fits is False and self._rejected(
                    f"it does not begin with {BEGINNINGS[form]}"
                )
            self._end = CallEnd(form, self._at)
        try:
            while (end := self._end.next(self._held)) is not None:
                call = read_call(self._held[self._at : end], form, self._tools)
                if call is not None:
                    self._at, self._read = end + len(CLOSE), self._text
                    self._tell(call)
                    return True
            if final and self._end.skipped is not None:
                read_call(self._held[self._at : self._end.skipped], form, self._tools)
        except NotACall as error:
            return self._rejected(str(error))
        return False

    def _rejected(self, why: str) -> bool:
        """Take `<tool_call>` for content, and read on behind it."""
        self._problems.append(Problem("invalid_call", why))
        self._say(self._content.add(OPEN))
        self._read = self._text
        return True

    def _taken_up_to(self, tag: str, final: bool) -> str:
        """Take what is to be read, without what may be the beginning of a tag."""
        rest = self._held[self._at :]
        certain = len(rest) - (0 if final else begun_at_end(rest, tag))
        self._at += certain
        return rest[:certain]

    def _say(self, text: str) -> None:
        if text:
            self._deltas.append(Delta(content=text))

    def _reason(self, text: str) -> None:
        if certain := self._reasoning.add(text):
            self._deltas.append(Delta(reasoning=certain))

    def _tell(self, call: ToolCall) -> None:
        if not self._content.text:
            self._content.at_border = True
        self._calls.append(call)
        self._deltas.append(Delta(call=call))
