"""What a run has trained on so far, by its ledger and by its position in the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.history import stand_before
from loopcoder.cli.corpora import corpus_of_run
from loopcoder.cli.shares import KINDS, formatted, in_one, shares, summed, told_of_skip
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.labels import Label
from loopcoder.data.ledger import LEDGER_FILE, Ledger
from loopcoder.data.sampler import Mixture, Position, given, position_at
from loopcoder.errors import InputError, LoopcoderError, counted
from loopcoder.storage.files import parsing
from loopcoder.storage.signals import ended_at_once


@dataclass(frozen=True)
class Account:
    """What a run has trained on up to a position."""

    folder: Path
    config: Config
    position: Position
    ledger: Ledger | None
    """None: a version trained it that kept none."""
    corpus: str | None = None
    """Folder or URL; None: it is gone, or cannot be opened."""
    fault: str = ""
    """Why there is none."""
    epochs: dict[str, float] = field(default_factory=dict)
    """How often each domain was gone through."""
    epochs_at_end: dict[str, float] = field(default_factory=dict)
    """After `train.max_steps`."""

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens that its stages come to by the mixtures, by domain; {}: of a run of an earlier
        version, whose stages before the current one no position tells."""
        position, stage = self.position, self.config.stages[self.position.stage]
        if position.before is None and position.stage > 0:
            return {}
        found = {
            domain: sum(length * sequences for length, sequences in parts)
            for domain, parts in given(stage, position).items()
        }
        for skipped in position.skipped:
            of = self.config.stages[skipped.stage]
            mixture = Mixture(of.mixture)
            ends = mixture.counts(skipped.sample + skipped.samples)
            for domain, count in mixture.counts(skipped.sample).items():
                found[domain] -= (ends[domain] - count) * of.seq_length
        return found

    @property
    def counted(self) -> list[tuple[Label, int]]:
        """Tokens by label, of the ledger or, without one, by domain as the mixtures give them."""
        if self.ledger is None:
            return [(Label(domain, None, None), n) for domain, n in self.tokens.items()]
        return [(Label(e.domain, e.language, e.source), e.tokens) for e in self.ledger.entries]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON can say it."""
        ledger = self.ledger or Ledger()
        wanted = self.tokens
        total = sum(wanted.values()) or 1
        return {
            "folder": str(self.folder),
            "step": self.position.step,
            "max_steps": self.config.train.max_steps,
            "stage": self.position.stage,
            "tokens": self.position.tokens,
            "has_ledger": self.ledger is not None,
            "since_step": ledger.since_step,
            "since_tokens": ledger.since_tokens,
            "labels": [{**label._asdict(), "tokens": count} for label, count in self.counted],
            "domains": {
                domain: {
                    "tokens": count,
                    "wanted": wanted[domain] / total if domain in wanted else None,
                    "epochs": self.epochs.get(domain),
                    "epochs_at_end": self.epochs_at_end.get(domain),
                }
                for domain, count in summed(self.counted, "domain").items()
            },
            "skipped": [asdict(skipped) for skipped in self.position.skipped],
            "corpus": self.corpus,
        }

    def as_text(self) -> str:
        """Return what a person reads."""
        position, steps = self.position, self.config.train.max_steps
        heading = (
            f"{self.folder}: step {position.step} of {steps}, "
            f"{counted(position.tokens, 'token')}, data stage {position.stage + 1} of "
            f"{len(self.config.stages)}"
        )
        where = f"{self.fault}, so that epochs are not known"
        lines = [heading, f"corpus {self.corpus or where}\n", self._table()]
        return "\n".join([*lines, *self._notes()])

    def _table(self) -> str:
        wanted = self.tokens
        total = sum(wanted.values()) or 1
        columns = [("wanted", {d: f"{count / total:.1%}" for d, count in wanted.items()})]
        if self.epochs:
            columns.append(("epochs", formatted(self.epochs, "{:.3g}".format)))
            columns.append(("at the end", formatted(self.epochs_at_end, "{:.3g}".format)))
        parts = [shares("domain", summed(self.counted, "domain"), *columns)]
        if any(label.language or label.source for label, _ in self.counted):
            parts += [shares(kind, summed(self.counted, kind)) for kind in KINDS]
        return in_one(parts)

    def _notes(self) -> Iterator[str]:
        if self.ledger is None:
            yield (
                "\nthe version that trained this run kept no ledger: these are the tokens that its "
                "mixture comes to, and their languages and sources are not known"
            )
        elif self.ledger.since_step:
            yield (
                f"\ncounted from step {self.ledger.since_step} on: a version without a ledger "
                f"trained the {counted(self.ledger.since_tokens, 'token')} before"
            )
        for skipped in self.position.skipped:
            yield f"\n{told_of_skip(skipped)}"


def account_of(folder: Path, cache: Path) -> Account:
    """Return what a run has trained on up to its newest save, or up to a checkpoint.

    Raises:
        InputError: nothing of it is saved, or a file is damaged.
    """
    config, position, ledger = _saved(folder)
    account = Account(folder, config, position, ledger)
    try:
        return _with_epochs(account, corpus_of_run(folder, config, cache))
    except LoopcoderError as error:  # what was trained on is known all the same
        return replace(account, fault=str(error).splitlines()[0])


def _saved(folder: Path) -> tuple[Config, Position, Ledger | None]:
    """Return config, position and ledger of the newest save in a folder."""
    if (folder / layout.STATE).is_file():
        return _of(layout.find(folder))
    saved, recorded = layout.complete(folder / "checkpoints"), _ledger_file(folder)
    if saved and (recorded is None or recorded[0] <= saved[-1].step):
        config, position, ledger = _of(saved[-1])
        has_newer = (folder / layout.CONFIG).is_file()  # of a command that may have more steps
        return layout.trained_with(folder) if has_newer else config, position, ledger
    if recorded is None:
        raise InputError.of(
            f"{folder} has neither a checkpoint nor a {LEDGER_FILE}",
            "what was trained on is written down with every save",
            "its first save, or loopcoder data stats CORPUS; loopcoder train continues the run",
        )
    stand = stand_before(folder, recorded[0] + 1)
    return stand.config, stand.position, recorded[1]


def _of(checkpoint: Checkpoint) -> tuple[Config, Position, Ledger | None]:
    state = checkpoint.state()
    return checkpoint.config(), state.position, state.ledger


def _ledger_file(run_dir: Path) -> tuple[int, Ledger] | None:
    """Return step and content of a run's ledger; None: it has none.

    Raises:
        InputError: it is damaged.
    """
    path = run_dir / LEDGER_FILE
    saved = layout.complete(run_dir / "checkpoints")
    fix = f"rm {path}; the next save of the run writes it again"
    if saved:
        fix += f". loopcoder data stats {saved[-1].path} has that of its newest checkpoint"
    why = "it says what the run has trained on, and was cut off or altered"
    with suppress(FileNotFoundError), parsing(path, why, fix):
        content = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: content[name] for name in Ledger.__dataclass_fields__}
        return int(content["step"]), TypeAdapter(Ledger).validate_python(fields)
    return None


def _with_epochs(account: Account, corpus: Corpus) -> Account:
    """Add how often the run has gone, and will go, through its corpus."""
    with ended_at_once():
        from loopcoder.data.blend import epochs_at

    config, position = account.config, account.position
    end = position_at(config, position, config.train.max_steps)
    return replace(
        account,
        corpus=corpus.place,
        epochs=epochs_at(config, corpus, position),
        epochs_at_end=epochs_at(config, corpus, end),
    )
