"""Prose: each rule drops a document and keeps a near neighbour of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from data_pipeline.filters import FilterConfig, clean
from data_pipeline.filters.text import text_fault
from data_pipeline.filters.words import Words
from data_pipeline.schema import Tally
from tests.data_pipeline.conftest import random_text
from tests.data_pipeline.filters.test_filters import document, fate

NOUNS = (
    "pointer buffer kernel socket thread signal option driver header module vector string cursor "
    "packet parser socket window stream record filter branch commit memory device number domain"
)
WORDS = NOUNS.split()


def prose(rng: random.Random, num_words: int = 200, per_line: int = 10) -> str:
    """Random sentences with stop words, that repeat nothing."""
    words = [f"{rng.choice(WORDS)}{rng.choice('abcdefgh')}" for _ in range(num_words)]
    words[::9] = ["the"] * len(words[::9])
    words[4::9] = ["of"] * len(words[4::9])
    lines = [" ".join(words[i : i + per_line]) for i in range(0, num_words, per_line)]
    return "\n".join(lines) + ".\n"


def fate_of(text: str, **rules: Any) -> str:
    return fate(document(text, "Text", "a.txt"), FilterConfig(**rules))


def test_prose_passes(rng: random.Random) -> None:
    for num_words in (50, 200, 2000):
        assert fate_of(prose(rng, num_words)) == ""


def test_number_of_words(rng: random.Random) -> None:
    assert fate_of(prose(rng, 49)) == "few_words"
    assert fate_of(prose(rng, 50)) == ""
    assert fate_of(prose(rng, 49), min_words=None) == ""
    assert fate_of(prose(rng, 101), max_words=100) == "many_words"
    assert fate_of(prose(rng, 100), max_words=100) == ""
    assert fate_of(" \n\t ") == "empty"


def test_length_of_words(rng: random.Random) -> None:
    text = prose(rng)
    long = " ".join(f"{a}{b}{c}" for a, b, c in zip(*[iter(text.split())] * 3, strict=False))
    assert fate_of(long + " the of", min_words=1) == "long_words"
    assert fate_of(long + " the of", min_words=1, max_mean_word_length=None) == ""
    letters = " ".join(rng.choice("abcdefghijklm") + rng.choice("nopqrstuv") for _ in range(150))
    assert fate_of(letters + " the of") == "short_words"
    assert fate_of(letters + " the of", min_mean_word_length=2) == ""
    # rulers and numbers are no words
    assert fate_of(text.replace("\n", "\n" + "=" * 79 + "\n", 3)) == ""
    # two bytes a letter are one letter
    assert Words("größe über".encode()).num_letters == 9


def test_symbols(rng: random.Random) -> None:
    text = prose(rng)
    assert fate_of(text.replace(" ", " # ", 40)) == "symbols"
    assert fate_of(text.replace(" ", "... ", 40)) == "symbols"
    assert fate_of(text.replace(" ", " # ", 15)) == ""
    assert fate_of(text + "#" * 79) == ""
    assert fate_of(text.replace(" ", " # ", 40), max_symbols_per_word=None) == ""


@pytest.mark.parametrize("bullet", ["-", "*", "•", "+"])
def test_bullets(rng: random.Random, bullet: str) -> None:
    lines = prose(rng).split("\n")[:-1]
    listed = [f"  {bullet} {line}" for line in lines]
    assert fate_of("\n".join(listed)) == "bullet_lines"
    assert fate_of("\n".join(listed[:-3] + lines[-3:])) == ""
    assert fate_of("\n".join(listed), max_bullet_lines=None) == ""


def test_ellipses(rng: random.Random) -> None:
    lines = prose(rng, 400, per_line=20).split("\n")[:-1]
    cut = [line + " ..." for line in lines]
    assert fate_of("\n".join(cut[:7] + lines[7:])) == "ellipsis_lines"
    assert fate_of("\n".join(cut[:6] + lines[6:])) == ""
    assert fate_of("\n".join(cut), max_ellipsis_lines=None) == ""


def test_alphabetic_words(rng: random.Random) -> None:
    text = prose(rng, 100)
    numbers = " ".join(str(rng.randrange(10**6)) for _ in range(80))
    assert fate_of(f"{text}\n{numbers}") == "few_alphabetic_words"
    assert fate_of(f"{text}\n{numbers[:300]}") == ""
    assert fate_of(f"{text}\n{numbers}", min_alphabetic_words=None) == ""
    table = "\n".join(f"| {line} |" for line in text.split("\n")) + "\n+---+ +---+ +---+" * 20
    assert fate_of(table) == "", "borders of tables count as words"
    assert fate_of(" ".join(["12", "+", "7"] * 40)) == "few_alphabetic_words"


def test_stop_words(rng: random.Random) -> None:
    text = " ".join(word for word in prose(rng).split() if word not in ("the", "of", "of."))
    assert fate_of(text) == "few_stop_words"
    assert fate_of(text + " the") == "few_stop_words"
    for pair in ("the of", "der und", "les est", "los una", "het een"):
        assert fate_of(f"{text} {pair}") == ""
    for pair in ("og det", "je že", "az és", "ve için", "yang dengan", "și pentru", "ei että"):
        assert fate_of(f"{text} {pair}") == ""
    assert fate_of(text, min_stop_words=None) == ""
    russian = " ".join(rng.choice(("память", "поток", "ядро")) + str(i) for i in range(90))
    assert fate_of(russian) == "", "stop words are asked of scripts that have no list"


def test_text_without_spaces() -> None:
    text = "本機能は、文書の内容を確認して記録します。" + "".join(map(chr, range(0x4E00, 0x4F00)))
    assert fate_of(text) == ""
    assert fate_of(text, max_spaceless=None) == "few_words"
    assert fate_of("a few words only, with one 漢字 among them") == "few_words"
    line = "同じ行が何度も繰り返されるだけの文書には価値がありません。\n"
    assert fate_of(line * 20) == "duplicate_lines"


def test_duplicate_lines(rng: random.Random) -> None:
    off = {"max_top_ngram": None, "max_duplicate_ngrams": None}
    lines = [*prose(rng, 300).split("\n")[:-1]]
    other = [*prose(rng, 300).split("\n")[:-1]]
    repeated = lines + lines[:20]
    assert fate_of("\n".join(repeated), **off) == "duplicate_lines"
    assert fate_of("\n".join(repeated), max_duplicate_lines=None, **off) == "duplicate_line_chars"
    assert fate_of("\n".join(lines + other[:20]), **off) == ""
    assert fate_of("\n".join(lines + other + lines[:10]), **off) == ""
    headings = "\n".join(f"SYNOPSIS\n--------\n{line}" for line in lines)
    assert fate_of(headings, **off) == "", "headings recur in every manual"
    assert fate_of(headings, min_repeat_chars=0, **off) == "duplicate_lines"
    assert fate_of("\r\n".join(repeated), **off) == "duplicate_lines"


@pytest.mark.parametrize("ruler", ["+" + "-" * 30 + "+", "|" + " " * 30 + "|", "=" * 40, "* " * 30])
def test_rulers_and_borders_of_tables_repeat_nothing(rng: random.Random, ruler: str) -> None:
    off: dict[str, Any] = {"max_top_ngram": None, "max_duplicate_ngrams": None}
    lines = prose(rng, 300).split("\n")[:-1]
    table = f"\n{ruler}\n".join(f"| {line} |" for line in lines)
    assert fate_of(table, **off) == ""
    paragraphs = f"\n\n{ruler}\n\n".join(lines)
    assert fate_of(paragraphs, **off) == ""
    assert fate_of(table.replace(ruler, f"{ruler} x"), **off) == "duplicate_lines"


def test_duplicate_paragraphs(rng: random.Random) -> None:
    off: dict[str, Any] = {"max_top_ngram": None, "max_duplicate_ngrams": None}
    off |= {"max_duplicate_lines": None, "max_duplicate_line_chars": None}
    parts = [prose(rng, 30).strip() for _ in range(20)]
    assert fate_of("\n\n".join(parts + parts[:9]), **off) == "duplicate_paragraphs"
    assert fate_of("\n\n".join(parts + parts[:8]), **off) == "duplicate_paragraph_chars"
    assert fate_of("\n\n".join(parts + parts[:4]), **off) == ""


@pytest.mark.parametrize("size", [2, 3, 4])
def test_frequent_ngrams(rng: random.Random, size: int) -> None:
    words = prose(rng, 300).split()
    phrase = " ".join(["socketsss", "bufferssss", "kernelsss", "threadsss"][:size])
    for i in range(0, 300, 7):
        words[i] = phrase
    rule = {"max_duplicate_ngrams": None, "max_top_ngram": {size: 0.16}}
    assert fate_of(" ".join(words), **rule) == f"frequent_{size}_gram"
    assert fate_of(" ".join(words), **(rule | {"max_top_ngram": {size: 0.6}})) == ""
    assert fate_of(prose(rng, 300), **rule) == ""


def test_duplicate_ngrams(rng: random.Random) -> None:
    words = prose(rng, 400).split()
    repeated = words + words[:200]  # a third, without a line that repeats
    assert fate_of(" ".join(repeated)) == "duplicate_5_grams"
    assert fate_of(" ".join(repeated), max_duplicate_ngrams={10: 0.2}) == "duplicate_10_grams"
    assert fate_of(" ".join(repeated), max_duplicate_ngrams={5: 0.4}) == ""
    assert fate_of(" ".join(words + words[:80])) == ""
    assert fate_of(" ".join(words)) == ""


def test_ngrams_against_a_plain_count(rng: random.Random) -> None:
    from data_pipeline.filters.repetition import _Grams, _repeated_chars

    for _ in range(30):
        words = [rng.choice("abcdef") * rng.randint(1, 20) for _ in range(rng.randint(1, 200))]
        arrays = Words(" ".join(words).encode())
        grams = _Grams(arrays.hashes, arrays.lengths)
        for size in (2, 3, 5):
            if len(words) <= size:
                continue
            grams.grow(size)
            seen: set[tuple[str, ...]] = set()
            covered: set[int] = set()
            for i in range(len(words) - size + 1):
                gram = tuple(words[i : i + size])
                if gram in seen:
                    covered |= set(range(i, i + size))
                seen.add(gram)
            exact = sum(len(words[i]) for i in covered)
            assert _repeated_chars(grams) == exact
            enough = rng.random() * grams.num_chars
            bound = _repeated_chars(grams, enough)
            assert bound == exact or exact <= bound <= enough


def test_words_are_those_of_split(rng: random.Random) -> None:
    for _ in range(50):
        text = random_text(rng, rng.randint(0, 300))
        data = text.encode()
        expected = data.split()
        words = Words(data)
        assert [
            data[s : s + n] for s, n in zip(words.starts, words.lengths, strict=True)
        ] == expected
        assert len(set(words.hashes.tolist())) == len({(w[:64], len(w)) for w in expected})
    assert len(set(Words(b"a" * 70 + b" " + b"a" * 71 + b" " + b"a" * 70).hashes.tolist())) == 2


def test_remains_of_web_pages(rng: random.Random) -> None:
    text = prose(rng)
    assert fate_of(text + "Lorem ipsum dolor") == "lorem_ipsum"
    assert fate_of(text + "Lorem is no ipsum") == ""
    assert fate_of(text + "Lorem ipsum dolor", drop_lorem_ipsum=False) == ""
    assert fate_of(text + "{}") == ""
    assert fate_of(text + "{}", drop_curly_brackets=True) == "curly_bracket"
    assert fate_of(text, drop_curly_brackets=True) == ""


def test_repairs(rng: random.Random) -> None:
    text = prose(rng)
    notice = "Please enable JavaScript in your browser to view this page.\n"
    manual = "The JavaScript engine must be enabled by the configure script.\n"

    def repaired(content: str, **rules: Any) -> tuple[str, dict[str, int]]:
        tally = Tally("clean")
        kept = list(clean([document(content, "Text", "a.txt")], FilterConfig(**rules), tally))
        return kept[0].text, dict(tally.notes)

    notes = {"javascript_notices_removed": 1, "documents_repaired": 1}
    assert repaired(notice + manual + text) == (manual + text, notes)
    assert repaired(notice + text, remove_javascript_notices=False) == (notice + text, {})
    ended = text.replace("\n", ".\n")
    unfinished = "Contents\nSee also ...\n"
    content, counts = repaired(unfinished + ended, require_terminal_punctuation=True)
    assert content == ended
    assert counts["unfinished_lines_removed"] == 2
    assert repaired(unfinished + ended) == (unfinished + ended, {})


@pytest.mark.parametrize(
    "head",
    [
        "%!PS-Adobe-3.0\n%%Creator: a program\n",
        "%!\n",
        "%PDF-1.4\n",
        "{\\rtf1\\ansi ",
        "begin 644 notes.txt\n",
        "StartFontMetrics 4.1\n",
        '*PPD-Adobe: "4.3"\n',
        '<?xml version="1.0"?>\n<people>\n',
        "<!DOCTYPE html>\n",
        '[{"name": "a"},\n',
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n",
    ],
)
def test_other_formats_are_no_prose(head: str) -> None:
    text = head + "The words of the file that follow the first line are those of any text. " * 9
    assert text_fault(text, FilterConfig()) != text_fault(text[len(head) :], FilterConfig())
    assert text_fault(text, FilterConfig()) == "not_prose"
    assert text_fault(text, FilterConfig(drop_other_formats=False)) != "not_prose"


@pytest.mark.parametrize(
    "head", ["%!TEX root = a.tex\n", "% PS\n", "begin with\n", "<b>\n", "[1]\n"]
)
def test_prose_begins_in_many_ways(head: str) -> None:
    assert text_fault(head + "a", FilterConfig()) != "not_prose"


def test_chinese_with_names_in_latin_script_is_prose() -> None:
    text = ":Original: Documentation/core-api/irq/index.rst\n\n" + "".join(
        f"smp_affinity_{i} /proc/irq/{i}/affinity_list 指定了哪些核心能够关联到给定的中断源{i}\n"
        for i in range(9)
    )
    assert text_fault(text, FilterConfig(max_spaceless=0.1)) == ""
    assert text_fault(text, FilterConfig(max_spaceless=None)) != ""
