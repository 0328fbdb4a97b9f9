"""The loss on validation sets of the user's own (`eval.corpora`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.heldout import HeldOut
from loopcoder.data.own_sets import held_out_tokens, open_own_sets
from loopcoder.errors import counted
from loopcoder.train.state import TrainState
from loopcoder.train.validation import Evaluator


class OwnSets:
    """Evaluates sets that have nothing to do with what a run is trained on but the tokenizer.

    Each is evaluated as the run's own held-out documents are, with its own domains, weighted by the
    held-out tokens that they have, in place of those of a data stage.
    """

    def __init__(self, config: Config, corpus: Corpus, run_dir: Path | None = None):
        """Open the sets; nothing of them but their sizes is compared with their manifests.

        Args:
            corpus: What the run is trained on.
            run_dir: of a run that trains: errors say how it continues.

        Raises:
            InputError: as `open_own_sets` does.
        """
        self._evaluators = {
            name: Evaluator(_config_for(config, own), own, run_dir)
            for name, own in open_own_sets(config, corpus, "size").items()
        }

    def sizes(self, stage: int = -1) -> Iterator[str]:
        """Yield a sentence for each set that says how much is evaluated in a data stage."""
        for name, evaluator in self._evaluators.items():
            yield f"eval.corpora.{name}: {', '.join(map(_size, evaluator.sets(stage)))}"

    def __call__(
        self, state: TrainState, stage: int = -1, stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Evaluate every set at the length of a data stage, and at `eval.lengths`; every rank must
        call it and gets the same.

        Returns:
            the fields `val/<name>/...` of a metrics line.

        Raises:
            EvaluationStopped: `stopping` said so, on all ranks.
            OutOfMemory: there is too little for the sequences of a length.
        """
        return {
            f"val/{name}/{field.removeprefix('val/')}": value
            for name, evaluator in self._evaluators.items()
            for field, value in evaluator(state, stage, stopping).items()
        }


def _size(held_out: HeldOut) -> str:
    tokens, trained = held_out.num_tokens, held_out.num_trained
    of_mask = "" if trained == tokens else f" ({trained:,} trained)"
    sequences = counted(len(held_out.rows), "sequence")
    return f"{tokens:,} tokens{of_mask} of {held_out.domain} in {sequences}"


def _config_for(config: Config, corpus: Corpus) -> Config:
    """Return a config that evaluates all of a corpus, its domains weighted by their tokens."""
    mixture = {domain: float(tokens) for domain, tokens in held_out_tokens(corpus).items()}
    stages = [replace(stage, mixture=None, corpora=None) for stage in config.data.stages]
    sequences = config.eval.corpora_sequences or max(map(int, mixture.values()))
    return replace(
        config,
        data=replace(config.data, mixture=mixture, corpora=[], stages=stages),
        eval=replace(config.eval, sequences_per_domain=sequences),
    )
