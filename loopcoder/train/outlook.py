"""What a run will do, before its first step: parameters, tokens, FLOPs, epochs of the corpus."""

from __future__ import annotations

from loopcoder.config.schema import Config
from loopcoder.data.blend import Blend
from loopcoder.data.corpus import Corpus
from loopcoder.data.sampler import Position, batch_size
from loopcoder.errors import counted
from loopcoder.metrics.sinks import human
from loopcoder.model.flops import parameters, train_flops_per_token

_EPOCHS = 4
"""Up to so many, repeated data is about as good as new (Muennighoff et al., arXiv 2305.16264)."""


def outlook(config: Config, corpus: Corpus, vocab_size: int, position: Position) -> list[str]:
    """Return the lines that a run starts with; `position` is where it starts."""
    steps, model = config.train.max_steps - position.step, config.model
    sequences = _sequences(config, position, steps)
    length = config.stages[position.stage].seq_length
    tokens = sequences * length
    flops = tokens * train_flops_per_token(model, vocab_size, length)[0]
    uses = f", used in {model.num_loops} loops" if model.num_loops > 1 else ""
    lines = [
        f"{parameters(model, vocab_size):,} parameters{uses}; {human(tokens)} tokens in "
        f"{counted(steps, 'step')}, {flops / 1e15:.3g} PFLOP"
    ]
    if not corpus.has_labels:
        lines.append(
            "the corpus does not keep which language and source a document is of: losses and "
            "tokens are counted by domain (a corpus that is built now keeps them)"
        )
    sizes = ", ".join(f"{human(corpus.tokens(d, 'train'))} of {d}" for d in corpus.domains)
    if len(config.stages) > 1:
        return [*lines, f"corpus: {sizes} (tokens)"]
    epochs = Blend(corpus, config.stages[0], 0, config.seed).epochs(position.sample + sequences)
    seen = ", ".join(f"{d} {n:.2g}" for d, n in epochs.items())
    lines.append(f"corpus: {sizes} (tokens); epochs at the end: {seen}")
    if max(epochs.values()) > _EPOCHS:
        lines.append(
            f"warning: more than {_EPOCHS} epochs add little: more data, or fewer train.max_steps"
        )
    return lines


def _sequences(config: Config, position: Position, steps: int) -> int:
    ramp, full = config.train.batch_ramp, config.train.global_batch_size
    done = 0
    while ramp is not None and steps > 0 and position.samples + done < ramp.samples:
        done += batch_size(full, ramp, position.samples + done)
        steps -= 1
    return done + steps * full
