"""The evaluations of a run: on its own held-out documents and on sets of the user's own, and what
the model writes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopcoder.checkpoint.state import Specials
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.sampler import Position
from loopcoder.data.unigram import entropies_of
from loopcoder.train.own_sets import OwnSets
from loopcoder.train.samples import Samples
from loopcoder.train.state import TrainState
from loopcoder.train.validation import EvaluationStopped, Evaluator, mixture_mean


class Evaluation:
    """Evaluates while a run trains, and keeps what came out last."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        run_dir: Path | None = None,
        specials: Specials | None = None,
    ):
        """
        Args:
            run_dir: errors say how its run continues.
            specials: What the run says of its tokens.
        """
        self._config, self._corpus = config, corpus
        self._held_out = Evaluator(config, corpus, run_dir)
        self._own_sets = OwnSets(config, corpus, run_dir)
        self._samples = Samples(config, corpus, run_dir, specials)
        self.samples: list[dict[str, Any]] = []
        """Lines of samples.jsonl, of the last evaluation."""
        self._found: dict[str, float] = {}
        self._entropies: dict[str, float] = {}
        self.unigram_entropy: float | None = None
        """What the loss of the last evaluation is compared with, on rank 0."""

    @property
    def loss(self) -> float | None:
        """The loss of the last evaluation; None: there was none."""
        return self._found.get("val/loss")

    def prepare(
        self, stage: int, note: Callable[[str], None], say: Callable[[str], None], *, is_main: bool
    ) -> None:
        """Say what is short of held-out sequences, and get what the loss is compared with.

        Args:
            stage: Data stage in which the run begins.
            note: Records and says a fault.
            say: Says what is evaluated.
        """
        if not self._config.eval.happens:
            return
        for shortage in self._held_out.shortages():
            note(shortage)
        if self._samples.shortage is not None:
            note(self._samples.shortage)
        for size in self._own_sets.sizes(stage):
            say(size)
        if is_main:
            cache = Path(self._config.data.build.cache_dir).expanduser()
            self._entropies = entropies_of(self._corpus, cache, say)

    def __call__(
        self, state: TrainState, stage: int, position: Position, stopping: Callable[[], bool]
    ) -> bool:
        """Evaluate in a data stage; return False where `stopping` broke it off. All ranks call it.

        Raises:
            OutOfMemory: there is too little for the sequences of a length, or for the samples.
        """
        try:
            held_out = self._held_out(state, stage, stopping)
            self._found = held_out | self._own_sets(state, stage, stopping)
            self.samples = self._samples(state, stage, position, stopping)
        except EvaluationStopped:
            return False
        return True

    def fields(self, stage: int) -> dict[str, Any]:
        """Return the fields of a metrics line, after an evaluation in a data stage (rank 0)."""
        mixture = self._config.stages[stage].mixture
        self.unigram_entropy = mixture_mean(self._entropies, mixture)
        return {
            **self._found,
            "val/weighting": "mixture",
            "val/unigram_entropy": self.unigram_entropy,
        }
