"""The continuations that a run's evaluations write (`eval.samples`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loopcoder.chat.templates import end_ids
from loopcoder.checkpoint.fp8_history import unchanged
from loopcoder.checkpoint.state import Specials
from loopcoder.config.check_precision import sequence_multiple
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.sampler import Position
from loopcoder.data.tokenizer import read_tokenizer
from loopcoder.errors import counted
from loopcoder.train.generation import Choose, continued
from loopcoder.train.out_of_memory import named_out_of_memory, smaller_samples
from loopcoder.train.prompts import Prompt, prompts_of
from loopcoder.train.state import TrainState
from loopcoder.train.validation import EvaluationStopped


class Samples:
    """Continues the same prompts at every evaluation. Nothing of training changes."""

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
            specials: What the run says of its tokens: what ends an answer in a chat.

        Raises:
            InputError: a given prompt cannot be continued.
        """
        self._config, self._corpus, self._run_dir = config, corpus, run_dir
        self._prompts: list[Prompt] = []
        if config.eval.samples:
            self._tokenizer = read_tokenizer(corpus.tokenizer_path)
            self._prompts = prompts_of(config, corpus, self._tokenizer)
            self._ends = {corpus.eod_id}
            if corpus.is_packed:
                self._ends |= _ends_of_answers(self._tokenizer, specials)

    @property
    def shortage(self) -> str | None:
        """A sentence, where there are fewer prompts than asked for."""
        asked, there = self._config.eval.samples, len(self._prompts)
        if there == asked:
            return None
        room = " with room for an answer" if self._corpus.is_packed else ""
        return f"eval.samples={asked}, but there are {counted(there, 'held-out document')}{room}"

    def __call__(
        self, state: TrainState, stage: int, position: Position, stopping: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        """Continue every prompt. Every rank must call it and gets the same.

        Args:
            state: The model.
            stage: Index of the data stage, whose RoPE base is taken.
            position: How far the run is.
            stopping: says, the same on all ranks, whether to break off; asked for every token.

        Returns:
            the lines of samples.jsonl.

        Raises:
            EvaluationStopped: it was broken off.
            OutOfMemory: there is too little for all of them at once.
        """
        config, asked = self._config, self._config.eval
        if not self._prompts:
            return []

        def go_on() -> None:
            if stopping():
                raise EvaluationStopped

        state.network.set_rope_theta(config.stages[stage].rope_theta)
        what = f"{counted(len(self._prompts), 'continuation')} at once (eval.samples)"
        state.network.eval()
        try:
            with (
                named_out_of_memory(what, smaller_samples(config, self._run_dir)),
                unchanged(state.network),
            ):
                found = continued(
                    state,
                    [prompt.ids for prompt in self._prompts],
                    asked.sample_tokens,
                    self._choose(position.step),
                    eod=self._corpus.eod_id,
                    ends=self._ends,
                    vocab_size=self._corpus.vocab_size,
                    multiple=sequence_multiple(config),
                    before_token=go_on,
                )
        finally:
            state.network.train()
        return [
            {
                "step": position.step,
                "tokens": position.tokens,
                "loops": config.model.num_loops,
                "sample": number,
                **self._texts(prompt, ids),
            }
            for number, (prompt, ids) in enumerate(zip(self._prompts, found, strict=True))
        ]

    def _choose(self, step: int) -> Choose:
        """Return what chooses tokens: each sample of a step has draws of its own."""
        temperature = self._config.eval.sample_temperature
        if temperature == 0:
            return lambda logits: logits.argmax(-1)
        samples = range(len(self._prompts))
        generators = [np.random.default_rng([self._config.seed, step, n]) for n in samples]

        def draw(logits: Tensor) -> Tensor:
            noise = np.stack([generator.gumbel(size=logits.shape[1]) for generator in generators])
            # the largest of logits with Gumbel noise is a draw from their softmax
            return (logits.cpu().double() / temperature + torch.from_numpy(noise)).argmax(-1)

        return draw

    def _texts(self, prompt: Prompt, ids: Sequence[int]) -> dict[str, Any]:
        """Return what a line says of a continuation, in text."""
        fields = {
            "domain": prompt.domain,
            "prompt": self._text(prompt.ids),
            "continuation": self._text(ids),
            "finish": "stop" if ids[-1] in self._ends else "length",
        }
        if prompt.domain is not None:
            fields["reference"] = self._text(prompt.rest)
        return fields

    def _text(self, ids: Sequence[int]) -> str:
        if ids and ids[-1] in self._ends:
            ids = ids[:-1]
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _ends_of_answers(tokenizer: Any, specials: Specials | None) -> set[int]:
    """Return the tokens that end an answer, as generation from a checkpoint has them."""
    named = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    if specials is None:
        return set(end_ids(named, None, None))
    return set(end_ids(named, specials.ids.get("eos_token_id"), specials.names.get("eos_token")))
