"""The classifier of languages: training, the chain of labels, and the audit with Magika."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from data_pipeline.langid.classifier import (
    LABEL,
    MIN_CONFIDENCE,
    LanguageClassifier,
    card_path,
    features,
    label,
    label_code,
)
from data_pipeline.langid.names import is_known, judge
from data_pipeline.schema import Document, Tally
from data_pipeline.tools import audit_langid as audit_module
from data_pipeline.tools.audit_langid import MAGIKA, audit, in_sample
from data_pipeline.tools.train_langid import main, train_langid
from loopcoder.errors import InputError

WORDS = ("loop", "gate", "shift", "token", "cache", "left", "right", "total", "index", "value")


def program(language: str, rng: random.Random) -> str:
    """A small program of random names and numbers."""
    name = lambda: "_".join(rng.choices(WORDS, k=rng.randint(1, 2)))  # noqa: E731
    lines = {
        "Python": lambda: f"def {name()}({name()}):\n    return {name()} + {rng.random()}\n",
        "C": lambda: f"static int {name()}(int {name()}) {{\n\treturn {rng.randint(0, 99)};\n}}\n",
        "Rust": lambda: f"pub fn {name()}({name()}: u32) -> u32 {{\n    let {name()} = 1;\n}}\n",
        "Text": lambda: f"The {name()} of a {name()} is what the {name()} was, and no more.\n",
    }
    return "".join(lines[language]() for _ in range(rng.randint(3, 30)))


def documents(rng: random.Random, per_language: int) -> list[Document]:
    found = [
        document(program(language, rng), language, f"{language}{i}")
        for language in ("Python", "C", "Rust", "Text")
        for i in range(per_language)
    ]
    rng.shuffle(found)
    return found


def document(text: str, language: str = "unknown", key: str = "0", **meta: object) -> Document:
    domain = "text" if language == "Text" else "code"
    return Document(key, text, domain, language, "test", "rows.jsonl", meta)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> LanguageClassifier:
    path = tmp_path_factory.mktemp("langid") / "langid.bin"
    train_langid(documents(random.Random(0), 200), path)
    return LanguageClassifier.load(path)


def test_it_labels_what_it_has_not_seen(classifier: LanguageClassifier, rng: random.Random) -> None:
    assert classifier.languages == ("C", "Python", "Rust", "Text")
    for language in classifier.languages:
        for _ in range(20):
            text = program(language, rng)
            found, confidence = classifier.predict(text)
            assert found == language and 0.5 <= confidence <= 1, text
    held_out = classifier.card["held_out"]
    assert held_out["accuracy"] > 0.95
    num_held_out = sum(n["documents"] for n in held_out["languages"].values())
    assert num_held_out == classifier.card["documents"]["held_out"] > 20
    assert classifier.predict("") == ("unknown", 0.0)


def test_training_depends_on_the_documents_alone(tmp_path: Path, rng: random.Random) -> None:
    given = documents(rng, 60)
    # copies, unknown ones and languages with too few documents change nothing
    more = [*given, *rng.sample(given, 50), document("x = 1"), document("few", "Zig")]
    rng.shuffle(more)
    cards = []
    for name, these in (("a", given), ("b", more)):
        cards.append(train_langid(these, tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert cards[0]["xxh3_128"] == cards[1]["xxh3_128"]
    assert cards[1]["left_out"] == {"Zig": 1}
    assert cards[0]["documents"] == cards[1]["documents"]
    assert {p.name for p in tmp_path.iterdir()} == {"a", "a.json", "b", "b.json"}


def test_max_documents(tmp_path: Path, rng: random.Random) -> None:
    card = train_langid(documents(rng, 80), tmp_path / "m", max_documents=30)
    assert sum(card["documents"].values()) == 4 * 30


def test_too_little_to_train_on(tmp_path: Path, rng: random.Random) -> None:
    given = [d for d in documents(rng, 30) if d.language == "C"]
    with pytest.raises(InputError, match=r"1 language with at least 20 .*C 30"):
        train_langid(given, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["missing", "no card", "altered", "version", "no json"])
def test_files_that_are_no_classifier(
    tmp_path: Path, classifier: LanguageClassifier, fault: str
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(classifier.path.read_bytes())
    card_path(path).write_text(json.dumps(classifier.card))
    assert LanguageClassifier.load(path).hash == classifier.hash
    if fault == "missing":
        path.unlink()
    elif fault == "no card":
        card_path(path).unlink()
    elif fault == "altered":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif fault == "version":
        card_path(path).write_text(json.dumps(classifier.card | {"format_version": 0}))
    else:
        card_path(path).write_text("{")
    with pytest.raises(InputError) as error:
        LanguageClassifier.load(path)
    assert "train-langid" in error.value.problems[0].fix


def test_features(rng: random.Random) -> None:
    assert (
        features("if x1 == 0xff:\n\treturn 12\n    y") == "if x1 == 0 : \u23cet return 0 \u23ce4 y"
    )
    alphabet = "ab_1 \t\n\r\0\x0b\u2028\u23ce#%</s>漢🙂\ud800" + LABEL
    for _ in range(200):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 5000)))
        tokens = features(text)
        assert "\n" not in tokens and "\0" not in tokens
        assert not any(token.startswith(LABEL) for token in tokens.split(" "))
        assert "</s>" not in tokens.split(" ")


def test_chain(classifier: LanguageClassifier, rng: random.Random) -> None:
    def told(text: str, language: str = "unknown", **meta: object) -> tuple[str, str]:
        return label(document(text, language, **meta), classifier, MIN_CONFIDENCE)

    rust = program("Rust", rng)
    assert told(rust, " golang ", path="a.c") == ("Go", "field")
    assert told(rust, path="src/a.c") == ("C", "name")
    assert told("#!/usr/bin/env python3\n" + rust) == ("Python", "first_line")
    assert told("# -*- mode: ruby -*-\n" + rust) == ("Ruby", "first_line")
    assert told(rust + "\n# vim: set ft=perl :\n") == ("Perl", "first_line")
    assert told(rust, path="a.unheard-of") == ("Rust", "classifier")
    assert label(document(rust), None, 0.0) == ("unknown", "nothing")
    assert label(document(rust), classifier, 1.1) == ("unknown", "nothing")
    # prose among code has no programming language
    assert told(program("Text", rng)) == ("unknown", "nothing")


def test_it_overrules_a_default_only(classifier: LanguageClassifier, rng: random.Random) -> None:
    """A name that languages share, and nothing in the file that tells which."""

    class Sure:
        def __init__(self, language: str, confidence: float) -> None:
            self.found = language, confidence

        def predict(self, text: str) -> tuple[str, float]:
            return self.found

    def told(path: str, text: str, found: str, confidence: float = 0.9) -> tuple[str, str]:
        head = judge(path, text.encode())
        assert head is not None
        given = Document("0", text, "code", head.language, "files", path)
        return label(given, Sure(found, confidence), 0.5)  # type: ignore[arg-type]

    assert told("a.h", "int f(void);\n", "C++") == ("C++", "classifier")
    assert told("a.h", "int f(void);\n", "C++", 0.4) == ("C", "field")
    assert told("a.h", "int f(void);\n", "Python") == ("C", "field")
    assert told("a.h", "class A {\n};\n", "C") == ("C++", "field")
    assert told("a.py", "x = 1\n", "Ruby") == ("Python", "field")
    assert told("a.v", "1\n", "Coq") == ("Coq", "classifier")
    assert told("a.v", "1\n", "Python") == ("unknown", "nothing")
    assert label(Document("0", "1\n", "code", "unknown", "files", "a.v"), None, 0.5)[0] == "unknown"
    # a row's language was given by people
    row = Document("0", "int f;", "code", "C", "rows", "a.h", {"row": 1})
    assert label(row, Sure("C++", 1.0), 0.5) == ("C", "field")  # type: ignore[arg-type]


def test_stage(classifier: LanguageClassifier, rng: random.Random) -> None:
    given = [
        document("prose", "Text", "0"),
        document("x", "Java", "1"),
        document("x", "cpp", "2"),
        document(program("C", rng), key="3"),
        document(program("Text", rng), key="4"),
        document("", key="5"),
    ]
    tally = Tally("language")
    found = list(label_code(given, tally, classifier, MIN_CONFIDENCE))
    tally.check()
    assert [(d.id, d.language) for d in found] == [
        ("0", "Text"),
        ("1", "Java"),
        ("2", "C++"),
        ("3", "C"),
    ]
    assert tally.drops == {"unknown_language": 2}
    assert tally.notes == {"language_by_field": 2, "language_by_classifier": 1}


def test_command(tmp_path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    with open(rows, "w") as out:
        for d in documents(rng, 40):
            out.write(json.dumps({"content": d.text, "lang": d.language}) + "\n")
    arguments = [str(rows), "--text-field", "content", "--language-field", "lang"]
    assert main([*arguments, "--out", str(tmp_path / "m.bin")]) == 0
    printed = capsys.readouterr().out
    assert "4 languages" in printed and LanguageClassifier.load(tmp_path / "m.bin").hash in printed


def test_sample() -> None:
    ids = [f"{i:032x}" for i in range(20_000)]
    small, large = ({d for d in ids if in_sample(d, share)} for share in (0.01, 0.1))
    # seven standard deviations
    assert abs(len(small) - 200) < 100 and small < large
    assert all(in_sample(d, 1.0) for d in ids[:100]) and not any(in_sample(d, 0) for d in ids)


def test_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def get_module_version(self) -> str:
            return "1"

        def get_model_name(self) -> str:
            return "fake"

        def identify_bytes(self, data: bytes) -> object:
            return SimpleNamespace(output=SimpleNamespace(label=data.decode()))

    monkeypatch.setattr(audit_module, "_magika", Fake)
    given = [
        document("python", "Python", "1"),
        document("ruby", "Python", "2"),
        document("svg", "XML", "3"),
        document("python", "Nim", "4"),
        document("cpp"),
        document("txt", "Text"),
    ]
    found = audit(given, share=1)
    assert found.sampled == 5 and found.unknown == 1 and found.incomparable == {"Nim": 1}
    assert found.agreement == 2 / 3
    assert found.as_dict()["languages"] == {
        "Python": {"documents": 2, "agreed": 1},
        "XML": {"documents": 1, "agreed": 1},
    }
    assert found.as_dict()["confused"] == [["Python", "ruby", 1]]
    assert "agrees on 66.7%" in found.table() and "ruby" in found.table()


def test_audit_without_magika(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "magika", None)
    with pytest.raises(InputError, match="not installed") as error:
        audit([], share=1)
    assert error.value.problems[0].fix == "pip install '.[audit]'"


def test_audit_with_magika() -> None:
    magika = pytest.importorskip("magika")
    assert isinstance(magika, ModuleType)
    python = "import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 5
    found = audit([document(python, "Python", "1"), document(python, "Java", "2")], share=1)
    assert found.agreed == {"Python": 1} and found.confused == {("Java", "python"): 1}
    known = {str(label) for label in magika.Magika().get_output_content_types()}
    assert set().union(*MAGIKA.values()) <= known


def test_names_in_the_audit_are_ours() -> None:
    assert not [name for name in MAGIKA if not is_known(name)]
