"""Prepares the microbatches of coming steps, in a thread while the current one computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from loopcoder.config.schema import Config
from loopcoder.data.batch import Batch, make_batch
from loopcoder.data.blend import Blend, blend_at, check_stages
from loopcoder.data.corpus import Corpus
from loopcoder.data.ledger import count_labels
from loopcoder.data.sampler import Position, advance, begin_step, samples_of_rank, samples_of_step


@dataclass(frozen=True)
class StepData:
    """Everything one rank needs for one step."""

    microbatches: list[Batch]
    before: Position
    """What `data.skip` leaves out before the step is behind it."""
    after: Position
    size: int
    """Sequences of the global batch."""
    label_tokens: NDArray[np.int64]
    """Labels of this rank's sequences by what they are of, whether they count in the loss or not.
    [Corpus.labels]"""


def step_data(
    config: Config,
    corpus: Corpus,
    position: Position,
    dp_rank: int,
    dp_size: int,
    blend: Callable[[Position], Blend],
) -> StepData:
    """Build one rank's microbatches of the step at `position`; `blend` gives the sequences of its
    stage."""
    position = begin_step(config, position)
    after, size = advance(config, position)
    samples = samples_of_step(position, size, config.seed, position.stage)
    mine = samples_of_rank(samples, dp_rank, dp_size, config.train.micro_batch_size)
    source = blend(position)
    microbatches = []
    label_tokens = np.zeros(len(corpus.labels), dtype=np.int64)
    for row in mine:
        rows = source.rows(row)
        count_labels(label_tokens, rows.label_ids.numpy())
        microbatches.append(
            make_batch(
                rows.ids,
                torch.from_numpy(row.copy()),
                rows.domain_ids,
                corpus.eod_id,
                label_ids=rows.label_ids,
                isolate_documents=config.data.isolate_documents,
                mask_document_start=config.data.mask_document_start,
                valid=rows.trained,
            )
        )
    return StepData(microbatches, position, after, size, label_tokens)


class Loader:
    """Iterates over the steps from a position to the end of the run."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        position: Position,
        dp_rank: int,
        dp_size: int,
        pin: bool,
    ):
        self._config, self._corpus, self._pin = config, corpus, pin
        self._position, self._dp = position, (dp_rank, dp_size)
        self.error: BaseException | None = None
        """Why there are no steps beyond those that are ready; iterating raises it after them."""
        self._blends: dict[int, Blend] = {}
        # Wrong data of any stage is found here, in the calling thread, before the first step.
        check_stages(config, corpus, position)
        ahead = config.data.prefetch_steps
        self._ready: queue.Queue[StepData | BaseException] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if ahead:
            thread = threading.Thread(target=self._produce, name="loopcoder-data", daemon=True)
            self._thread = thread
            thread.start()

    def blend(self, position: Position) -> Blend:
        """Return the sequences of the stage that a position is in."""
        if position.stage not in self._blends:
            self._blends = {position.stage: blend_at(self._config, self._corpus, position)}
        return self._blends[position.stage]

    def _steps(self) -> Iterator[StepData]:
        position = self._position
        while position.step < self._config.train.max_steps:
            data = step_data(self._config, self._corpus, position, *self._dp, self.blend)
            position = data.after
            if self._pin:
                data = replace(data, microbatches=[b.pin() for b in data.microbatches])
            yield data

    def _produce(self) -> None:
        try:
            for data in self._steps():
                self._put(data)
                if self._stop.is_set():
                    return
        except BaseException as error:  # handed to the training thread, which raises it
            self.error = error
            self._put(error)

    def _put(self, item: StepData | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[StepData]:
        return self.steps()

    def steps(self, stopping: Callable[[], bool] = lambda: False) -> Iterator[StepData]:
        """Yield the steps, until `stopping` says so while one is waited for."""
        if self._thread is None:
            yield from self._made_when_asked_for()
            return
        for _ in range(self._position.step, self._config.train.max_steps):
            item = None
            while item is None:
                try:
                    item = self._ready.get(timeout=0.5)
                except queue.Empty:
                    if stopping():
                        return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _made_when_asked_for(self) -> Iterator[StepData]:
        try:
            yield from self._steps()
        except Exception as error:
            self.error = error
            raise

    def close(self) -> None:
        """Stop the thread, if there is one."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)
