"""Compare the language labels of a corpus with Magika's, on a sample.

    loopcoder data audit PATH... [--model langid.bin] [--share 0.01]

Magika (Fratantonio et al. 2024) reads content only, and is a hundred times slower than our labels,
so it sees one document in a hundred, chosen by a hash of the document's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.langid.classifier import MIN_CONFIDENCE, UNKNOWN, LanguageClassifier, label
from data_pipeline.schema import Document
from data_pipeline.tools.arguments import Parser
from data_pipeline.tools.train_langid import add_paths, documents_of
from loopcoder.backends import require
from loopcoder.errors import counted

SHARE = 0.01
_SEED = 7
"""Of the hash that chooses, so that it agrees with no other choice by id."""
_LABELS = {
    "Assembly": "asm",
    "Awk": "awk",
    "Batchfile": "batch",
    "C": "c",
    "C#": "cs",
    "C++": "cpp",
    "CMake": "cmake",
    "CSS": "css scss",
    "CUDA": "cpp c",
    "Clojure": "clojure",
    "CoffeeScript": "coffeescript",
    "Common Lisp": "lisp",
    "Dart": "dart",
    "Dockerfile": "dockerfile",
    "Elixir": "elixir",
    "Emacs Lisp": "lisp",
    "Erlang": "erlang",
    "Fortran": "fortran",
    "Go": "go",
    "Groovy": "groovy gradle",
    "HTML": "html",
    "Haskell": "haskell",
    "Java": "java",
    "JavaScript": "javascript",
    "Jinja": "jinja",
    "Julia": "julia",
    "Kotlin": "kotlin",
    "Lua": "lua",
    "M4": "m4",
    "MATLAB": "matlab",
    "Makefile": "makefile",
    "Markdown": "markdown",
    "OCaml": "ocaml",
    "Objective-C": "objectivec",
    "Objective-C++": "objectivec",
    "PHP": "php",
    "Pascal": "pascal",
    "Perl": "perl",
    "PowerShell": "powershell",
    "Prolog": "prolog",
    "Protocol Buffer": "proto",
    "Python": "python",
    "R": "r",
    "Ruby": "ruby gemfile gemspec",
    "Rust": "rust",
    "SQL": "sql",
    "Scala": "scala",
    "Shell": "shell",
    "Solidity": "solidity",
    "Starlark": "bazel",
    "Swift": "swift",
    "TOML": "toml",
    "Tcl": "tcl",
    "TypeScript": "typescript",
    "VHDL": "vhdl",
    "Verilog": "verilog",
    "Vue": "vue",
    "XML": "xml svg rdf",
    "YAML": "yaml",
    "Zig": "zig",
}
MAGIKA: dict[str, frozenset[str]] = {n: frozenset(v.split()) for n, v in _LABELS.items()}
"""What Magika calls our languages; one that is missing here, it does not know."""


@dataclass
class Audit:
    """Labels of a sample beside Magika's."""

    magika: str
    """Version of the package and of its model."""
    sampled: int = 0
    unknown: int = 0
    """Documents that the pipeline gives no language."""
    incomparable: Counter[str] = field(default_factory=Counter)
    """Documents whose language Magika does not know, by language."""
    agreed: Counter[str] = field(default_factory=Counter)
    confused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Documents by (our language, Magika's label) where the two differ."""

    @property
    def agreement(self) -> float:
        """Return the share of the comparable documents on whose language both agree."""
        agreed = self.agreed.total()
        return agreed / max(agreed + self.confused.total(), 1)

    def languages(self) -> dict[str, dict[str, int]]:
        """Return documents and agreement by language, the most frequent first."""
        compared = self.agreed.copy()
        for (ours, _), number in self.confused.items():
            compared[ours] += number
        return {
            name: {"documents": number, "agreed": self.agreed[name]}
            for name, number in sorted(compared.items(), key=lambda kv: (-kv[1], kv[0]))
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the audit as it stands in the manifest."""
        return {
            "magika": self.magika,
            "sampled": self.sampled,
            "unknown": self.unknown,
            "incomparable": dict(sorted(self.incomparable.items())),
            "agreement": self.agreement,
            "languages": self.languages(),
            "confused": [[a, b, n] for (a, b), n in sorted(self.confused.items(), key=_by_number)],
        }

    def table(self) -> str:
        """Return the audit for people."""
        languages = self.languages()
        width = max(map(len, languages), default=8)
        confused = sorted(self.confused.items(), key=_by_number)[:30]
        return "\n".join(
            (
                f"Magika {self.magika}: {counted(self.sampled, 'document')} of code, "
                f"{self.unknown:,} of unknown language, "
                f"{self.incomparable.total():,} in languages that it does not know; of the others "
                f"it agrees on {self.agreement:.1%}",
                *(
                    f"{name:<{width}}  {n['agreed']:>6} of {n['documents']:<6} "
                    f"{n['agreed'] / n['documents']:.1%}"
                    for name, n in languages.items()
                ),
                "ours, Magika's, documents:",
                *(f"{ours:<{width}}  {theirs:<14} {n}" for (ours, theirs), n in confused),
            )
        )


def _by_number(entry: tuple[tuple[str, str], int]) -> tuple[int, tuple[str, str]]:
    return -entry[1], entry[0]


def in_sample(document_id: str, share: float) -> bool:
    """Tell whether a document is in the sample; a larger share takes all that a smaller takes."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), _SEED) < share * 2**64


def audit(
    documents: Iterable[Document],
    *,
    share: float = SHARE,
    classifier: LanguageClassifier | None = None,
) -> Audit:
    """Compare the labels of a sample of the code documents with Magika's.

    Args:
        documents: Documents with or without a language; prose is passed over.
        share: Share of the documents that is compared, 0 to 1.
        classifier: Labels the documents that have no language.

    Raises:
        InputError: Magika is not installed.
    """
    magika = _magika()
    found = Audit(f"{magika.get_module_version()} {magika.get_model_name()}")
    for document in documents:
        if document.domain != "code" or not in_sample(document.id, share):
            continue
        found.sampled += 1
        language, _ = label(document, classifier, MIN_CONFIDENCE)
        if language == UNKNOWN:
            found.unknown += 1
        elif language not in MAGIKA:
            found.incomparable[language] += 1
        else:
            result = magika.identify_bytes(document.text.encode(errors="replace"))
            theirs = str(result.output.label)
            if theirs in MAGIKA[language]:
                found.agreed[language] += 1
            else:
                found.confused[language, theirs] += 1
    return found


def _magika() -> Any:
    module = require(
        "magika",
        "an audit is asked for, and Magika is not installed",
        "the labels are compared with those of Magika",
        "pip install '.[audit]'",
    )
    return module.Magika()


def main(argv: Sequence[str] | None = None, report: Callable[[str], object] = print) -> int:
    """Audit from the command line; return the exit code."""
    name, about = "loopcoder data audit", (__doc__ or "").split("\n", maxsplit=1)[0]
    parser = Parser(name, description=about)
    add_paths(parser)
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="classifier, for code without a name"
    )
    parser.add_argument(
        "--share", type=float, default=SHARE, metavar="SHARE", help="share of the documents, 0 to 1"
    )
    arguments = parser.parse_args(argv)
    classifier = LanguageClassifier.load(arguments.model) if arguments.model else None
    documents = documents_of(arguments.paths, arguments.text_field, arguments.language_field)
    report(audit(documents, share=arguments.share, classifier=classifier).table())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
