"""What a tokenizer with a normaliser, such as NFC, makes of documents: their ids stand for other
text than they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from unicodedata import is_normalized

from data_pipeline.schema import Document, Tally
from data_pipeline.tokenizer.encoder import Encoder
from loopcoder.errors import counted

DOCUMENTS, CHARACTERS = "changed_by_tokenizer", "characters_changed_by_tokenizer"


def note_changes(encoder: Encoder, documents: Iterable[Document], tally: Tally) -> None:
    """Count the documents whose text the normaliser changes, and their characters that go."""
    if encoder.lossless:
        return
    is_nfc = encoder.normaliser == "NFC"
    for document in documents:
        text = document.text
        # quick to tell, and true of nearly all documents
        if is_nfc and (text.isascii() or is_normalized("NFC", text)):
            continue
        changed = encoder.normalised(text)
        if changed != text:
            tally.notes[DOCUMENTS] += 1
            tally.notes[CHARACTERS] += (Counter(text) - Counter(changed)).total()


def changes_line(tallies: Iterable[Tally], normaliser: str | None) -> str | None:
    """Return the line that says what of the corpus was changed; None: nothing can be."""
    if normaliser is None:
        return None
    notes: Counter[str] = Counter()
    documents = 0
    for tally in tallies:
        notes.update(tally.notes)
        documents += tally.rows_in
    return (
        f"data: warning: the tokenizer's normaliser ({normaliser}) changes text: "
        f"{notes[DOCUMENTS]:,} of {counted(documents, 'document')}, "
        f"{counted(notes[CHARACTERS], 'character')}"
    )
