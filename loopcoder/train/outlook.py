"""What a run will do, before its first step: parameters, tokens, FLOPs, epochs of the corpus."""

from __future__ import annotations

from loopcoder.config.schema import Config
from loopcoder.data.blend import blend_at, check_stages, epochs_at
from loopcoder.data.corpus import Corpus
from loopcoder.data.mirror import small_cache
from loopcoder.data.sampler import Position, position_at
from loopcoder.errors import counted
from loopcoder.metrics.words import human
from loopcoder.model.flops import parameters, train_flops_per_token

_EPOCHS = 4
"""Up to so many, repeated data is about as good as new (Muennighoff et al., arXiv 2305.16264)."""


def outlook(config: Config, corpus: Corpus, vocab_size: int, position: Position) -> list[str]:
    """Return the lines that a run starts with; `position` is where it starts."""
    end, model = position_at(config, position, config.train.max_steps), config.model
    steps, tokens = end.step - position.step, end.tokens - position.tokens
    flops = 0.0
    begun = position.tokens
    for stage in config.stages[position.stage : end.stage + 1]:
        until = min(stage.until or end.tokens, end.tokens)
        objective, length = config.objective, stage.seq_length
        flops += (until - begun) * train_flops_per_token(model, vocab_size, length, objective)[0]
        begun = until
    count = parameters(model, vocab_size, config.objective)
    uses = f", used in {model.num_loops} loops" if model.num_loops > 1 else ""
    lines = [
        f"{count:,} parameters{uses}; {human(tokens)} tokens in "
        f"{counted(steps, 'step')}, {flops / 1e15:.3g} PFLOP"
    ]
    if not corpus.has_labels:
        lines.append(
            "the corpus does not keep which language and source a document is of: losses and "
            "tokens are counted by domain (a corpus that is built now keeps them)"
        )
    sizes = ", ".join(f"{human(corpus.tokens(d, 'train'))} of {d}" for d in corpus.domains)
    if len(config.stages) > 1 and end.before is None:  # each stage has epochs of its own
        return [*lines, f"corpus: {sizes} (tokens)"]
    epochs = epochs_at(config, corpus, end)
    seen = ", ".join(f"{d} {n:.2g}" for d, n in epochs.items())
    lines.append(f"corpus: {sizes} (tokens); epochs at the end: {seen}")
    if corpus.is_packed:
        lines += _of_chats(config, corpus, position)
    lines += [*check_stages(config, corpus, position), *small_cache(config, corpus)]
    if max(epochs.values()) > _EPOCHS:
        lines.append(
            f"warning: more than {_EPOCHS} epochs add little: more data, or fewer train.max_steps"
        )
    return lines


def _of_chats(config: Config, corpus: Corpus, position: Position) -> list[str]:
    """Return what to say of a run on conversations, of which a few epochs are trained."""
    batch = config.train.global_batch_size
    steps = blend_at(config, corpus, position).steps_of_epoch(batch)
    packed = [domain for domain in steps if corpus.packed_for(domain) is not None]
    lines = [
        f"an epoch of {domain} has {counted(round(steps[domain]), 'step')} of "
        f"{counted(batch, 'sequence')}, each of whole conversations"
        for domain in packed
    ]
    if position.step == 0 and config.checkpoint.init_from is None:
        lines.append(
            "warning: this run begins with random weights, and conversations are there to tune a "
            "model that was trained: checkpoint.init_from=RUN"
        )
    return lines
