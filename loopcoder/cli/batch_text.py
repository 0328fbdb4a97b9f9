"""What a global batch consists of, as a table or as JSON: shares, document borders, text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.report.examples import shortened
from data_pipeline.tokenizer.fim import MIDDLE, PREFIX, SUFFIX
from loopcoder.cli.shares import (
    KINDS,
    NO_LABELS,
    formatted,
    in_one,
    shares,
    summed,
    told_of_skip,
)
from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.labels import Label
from loopcoder.data.sampler import Position, Skipped, advance, begin_step, rank_of_row
from loopcoder.errors import counted
from loopcoder.page import printable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loopcoder.data.composition import Piece, Row


@dataclass(frozen=True)
class Shown:
    """How much of a batch is shown."""

    sequences: int | None
    """None: all."""
    lines: int | None
    """Of the text of each document; None: all."""
    ranks: int | None
    """Data-parallel ranks that the sequences are dealt out to; None: that is not shown."""


class Batches:
    """Describes the global batch of one step."""

    def __init__(
        self, config: Config, corpus: Corpus, position: Position, shown: Shown, *, is_read: bool
    ):
        """
        Args:
            is_read: By a person, who sees where the parts of a document to fill in begin.
        """
        from tokenizers import Tokenizer

        self.config, self.corpus, self.shown = config, corpus, shown
        self.position = begin_step(config, position)
        self.stage = config.stages[position.stage]
        self._is_read = is_read
        _, self.size = advance(config, position)
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
        markers = map(self._tokenizer.token_to_id, (PREFIX, MIDDLE, SUFFIX))
        self._markers = {marker for marker in markers if marker is not None}

    def as_json(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Return everything as JSON can say it."""
        described, tokens, documents = self._read(rows)
        labels = self.corpus.labels
        return {
            "step": self.position.step + 1,
            "stage": self.position.stage,
            "mixture": lowest_terms(self.stage.mixture),
            "sequences": self.size,
            "seq_length": self.stage.seq_length,
            "tokens": self.size * self.stage.seq_length,
            "tokens_before": self.position.tokens,
            "sequences_before": self.position.samples,
            "seed": self.config.seed,
            "reader": self.config.data.reader,
            "skipped": [asdict(skipped) for skipped in self._skipped],
            "corpus": self.corpus.place,
            "fingerprint": self.corpus.fingerprint,
            "labels": [
                {**label._asdict(), "tokens": tokens[i], "documents": documents[i]}
                for i, label in enumerate(labels)
                if tokens[i] or documents[i]
            ],
            "rows": described,
        }

    def as_text(self, rows: Iterable[Row]) -> Iterator[str]:
        """Yield what a person reads, piece by piece."""
        described, tokens, documents = self._read(rows)
        yield self._heading()
        yield self._table(tokens, documents)
        if not self.corpus.has_labels:
            yield f"\n{NO_LABELS}"
        for row in described:
            is_masked = self.corpus.packed_for(row["domain"]) is not None
            yield "\n" + "\n".join(_lines_of(row, is_masked=is_masked))
        if (left := self.size - len(described)) > 0:
            more = counted(left, "sequence")
            yield f"\nand {more} more: --sequences N shows N of them, --full everything"

    def _read(self, rows: Iterable[Row]) -> tuple[list[dict[str, Any]], Counter[int], Counter[int]]:
        """Return the sequences that are shown, and tokens and documents of each label."""
        described: list[dict[str, Any]] = []
        tokens: Counter[int] = Counter()
        documents: Counter[int] = Counter()
        for number, row in enumerate(rows):
            tokens.update(dict(enumerate(row.tokens.tolist())))
            documents.update(p.label for p in row.pieces if p.label is not None)
            if self.shown.sequences is None or number < self.shown.sequences:
                described.append(self._row(number, row))
        return described, tokens, documents

    def _row(self, number: int, row: Row) -> dict[str, Any]:
        place = {}
        if self.shown.ranks is not None:
            micro = self.config.train.micro_batch_size
            rank, microbatch = rank_of_row(number, self.shown.ranks, micro)
            place = {"rank": rank, "microbatch": microbatch}
        documents = [self._document(piece) for piece in row.pieces]
        found = {"sample": row.sample, "domain": row.domain, "epoch": row.epoch}
        return {**found, **place, "documents": documents}

    def _document(self, piece: Piece) -> dict[str, Any]:
        ids = piece.ids.tolist()
        label = None if piece.label is None else self.corpus.labels[piece.label]
        found = {
            "start": piece.start,
            "tokens": len(ids),
            "trained": piece.trained,
            "ends": piece.ends,
            "language": label and label.language,
            "source": label and label.source,
            "is_fim": not self._markers.isdisjoint(ids),
        }
        if self.shown.lines == 0:
            return found
        text = self._decoded(ids[:-1] if piece.ends else ids, "\n" if self._is_read else "")
        if self.shown.lines is not None:
            text = shortened(text, whole=True, most=self.shown.lines)
        return {**found, "text": text}

    def _decoded(self, ids: Sequence[int], between: str) -> str:
        """Return the text of some ids, special tokens spelt out.

        Args:
            between: Put before every part but the first of a document that is to be filled in.
        """
        parts: list[list[int]] = [[]]
        for token in ids:
            if token in self._markers and parts[-1]:
                parts.append([])
            parts[-1].append(token)
        texts = [self._tokenizer.decode(part, skip_special_tokens=False) for part in parts]
        return between.join(texts)

    def _heading(self) -> str:
        stage, position, config = self.stage, self.position, self.config
        weights = lowest_terms(stage.mixture)
        mixture = f"{' : '.join(weights)} = {' : '.join(map(str, weights.values()))}"
        first, last = position.sample, position.sample + self.size - 1
        return (
            f"step {position.step + 1} of {config.train.max_steps}: "
            f"{counted(self.size, 'sequence')} of {counted(stage.seq_length, 'token')}, samples "
            f"{first} to {last} of data stage {position.stage + 1} of {len(config.stages)}\n"
            f"{mixture}; {counted(position.tokens, 'token')} before it; seed {config.seed}, "
            f"data.reader={config.data.reader}\n"
            f"corpus {self.corpus.place}\n"
            + "".join(f"{told_of_skip(skip)}\n" for skip in self._skipped)
        )

    @property
    def _skipped(self) -> list[Skipped]:
        """What was left out just before the step."""
        step = self.position.step + 1
        return [skipped for skipped in self.position.skipped if skipped.step == step]

    def _table(self, tokens: Counter[int], documents: Counter[int]) -> str:
        """Return the shares of domains, languages and sources."""
        weights = lowest_terms(self.stage.mixture)
        wanted = {d: weight / sum(weights.values()) for d, weight in weights.items()}
        parts = []
        for kind in ("domain", *(KINDS if self.corpus.has_labels else ())):
            counts = [summed(self._by_label(found), kind) for found in (tokens, documents)]
            columns = [("documents", formatted(counts[1], "{:,}".format))]
            if kind == "domain":
                columns.append(("wanted", formatted(wanted, "{:.1%}".format)))
            parts.append(shares(kind, counts[0], *columns))
        return in_one(parts)

    def _by_label(self, counts: Counter[int]) -> Iterator[tuple[Label, int]]:
        return ((self.corpus.labels[index], count) for index, count in counts.items())


def _lines_of(row: dict[str, Any], *, is_masked: bool) -> Iterator[str]:
    """Yield the lines of one sequence."""
    place = f", microbatch {row['microbatch']} of rank {row['rank']}" if "rank" in row else ""
    yield f"sample {row['sample']}: {row['domain']}, epoch {row['epoch'] + 1}{place}"
    for document in row["documents"]:
        start, tokens = document["start"], document["tokens"]
        about = [f"{document['trained']:,} trained"] if is_masked else []
        about += [document["language"], document["source"]]
        about += ["fill in the middle"] if document["is_fim"] else []
        about += [] if document["ends"] else ["goes on in another sequence"]
        told = ", ".join([counted(tokens, "token"), *filter(None, about)])
        yield f"  {start} to {start + tokens - 1}: {told}"
        for line in printable(document.get("text", "")).splitlines():
            yield f"    | {line}".rstrip()
