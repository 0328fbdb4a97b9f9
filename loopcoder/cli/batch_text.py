"""What a global batch consists of, as a table or as JSON: shares, document borders, text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.report.examples import shortened
from data_pipeline.report.page import printable
from data_pipeline.tokenizer.fim import MIDDLE, PREFIX, SUFFIX
from loopcoder.cli.listing import table
from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.labels import Label
from loopcoder.data.sampler import Position, advance, rank_of_row
from loopcoder.errors import counted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loopcoder.data.composition import Piece, Row

_MOST = 20
"""Languages, or sources, of a table; --json has all."""
UNKNOWN = "not recorded"
NO_LABELS = "this corpus does not record the language and the source of its documents"


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

        self.config, self.corpus, self.position, self.shown = config, corpus, position, shown
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
            "corpus": str(self.corpus.dir),
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
        wanted = lowest_terms(self.stage.mixture)
        parts = [self._shares("domain", tokens, documents, wanted)]
        if told := has_labels(self.corpus):
            parts += [self._shares(kind, tokens, documents) for kind in ("language", "source")]
        yield table([row for part in parts for row in part])
        if not told:
            yield f"\n{NO_LABELS}"
        for row in described:
            yield "\n" + "\n".join(_lines_of(row))
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
        return {"sample": row.sample, "domain": row.domain, **place, "documents": documents}

    def _document(self, piece: Piece) -> dict[str, Any]:
        ids = piece.ids.tolist()
        label = None if piece.label is None else self.corpus.labels[piece.label]
        found = {
            "start": piece.start,
            "tokens": len(ids),
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
            f"corpus {self.corpus.dir}\n"
        )

    def _shares(
        self,
        kind: str,
        tokens: Counter[int],
        documents: Counter[int],
        wanted: dict[str, int] | None = None,
    ) -> Iterator[list[str]]:
        """Yield the rows of the table that tell the shares of domains, languages or sources."""

        def name(label: Label) -> str:
            return str(getattr(label, kind) or UNKNOWN)

        counts = summed(tokens, self.corpus.labels, name)
        pieces = summed(documents, self.corpus.labels, name)
        total, all_wanted = sum(counts.values()) or 1, sum((wanted or {}).values())
        if kind != "domain":
            yield [""] * 5
        yield [kind, "tokens", "share", "wanted" if wanted else "", "documents"]
        for key, count in counts.most_common(_MOST):
            asked = f"{wanted[key] / all_wanted:.1%}" if wanted and key in wanted else ""
            yield [f"  {key}", f"{count:,}", f"{count / total:.1%}", asked, f"{pieces[key]:,}"]
        if (more := len(counts) - _MOST) > 0:
            yield [f"  {more} more", *[""] * 4]


def has_labels(corpus: Corpus) -> bool:
    """Say whether a corpus knows more of its documents than their domain."""
    return any(label.language or label.source for label in corpus.labels)


def summed(
    counts: Counter[int], labels: Sequence[Label], name: Callable[[Label], str]
) -> Counter[str]:
    """Return counts by label as counts by what a label is called; what has none is left out."""
    found: Counter[str] = Counter()
    for index, count in counts.items():
        if count:
            found[name(labels[index])] += count
    return found


def _lines_of(row: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of one sequence."""
    place = f", microbatch {row['microbatch']} of rank {row['rank']}" if "rank" in row else ""
    yield f"sample {row['sample']}: {row['domain']}{place}"
    for document in row["documents"]:
        start, tokens = document["start"], document["tokens"]
        about = [document["language"], document["source"]]
        about += ["fill in the middle"] if document["is_fim"] else []
        about += [] if document["ends"] else ["goes on in another sequence"]
        told = ", ".join([counted(tokens, "token"), *filter(None, about)])
        yield f"  {start} to {start + tokens - 1}: {told}"
        for line in printable(document.get("text", "")).splitlines():
            yield f"    | {line}".rstrip()
