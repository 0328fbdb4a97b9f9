"""How answers are printed while they come: as text, or as an object each."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from loopcoder.cli.arguments import say_aside
from loopcoder.cli.given_prompts import GivenPrompt
from loopcoder.cli.streams import nobody_reads
from loopcoder.cli.transcripts import Transcript
from loopcoder.errors import counted
from loopcoder.infer.gathered import Gathered
from loopcoder.infer.request import Piece, Request

if TYPE_CHECKING:
    from loopcoder.infer.engine import Engine


MANY_TOKENS = 1024
"""Of prompts, whose reading takes time that is told before."""


class Answers:
    """Prints answers in the order of their prompts, each as soon as those before it are whole; the
    first of them that is not whole is printed as it comes."""

    def __init__(
        self,
        prompts: Sequence[GivenPrompt],
        transcripts: Sequence[Transcript] = (),
        *,
        as_json: bool,
    ):
        """
        Args:
            prompts: What headings name; a single one has none.
            transcripts: For each of them, if they are conversations.
        """
        self._prompts, self._as_json = prompts, as_json
        self._transcripts = transcripts
        self._gathered = [Gathered() for _ in prompts]
        self._texts: list[list[str]] = [[] for _ in prompts]
        """To be printed of each."""
        self._printed = 0
        """Pieces of the next one that are printed."""
        self._next = 0
        """The first that is not printed as a whole."""
        self._pace = _Pace()

    def run(self, engine: Engine, requests: Sequence[Request]) -> None:
        """Answer all requests, or what comes of them before nobody reads it.

        Raises:
            KeyboardInterrupt: after what has come until then is printed.
        """
        if (tokens := sum(len(request.ids) for request in requests)) >= MANY_TOKENS:
            say_aside(f"reading {tokens:,} tokens of prompts")
        begun = self._pace.last = time.perf_counter()
        tickets = [
            engine.submit(request, partial(self._receive, request, number))
            for number, request in enumerate(requests)
        ]
        try:
            while self._next < len(requests) and not nobody_reads():
                engine.step()
                self._print()
        finally:
            for ticket in tickets:
                engine.cancel(ticket)
            self._print()
            say_aside(self._speed(time.perf_counter() - begun))

    def _receive(self, request: Request, number: int, piece: Piece) -> None:
        gathered = self._gathered[number]
        if piece.tokens:
            is_first = not gathered.tokens
            self._pace.came(len(request.ids) if is_first else 0)
        gathered.add(piece)
        text = self._transcripts[number].add(piece) if self._transcripts else piece.text
        self._texts[number].append(text)

    def _print(self) -> None:
        """Print what has come since the last time, as far as it is its turn."""
        while self._next < len(self._gathered):
            prompt, gathered = self._prompts[self._next], self._gathered[self._next]
            if self._as_json and gathered.is_whole:
                parts = self._transcripts[self._next].fields() if self._transcripts else {}
                print(json.dumps(_fields(prompt, gathered) | parts), flush=True)
            elif not self._as_json:
                self._print_text(prompt, gathered)
            if not gathered.is_whole:
                return
            for transcript in self._transcripts[self._next : self._next + 1]:
                for problem in transcript.problems():
                    say_aside(f"{prompt.heading}: {problem}")
            self._next, self._printed = self._next + 1, 0

    def _print_text(self, prompt: GivenPrompt, gathered: Gathered) -> None:
        texts = self._texts[self._next]
        if len(self._prompts) > 1 and self._printed == 0 and texts:
            print(f"== {prompt.heading}")
        new, self._printed = texts[self._printed :], len(texts)
        print("".join(new), end="\n" if gathered.is_whole else "", flush=True)

    def _speed(self, seconds: float) -> str:
        tokens = sum(len(gathered.tokens) for gathered in self._gathered)
        ends = ", ".join(dict.fromkeys(str(g.finish) for g in self._gathered))
        return f"{counted(tokens, 'token')} in {seconds:.2f} s{self._pace}; {ends}"


@dataclass
class _Pace:
    """How fast prompts are read, and how fast tokens come after the first one of each answer. All
    pieces of a pass over prompts, or of a step, come at the same time."""

    last: float = 0.0
    """When the last piece came, in seconds."""
    read: int = 0
    """Tokens of prompts that were read."""
    read_s: float = 0.0
    """Until the first token of each answer."""
    written: int = 0
    """Tokens without the first one of each answer."""
    write_s: float = 0.0

    def came(self, prompt_tokens: int) -> None:
        """Count a token of an answer: its first one, with the tokens of its prompt, or another."""
        now = time.perf_counter()
        if prompt_tokens:
            self.read, self.read_s = self.read + prompt_tokens, self.read_s + now - self.last
        else:
            self.written, self.write_s = self.written + 1, self.write_s + now - self.last
        self.last = now

    def __str__(self) -> str:
        rates = ("prompts", self.read, self.read_s), ("answers", self.written, self.write_s)
        return "".join(f", {what} {n / s:,.1f} tokens/s" for what, n, s in rates if n and s)


def _fields(prompt: GivenPrompt, gathered: Gathered) -> dict[str, Any]:
    answer = gathered.answer()
    return {
        **({"prompt": prompt.text} if prompt.file is None else {"file": prompt.file}),
        "text": answer.text,
        "ids": answer.ids,
        "finish": answer.finish,
        "stopped_by": answer.stopped_by,
    }
