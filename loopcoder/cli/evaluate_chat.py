"""`loopcoder evaluate tasks=chat`: which held-out conversations models are asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loopcoder.checkpoint.format import Checkpoint
from loopcoder.cli.asked import corpus_of, corpus_of_the_run
from loopcoder.config.corpora import joined_corpora
from loopcoder.errors import InputError
from loopcoder.evaluate.chat import TASK, HeldOutTurns, held_out

_FIX = "chat.corpus=FOLDER of a corpus that data=chat built"


def conversations_of(
    models: Mapping[str, Checkpoint | Path], limit: int | None, cache: Path
) -> HeldOutTurns:
    """Return the held-out conversations of the corpora that models were trained on.

    Args:
        models: Checkpoints, or folders for transformers, by name.
        limit: Of conversations; None: all.
        cache: Where corpora are today.

    Raises:
        InputError: a model has no such corpus, it is gone, or they have different ones.
    """
    found: dict[str, HeldOutTurns] = {}
    read: dict[str, HeldOutTurns] = {}
    """By the fingerprint of the corpus."""
    for name, model in models.items():
        if isinstance(model, Path):
            raise InputError.of(
                f"tasks={TASK} of {model}", "it does not say on which corpus it was trained", _FIX
            )
        corpus = model.state().corpus
        if corpus not in read:
            read[corpus] = held_out(_corpora(model, cache), limit)
        found[name] = read[corpus]
    first, *others = found
    for name in others:
        if found[name].fingerprint != found[first].fingerprint:
            raise InputError.of(
                f"tasks={TASK}: {first} and {name} were trained on different corpora",
                "their numbers would stand side by side and be of other conversations",
                f"{_FIX}, which all are asked, or a command for each",
            )
    return found[first]


def _corpora(checkpoint: Checkpoint, cache: Path) -> list[Path]:
    """Return the folders of the corpora that a checkpoint was trained on."""
    trained = checkpoint.config()
    if joined_corpora(trained.data):
        corpus = corpus_of(checkpoint, trained.data, cache)
    else:
        corpus = corpus_of_the_run(checkpoint, trained, cache)
    return [member.dir for member in corpus.members]
