"""The thread that owns the engine, and what the event loop may ask of it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial

from loopcoder.infer.engine import Engine
from loopcoder.infer.request import Piece, Request
from loopcoder.infer.serve.answering import Answering, Answers
from loopcoder.infer.serve.metrics import Metrics
from loopcoder.infer.serve.refusals import Refused, failed, stopping

_Order = Callable[[], None]


class Worker:
    """Runs the engine in a thread, which alone calls it; all methods but those that say so are
    called in the event loop.

    The loop sends orders (submit, cancel, end) through a queue; the thread carries them out between
    two steps, and sends back what a step has brought in one call of the loop.
    """

    def __init__(self, engine: Engine, most: int, metrics: Metrics, on_failure: Callable[[], None]):
        """
        Args:
            most: Sequences that may be under way at once, running, waiting or not yet read. No
                request may have more (`Served.check_number`).
            on_failure: Called in the loop once the engine has failed and all were told.
        """
        self.engine, self.most, self.metrics = engine, most, metrics
        self.error: BaseException | None = None
        """What ended the thread, if anything did."""
        self.closed = False
        """Whether nothing more is accepted."""
        self._on_failure = on_failure
        self._open: set[Answering] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._tickets: dict[Answering, int] = {}  # of the thread, as is what follows
        self._brought: list[tuple[Answering, Piece]] = []
        self._thread = threading.Thread(target=self._run, name="loopcoder-decode", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Start the thread, for the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_open(self) -> int:
        """Sequences under way: running, waiting, or finished and not yet read to their end."""
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a place."""
        unfinished = sum(not answering.ended for answering in self._open)
        return max(0, unfinished - self.engine.num_running)

    def submit(self, requests: Sequence[Request]) -> Answers:
        """Begin to answer requests, all or none; `release` each of them in the end.

        Raises:
            Refused: the server is stopping, or too much is waiting already.
        """
        if self.closed:
            raise stopping()
        if self.num_open + len(requests) > self.most:
            raise Refused(
                429,
                f"{self.num_open} sequences are under way or wait, and {self.most} may; try again",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )
        answers = Answers(len(requests))
        self._open.update(answers.each)
        self._idle.clear()
        for request, answering in zip(requests, answers.each, strict=True):
            self.metrics.prompt.add(len(request.ids))
            self._orders.put(partial(self._submit, request, answering))
        return answers

    def release(self, answers: Answers) -> None:
        """Give up what answers hold; those that are not finished are cancelled."""
        for answering in answers.each:
            if not answering.ended:
                answering.ended = True
                self._orders.put(partial(self._cancel, answering))
            self._open.discard(answering)
        if not self._open:
            self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Accept nothing more, and return when all that is under way is read to its end; what is
        not after `grace_s` seconds is ended by an error."""
        self.closed = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self.end_all(stopping())

    def end_all(self, error: Exception) -> None:
        """Let every answer that is not finished end by an error."""
        for answering in list(self._open):
            if not answering.ended:
                answering.fail(error)
                self._orders.put(partial(self._cancel, answering))

    def stop(self) -> None:
        """End the thread after the step that runs, and wait for that."""
        self.closed = True
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Carry out orders and take steps until told to end; in the thread."""
        try:
            busy = False
            while self._take_orders(wait=not busy):
                busy = self.engine.step()
                self._deliver()
        except BaseException as error:
            self._tell(self._failed, error)

    def _take_orders(self, *, wait: bool) -> bool:
        """Carry out what was ordered; return whether to go on."""
        try:
            order = self._orders.get(block=wait)
            while order is not None:
                order()
                order = self._orders.get_nowait()
        except queue.Empty:
            return True
        return False

    def _submit(self, request: Request, answering: Answering) -> None:
        def receive(piece: Piece) -> None:
            self._brought.append((answering, piece))
            if piece.finish is not None:
                self._tickets.pop(answering, None)

        self._tickets[answering] = self.engine.submit(request, receive)

    def _cancel(self, answering: Answering) -> None:
        ticket = self._tickets.pop(answering, None)
        if ticket is not None:
            self.engine.cancel(ticket)

    def _deliver(self) -> None:
        brought, self._brought = self._brought, []
        if brought:
            self._tell(self._receive, brought)

    def _tell(self, call: Callable[..., None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, argument)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            if not self._loop.is_closed():
                raise

    def _receive(self, brought: Sequence[tuple[Answering, Piece]]) -> None:
        for answering, piece in brought:
            had_none = answering.first_s is None
            answering.add(piece)
            self.metrics.generated.add(len(piece.tokens))
            if had_none and answering.first_s is not None:
                self.metrics.first_token_s.add(answering.first_s)

    def _failed(self, error: BaseException) -> None:
        self.error, self.closed = error, True
        for answering in list(self._open):
            answering.fail(failed())
        self._on_failure()
