"""Continuous batching: requests come and go while others run, each in a place of its own.

One thread owns an engine. A step fills free places with what waits, in order of arrival, by one
pass over all their prompts, and gives every running sequence one token; passes and steps alternate,
so that neither long prompts nor many requests hold up what runs for longer than one pass. A request
that has a place keeps it to its end: nothing is taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from loopcoder.errors import LoopcoderError, counted
from loopcoder.infer.answerable import check_request
from loopcoder.infer.gathered import Gathered
from loopcoder.infer.leading import Decodes
from loopcoder.infer.prefill import PASS_TOKENS
from loopcoder.infer.prompt_logprobs import PromptLogprobs
from loopcoder.infer.request import Answer, Finish, Piece, Request, Token
from loopcoder.infer.sampling import Draws, next_tokens
from loopcoder.infer.text import TextStream, TokenBytes

MAX_WAITING = 1024

Receive = Callable[[Piece], None]
Failed = Callable[[Exception], None]


class EngineBusy(LoopcoderError):
    """As many requests wait as may; ask again later."""


class EngineFailed(LoopcoderError):
    """The model failed at an earlier step, and the engine answers nothing any more."""


@dataclass(eq=False)
class _Sequence:
    """A request that waits or runs."""

    ticket: int
    request: Request
    receive: Receive
    failed: Failed | None
    text: TextStream
    draws: Draws
    stops: dict[int, str | int]
    """What ended the answer, by the token that ends it."""
    place: int | None = None
    last: int = -1
    """Its newest token, which the model has not read yet."""
    num_tokens: int = 0
    """That were generated."""


@dataclass
class Totals:
    """Counters since the engine was made."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    passes: int = 0
    """Over prompts."""
    steps: int = 0
    """In which every running sequence got a token."""
    answers: dict[Finish, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0}
    )


class Engine:
    """Answers requests with a decoder. Not safe for threads: one of them makes all calls."""

    def __init__(
        self,
        decoder: Decodes,
        tokenizer: Any,
        eos: frozenset[int] = frozenset(),
        *,
        max_waiting: int = MAX_WAITING,
        prefill_tokens: int = PASS_TOKENS,
    ):
        """
        Args:
            tokenizer: A `tokenizers.Tokenizer`.
            eos: The tokens that end a document, for who makes requests: the engine stops at
                `Request.stop_ids` only.
            max_waiting: Requests that may wait for a place.
            prefill_tokens: Of prompts in one pass, unless a single prompt has more.

        Raises:
            InputError: the tokenizer is no byte-level BPE.
        """
        self.decoder, self.tokenizer, self.eos = decoder, tokenizer, eos
        self.bytes_of = TokenBytes(tokenizer)
        self.totals = Totals()
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._max_waiting, self._prefill_tokens = max_waiting, prefill_tokens
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._free = list(reversed(range(decoder.num_places)))
        self._next_ticket = 0
        self._failure: str | None = None
        """In words: an error holds what it passed through, this engine and its cache."""

    @property
    def num_running(self) -> int:
        """Requests that have a place."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether a request more would be refused for now."""
        return len(self._waiting) >= self._max_waiting

    @property
    def has_failed(self) -> bool:
        """Whether the model has failed, or a step was interrupted: then nothing is answered."""
        return self._failure is not None

    def check(self, request: Request) -> None:
        """Refuse a request that can never be answered.

        Raises:
            InputError: with all that is wrong.
        """
        check_request(request, self.decoder.vocabulary, self.decoder.max_length)

    def submit(self, request: Request, receive: Receive, failed: Failed | None = None) -> int:
        """Let a request wait for a place; return its ticket.

        Args:
            receive: Called with each piece of the answer, by `step` or `cancel`; the last one has
                `finish`. It must return soon, and may call `submit` and `cancel`.
            failed: Called in place of a last piece, with its error, if the model fails.

        Raises:
            InputError: it can never be answered.
            EngineBusy: too many wait.
            EngineFailed: the model has failed.
        """
        self._check_accepts(request)
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        text = TextStream(self.bytes_of, request.stop, request.shown)
        draws = Draws(request.sampling, request.logprobs)
        # a special token has no text in which its name could be found
        named = {self._special[name]: name for name in request.stop if name in self._special}
        stops = {i: i for i in request.stop_ids} | named
        self._waiting.append(_Sequence(ticket, request, receive, failed, text, draws, stops))
        return ticket

    def _check_accepts(self, request: Request) -> None:
        """Raise what `submit` raises."""
        self._check_works()
        self.check(request)
        if self.is_busy:
            raise EngineBusy.of(
                f"{counted(len(self._waiting), 'request')} wait for {self.decoder.num_places} "
                "places",
                "no more may wait",
                "ask again later",
            )

    def _check_works(self) -> None:
        if self._failure is not None:
            raise EngineFailed.of(
                "the model has failed before, or was interrupted",
                self._failure,
                "start this process again",
            )

    def cancel(self, ticket: int) -> None:
        """End a request now, and free its place; its last piece says `cancelled`. One that has
        ended already, or never was, is none."""
        found = next((s for s in [*self._running, *self._waiting] if s.ticket == ticket), None)
        if found is not None:
            self._ended(found, "cancelled")
            found.receive(Piece(found.text.end(), finish="cancelled"))

    def step(self) -> bool:
        """Fill free places, and give each running sequence a token; return False if there is
        nothing to do.

        Raises:
            Exception: that of the model, after `failed` of all requests was called with it: the
                engine is of no use from then on. Or that of a `receive`, whose request is
                cancelled; the others go on.
            EngineFailed: a step was interrupted, as by Ctrl-C: nobody knows how far it has come.
        """
        if not self._waiting and not self._running:
            return False
        self._check_works()
        try:
            raised = self._steps()
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise
        if raised:
            raise raised[0]
        return True

    def _steps(self) -> list[Exception]:
        raised: list[Exception] = []
        if self._waiting and self._free:
            raised += self._deliver(self._tried(self._admit))
        if self._running:
            raised += self._deliver(self._tried(self._advance))
        return raised

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, in their order.

        Raises:
            InputError: one can never be answered; then none was begun.
            Exception: that of the model.
        """
        for request in requests:
            self.check(request)
        answers = [Gathered() for _ in requests]
        left = deque(zip(requests, answers, strict=True))
        tickets = []
        try:
            while left or any(not answer.is_whole for answer in answers):
                while left and not self.is_busy:
                    request, answer = left.popleft()
                    tickets.append(self.submit(request, answer.add))
                self.step()
        finally:
            self._cancel_all(tickets)
        return [answer.answer() for answer in answers]

    def stream(self, request: Request) -> Iterator[Piece]:
        """Answer a request piece by piece; it waits for its place from the first `next` on, and an
        iterator that is closed cancels it.

        Raises:
            InputError: it can never be answered.
            EngineBusy: too many wait.
            EngineFailed: the model has failed.
            Exception: that of the model.
        """
        self._check_accepts(request)
        return self._pieces(request)

    def _pieces(self, request: Request) -> Iterator[Piece]:
        pieces: deque[Piece] = deque()
        ticket = self.submit(request, pieces.append)
        try:
            while True:
                while pieces:
                    piece = pieces.popleft()
                    yield piece
                    if piece.finish is not None:
                        return
                self._check_works()  # another one's step may have failed
                self.step()
        finally:
            self._cancel_all([ticket])

    def _cancel_all(self, tickets: Sequence[int]) -> None:
        for ticket in tickets:
            self.cancel(ticket)

    def _tried(self, work: Callable[[], list[tuple[_Sequence, Piece]]]) -> list[Any]:
        """Return what work gives, or fail for everybody."""
        try:
            return work()
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            ended, self._running = [*self._running, *self._waiting], []
            self._waiting.clear()
            for sequence in ended:
                if sequence.failed is not None:
                    sequence.failed(error)
            raise

    def _admit(self) -> list[tuple[_Sequence, Piece]]:
        """Give free places to what waits longest, and read their prompts in one pass."""
        admitted: list[_Sequence] = []
        tokens = 0
        while self._waiting and self._free:
            tokens += len(self._waiting[0].request.ids)
            if admitted and tokens > self._prefill_tokens:
                break
            sequence = self._waiting.popleft()
            sequence.place = self._free.pop()
            admitted.append(sequence)
        self._running += admitted
        by_place = {s.place: s.request for s in admitted if s.place is not None}
        told = PromptLogprobs(by_place)
        prompts = {place: request.ids for place, request in by_place.items()}
        logits = self.decoder.prefill(prompts, told.read if told.places else None, told.places)
        self.totals.passes += 1
        self.totals.prompt_tokens += sum(map(len, prompts.values()))
        of_prompts = [told.of(place) for place in by_place]
        return self._with_next(admitted, logits, of_prompts)

    def _advance(self) -> list[tuple[_Sequence, Piece]]:
        """Let each running sequence read its newest token and draw the next one."""
        running = list(self._running)
        places = [s.place for s in running if s.place is not None]
        logits = self.decoder.step(places, [s.last for s in running])
        self.totals.steps += 1
        return self._with_next(running, logits, [()] * len(running))

    def _with_next(
        self,
        sequences: Sequence[_Sequence],
        logits: Tensor,
        of_prompts: Sequence[tuple[Token, ...]],
    ) -> list[tuple[_Sequence, Piece]]:
        """Draw a token for each sequence; return what is to be told of it."""
        tokens = next_tokens(logits, [s.draws for s in sequences])
        return [
            (s, self._piece(s, token, prompt))
            for s, token, prompt in zip(sequences, tokens, of_prompts, strict=True)
        ]

    def _piece(self, sequence: _Sequence, token: Token, prompt: tuple[Token, ...]) -> Piece:
        """Add a token to a sequence, which ends or goes on."""
        request, text = sequence.request, sequence.text
        if request.max_tokens == 0:
            self._ended(sequence, "length")
            return Piece(prompt=prompt, finish="length")
        sequence.last = token.id
        sequence.num_tokens += 1
        self.totals.generated_tokens += 1
        finish: Finish | None = None
        stopped_by: str | int | None = None
        if token.id in sequence.stops:
            new, stopped_by = text.end(), sequence.stops[token.id]
        else:
            new = text.add(token.id)
            if text.stopped_by is None and sequence.num_tokens == request.max_tokens:
                new += text.end()
                finish = "length"
        if text.stopped_by is not None:
            stopped_by = text.stopped_by
        if stopped_by is not None:
            finish = "stop"
        if finish is not None:
            self._ended(sequence, finish)
        return Piece(new, (token,), prompt, finish, stopped_by)

    def _ended(self, sequence: _Sequence, finish: Finish) -> None:
        """Free the place of a sequence."""
        self.totals.answers[finish] += 1
        if sequence.place is None:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._free.append(sequence.place)

    def _deliver(self, pieces: Sequence[tuple[_Sequence, Piece]]) -> list[Exception]:
        """Hand out pieces; return what receivers raised, whose requests are over."""
        raised = []
        for sequence, piece in pieces:
            if piece.finish is None and sequence not in self._running:
                continue  # a receiver before it has cancelled it
            try:
                sequence.receive(piece)
            except Exception as error:
                raised.append(error)
                if sequence in self._running:
                    self._ended(sequence, "cancelled")
        return raised
