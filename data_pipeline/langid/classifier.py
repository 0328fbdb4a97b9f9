"""Programming language of code: what its row, name or first line says, else a classifier's guess.

The classifier is a fastText model of tokens; `tools/train_langid.py` trains it on the part of a
corpus whose names tell the language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.langid.names import (
    HEAD_BYTES,
    UNKNOWN,
    Verdict,
    canonical,
    domain_of,
    is_known,
    judge,
    may_be,
)
from data_pipeline.schema import Document, Tally
from loopcoder.backends import require
from loopcoder.config.build import BuildConfig
from loopcoder.errors import InputError
from loopcoder.storage.digest import file_digest

FORMAT_VERSION = 1
"""Of the card and of `features`: a classifier is good only for the features it was trained on."""

MIN_CONFIDENCE = BuildConfig.language_confidence
"""The default of a build, for side commands, which have no config."""
PIECE_CHARS = 1000
"""Characters that are read from the start of a document, and from its middle, since licences fill
the start of many files. With 2,000 of each, 97.9% of held-out files were right instead of 98.0%."""
LABEL = "\u23ce#"
"""fastText's prefix of labels; `features` never returns a token that starts so."""

_LINE_END = "\u23ce"
_TOKEN = re.compile(r"\n[ \t]*|[A-Za-z_]\w*|\d\w*|[^\w\s]{1,3}|[^\W\d]+")
_MAX_TOKEN_CHARS = 24
_FIRST_BYTES = 4096


def features(text: str) -> str:
    """Return the tokens that fastText sees: words, signs, numbers as 0, line ends with indent."""
    if len(text) > 2 * PIECE_CHARS:
        middle = len(text) // 2
        text = text[:PIECE_CHARS] + "\n" + text[middle : middle + PIECE_CHARS]
    found = []
    for token in _TOKEN.findall(text):
        first = token[0]
        if first == "\n":
            depth = "t" if "\t" in token else str(min(len(token) - 1, 9))
            found.append(_LINE_END + depth)
        elif first.isdigit():
            found.append("0")
        # fastText ends words at NUL as well
        elif first != _LINE_END and "\0" not in token:
            found.append(token[:_MAX_TOKEN_CHARS])
    return " ".join(found)


def card_path(classifier: Path) -> Path:
    """Return the file beside a classifier that describes it; it is written last."""
    return classifier.with_name(classifier.name + ".json")


@dataclass(frozen=True)
class LanguageClassifier:
    """A trained classifier. Its `hash` belongs in the fingerprint of everything that it labels."""

    path: Path
    hash: str
    """xxh3-128 of the classifier's file, in hex."""
    languages: tuple[str, ...]
    card: dict[str, Any] = field(repr=False, compare=False)
    """Training: documents, accuracy by language, confusions, versions."""
    _fasttext: Any = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str | Path) -> LanguageClassifier:
        """Open a classifier after comparing it with its card.

        Raises:
            InputError: fastText is not installed, or the classifier or its card is missing, altered
                or of another version.
        """
        path = Path(path).expanduser()
        fix = "train it again: loopcoder data train-langid PATH... --out FILE"
        try:
            card = json.loads(card_path(path).read_text(encoding="utf-8"))
            version, wanted, languages = (
                card["format_version"],
                card["xxh3_128"],
                tuple(card["languages"]),
            )
            found = file_digest(path)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError.of(
                f"{path} is no classifier of programming languages: {e!r}",
                f"train-langid writes a classifier and {card_path(path).name} beside it",
                fix,
            ) from e
        if version != FORMAT_VERSION:
            raise InputError.of(
                f"{card_path(path)} has format_version {version}",
                f"this code reads version {FORMAT_VERSION}, which cuts text into other tokens",
                fix,
            )
        if found != wanted:
            raise InputError.of(
                f"{path} has the hash {found}, its card says {wanted}",
                "it was altered or cut off after it was trained",
                fix,
            )
        return cls(path, found, languages, card, import_fasttext().load_model(str(path)))

    def predict(self, text: str) -> tuple[str, float]:
        """Return the likeliest language and the confidence in it, from 0 to 1."""
        return self.predict_features(features(text))

    def predict_features(self, tokens: str) -> tuple[str, float]:
        """Do the same with what `features` returned."""
        if not tokens:
            return UNKNOWN, 0.0
        labels, confidences = self._fasttext.predict(tokens)
        return self.languages[int(labels[0].removeprefix(LABEL))], min(float(confidences[0]), 1.0)


def label(
    document: Document, classifier: LanguageClassifier | None, min_confidence: float
) -> tuple[str, str]:
    """Return the language of a document of code and where it is from.

    The first that tells counts: the language that its row or its file gave it when it was read
    (`field`, in its usual spelling), `meta["path"]` (`name`), a shebang or a modeline
    (`first_line`), the classifier (`classifier`). Where nothing does, or the classifier calls it
    prose or is less sure than `min_confidence`, the language is `unknown` (`nothing`).

    Where several languages share the extension of a file and nothing in it decides between them,
    the one that most such files are in gives way to another of them that the classifier is at
    least `min_confidence` sure of.

    Raises:
        InputError: enry, which reads modelines, is not installed.
    """
    text = document.text
    if document.language not in ("", UNKNOWN):
        language, teller = canonical(document.language), "field"
        if classifier is None or "row" in document.meta:
            return language, teller
        path: object = document.path
    else:
        language, teller = UNKNOWN, "nothing"
        path = document.meta.get("path", None if "row" in document.meta else document.path)
    verdict = _of_name(path, text)
    if verdict is not None and language in ("", UNKNOWN) and verdict.language != UNKNOWN:
        language, teller = verdict.language, "name"
    if language != UNKNOWN and (verdict is None or verdict.is_sure or classifier is None):
        return language, teller
    if language == UNKNOWN and (stated := _stated(text)):
        return stated, "first_line"
    if classifier is not None:
        found, confidence = classifier.predict(text)
        is_possible = verdict is None or may_be(str(path), found)
        if confidence >= min_confidence and domain_of(found) == "code" and is_possible:
            return found, "classifier"
    return language, teller


def _of_name(path: object, text: str) -> Verdict | None:
    if not isinstance(path, str):
        return None
    return judge(path, text[:HEAD_BYTES].encode(errors="replace"))


def label_code(
    documents: Iterable[Document],
    tally: Tally,
    classifier: LanguageClassifier | None,
    min_confidence: float,
) -> Iterator[Document]:
    """Yield prose as it is, and code with its language; code of unknown language is dropped.

    Notes count what told the languages: `language_by_field`, `_by_name`, `_by_first_line`,
    `_by_classifier`.
    """
    for document in documents:
        tally.rows_in += 1
        if document.domain == "code":
            language, teller = label(document, classifier, min_confidence)
            if language == UNKNOWN:
                tally.drop("unknown_language", document.place)
                continue
            tally.notes[f"language_by_{teller}"] += 1
            if language != document.language:
                document = replace(document, language=language)  # noqa: PLW2901
        tally.rows_out += 1
        yield document


def _stated(text: str) -> str | None:
    """Return the language that a shebang or a modeline of Vim or Emacs names, if it is code."""
    lines = text[:_FIRST_BYTES].split("\n", 5)[:5] + text[-_FIRST_BYTES:].rsplit("\n", 5)[-5:]
    # hardly any document has one, and enry takes a copy of the text
    if not any(
        sign in line for line in lines for sign in ("#!", "-*-", "vi:", "vim:", "ex:", "Vim:")
    ):
        return None
    data = "\n".join(lines).encode(errors="replace")
    enry = _import_enry()
    for guess in (enry.get_language_by_shebang(data), enry.get_language_by_modeline(data)):
        language = canonical(guess.language)
        if guess.safe and is_known(language) and domain_of(language) == "code":
            return language
    return None


def import_fasttext() -> Any:
    """Return fastText. Raises InputError if it is not installed."""
    return require(
        "fasttext",
        "a classifier of programming languages is asked for, and fastText is not installed",
        "fastText trains and runs it",
    )


def _import_enry() -> Any:
    return require(
        "enry",
        "a document of code has no language, and enry is not installed",
        "its first and last lines may name its language, and enry reads them",
    )
