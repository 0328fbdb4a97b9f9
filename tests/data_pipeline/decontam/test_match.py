"""Problems of benchmarks are found wherever they are planted, and ordinary documents are kept."""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.decontam import match as decontam
from data_pipeline.decontam.hashing import BORDER, ngram_hashes, normalise, word_hashes
from data_pipeline.decontam.index import Benchmark, Part
from data_pipeline.decontam.match import BUILTIN, Index, decontaminate, open_index
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import DecontaminateConfig
from loopcoder.errors import InputError
from tests.data_pipeline.conftest import random_text

SHARE = DecontaminateConfig().share
# HumanEval/4 (MIT, OpenAI) and simple_python_0 of BFCL (Apache-2.0)
HUMANEVAL_PROMPT = '''
from typing import List


def mean_absolute_deviation(numbers: List[float]) -> float:
    """ For a given list of input numbers, calculate Mean Absolute Deviation
    around the mean of this dataset.
    Mean Absolute Deviation is the average absolute difference between each
    element and a centerpoint (mean in this case):
    MAD = average | x - x_mean |
    >>> mean_absolute_deviation([1.0, 2.0, 3.0, 4.0])
    1.0
    """
'''
HUMANEVAL_SOLUTION = """
    mean = sum(numbers) / len(numbers)
    return sum(abs(x - mean) for x in numbers) / len(numbers)
"""
BFCL_QUESTION = "Find the area of a triangle with a base of 10 units and height of 5 units."
RENAMED = """
def mad(values):
    centre = sum(values) / len(values)
    return sum(abs(v - centre) for v in values) / len(values)
"""


def look_for(*benchmarks: str, **fields: Any) -> Index:
    return open_index(DecontaminateConfig(list(benchmarks), **fields))


def run(index: Index, *texts: str) -> tuple[list[str], Tally]:
    """Return the texts that are left."""
    documents = (Document(str(i), t, "code", "Python", "s", "p") for i, t in enumerate(texts))
    tally = Tally("decontaminate")
    kept = [d.text for d in decontaminate(documents, index, tally)]
    tally.check()
    assert tally.rows_in == len(texts) and tally.rows_out == len(kept)
    return kept, tally


def word(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randrange(2, 9)))


def words(rng: random.Random, count: int) -> str:
    return " ".join(word(rng) for _ in range(count))


def planted(problem: str, rng: random.Random) -> dict[str, str]:
    """Return documents that hold a problem, by the manner in which they do."""
    lines = problem.strip("\n").split("\n")
    filler = "\n".join(words(rng, 12) for _ in range(14_000))
    at = rng.randrange(len(filler))
    return {
        "verbatim": problem,
        "indented": "class A:\n" + "\n".join(f"\t\t{line.strip()}" for line in lines),
        "commented": f"# {words(rng, 9)}\n" + problem + f"\n# {words(rng, 30)}",
        "shouted": problem.upper().replace("\n", "\r\n"),
        "on one line": " ".join(problem.split()),
        "escaped": json.dumps({"prompt": " ".join(problem.split())}),
        "in a file of 1 MB": filler[:at] + "\n" + problem + "\n" + filler[at:],
        "at the end of 1 MB": filler + problem,
    }


@pytest.mark.parametrize("name", ["humaneval", "bfcl_v4", "user"])
def test_planted_problems_are_found(tmp_path: Path, rng: random.Random, name: str) -> None:
    if name == "user":
        problem = words(rng, 30)
        path = tmp_path / "user.jsonl"
        path.write_text(json.dumps({"id": 7, "q": words(rng, 50), "a": problem}) + "\n")
        index, number = look_for(str(path)), "7"
    else:
        problem = HUMANEVAL_PROMPT if name == "humaneval" else BFCL_QUESTION
        number = "HumanEval/4" if name == "humaneval" else "simple_python_0"
        index = look_for(name)
    for manner, text in planted(problem, rng).items():
        kept, tally = run(index, words(rng, 99), text, words(rng, 99))
        assert tally.drops == {f"contaminated_{name}": 1}, manner
        assert tally.notes[f"hit_{name}/{number}"] == 1, manner
        assert len(kept) == 2 and text not in kept, manner


def test_solutions_are_found_without_their_prompt() -> None:
    solution = "def mad(numbers):\n" + HUMANEVAL_SOLUTION
    _, tally = run(look_for("humaneval"), solution)
    assert tally.notes == {"hit_humaneval/HumanEval/4": 1}


def test_renamed_variables_and_paraphrases_are_not_found() -> None:
    """The limit of the method: n-grams of words see copies, not ideas."""
    paraphrase = "What area does a triangle have whose base is 10 units and whose height is 5?"
    kept, _ = run(look_for(*BUILTIN), RENAMED, paraphrase)
    assert kept == [RENAMED, paraphrase]


def test_ordinary_code_is_kept() -> None:
    """At most one in 1,000 files of the standard library; 0 of 1,874 when this was written."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [p for p in sorted(root.rglob("*.py")) if "-packages" not in str(p.relative_to(root))]
    texts = [p.read_text(errors="replace") for p in files]
    assert len(texts) > 300
    kept, tally = run(look_for(*BUILTIN), *texts)
    assert len(texts) - len(kept) <= len(texts) / 1000, tally.notes


def test_order_and_batches(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [words(rng, rng.randrange(20, 80)) for _ in range(20)]
    index = Index([Benchmark.make("b", [Part(str(i), p) for i, p in enumerate(problems)])], SHARE)
    texts = [words(rng, rng.randrange(400)) for _ in range(300)]
    bad = {i: rng.randrange(20) for i in rng.sample(range(300), 40)}
    for i, problem in bad.items():
        texts[i] += f"\n{problems[problem]} {words(rng, 3)}"
    for size in (1, rng.randrange(2, 5000), 1 << 18):
        monkeypatch.setattr(decontam, "_BATCH_CHARS", size)
        kept, tally = run(index, *texts)
        assert kept == [t for i, t in enumerate(texts) if i not in bad]
        assert tally.drops == {"contaminated_b": 40}
        for problem in set(bad.values()):
            assert tally.notes[f"hit_b/{problem}"] == list(bad.values()).count(problem)
    assert run(index)[0] == []
    assert run(index, "", "\n")[0] == ["", "\n"]


def test_a_problem_is_not_joined_from_two_documents(rng: random.Random) -> None:
    problem = words(rng, 13).split()
    index = Index([Benchmark.make("b", [Part("0", " ".join(problem))], ngram=13)], SHARE)
    kept, _ = run(index, " ".join(problem[:6]), " ".join(problem[6:]))
    assert len(kept) == 2
    # the mark between documents may not be forged
    forged = " ".join(problem[:6]) + f" {BORDER} " + " ".join(problem[6:])
    assert run(index, "a", forged, "b")[0] == ["a", "b"]


def test_thresholds(rng: random.Random) -> None:
    problem = words(rng, 20).split()
    benchmark = Benchmark.make("b", [Part("0", " ".join(problem))], ngram=10)
    assert len(benchmark.hashes) == 11
    half = " ".join(problem[:14])  # 5 of the 11 n-grams
    assert run(Index([benchmark], share=5 / 11), half)[0] == []
    assert run(Index([benchmark], share=0.5), half)[0] == [half]
    # the same n-grams again do not count again
    assert run(Index([benchmark], share=0.5), half + ". " + half)[0] == [half + ". " + half]
    # every document, or none, would be dropped
    for wrong in (0.0, 1.1):
        with pytest.raises(ValidationError, match="share"):
            DecontaminateConfig(share=wrong)


def test_several_benchmarks(rng: random.Random) -> None:
    shared, only = words(rng, 40), words(rng, 9)
    first = Benchmark.make("first", [Part("x", shared)])
    second = Benchmark.make("second", [Part("y", shared), Part("z", only)], ngram=8)
    assert (first.ngram, second.ngram) == (13, 8)
    for pair in ([first, second], [second, first]):
        _, tally = run(Index(pair, SHARE), shared, only)
        expected = {"first": 1, "second": 1} if pair[0] is first else {"second": 2}
        assert tally.drops == {f"contaminated_{k}": n for k, n in expected.items()}
        assert tally.notes == {"hit_first/x": 1, "hit_second/y": 1, "hit_second/z": 1}
    with pytest.raises(InputError, match="names must differ"):
        Index([first, first], SHARE)


def test_ngram_follows_short_prompts(rng: random.Random) -> None:
    def make(*lengths: int) -> Benchmark:
        return Benchmark.make("b", [Part(str(i), words(rng, n)) for i, n in enumerate(lengths)])

    assert make(*[30] * 100).ngram == 13
    assert make(*[30] * 90, *[10] * 10).ngram == 10
    short = make(*[30] * 90, *[3] * 10)
    assert short.ngram == 8
    assert (short.meta["num_problems"], short.meta["num_covered"]) == (100, 90)


def test_boilerplate_is_left_out(rng: random.Random) -> None:
    boilerplate = words(rng, 20)
    parts = [Part(str(i), f"{boilerplate} {words(rng, 20)}") for i in range(9)]
    index = Index([Benchmark.make("b", parts)], share=0.01)
    assert run(index, boilerplate)[0] == [boilerplate]
    assert run(index, parts[3].text)[0] == []


def test_hashes_do_not_depend_on_the_place(rng: random.Random, seed: int) -> None:
    text = random_text(rng, 3000) + " the end"
    expected = word_hashes(normalise(text))
    before = words(rng, 100_000) + "\n"
    found = word_hashes(normalise(before + text))
    assert np.array_equal(found[-len(expected) :], expected)
    assert len(found) == 100_000 + len(expected)
    for n in (1, 8, 13):
        whole = np.concatenate(list(ngram_hashes(found, n)))
        assert len(whole) == len(found) - n + 1
        at = rng.randrange(len(whole))
        assert whole[at] == next(ngram_hashes(found[at : at + n], n))[0]


def test_words() -> None:
    def hashed(text: str) -> list[int]:
        return [int(h) for h in word_hashes(normalise(text))]

    assert len(set(hashed("a b ab ba aa 1 10 11"))) == 8
    assert hashed("snake_case(x1)") == hashed("SNAKE case\u00a0\u201cX1\u201d\u2014")
    assert hashed("É") == hashed("é") != hashed("e")
    assert len(hashed("漢字かな abc")) == 5
    assert hashed("a\x1eb") == hashed("a b")
    assert hashed(" .,\n") == []
    assert len(hashed("x" * 200_000 + " y")) == 2


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_indexes(name: str, tmp_path: Path) -> None:
    path = Path(decontam.__file__).parent / f"{name}.npz"
    benchmark = Benchmark.load(path)
    assert benchmark.to_bytes() == path.read_bytes()
    assert benchmark.meta["licence"] in ("MIT", "Apache-2.0")
    covered = {"humaneval": (164, 164), "bfcl_v4": (4696, 4097)}[name]
    assert (benchmark.meta["num_problems"], benchmark.meta["num_covered"]) == covered
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"cut\.npz"):
        Benchmark.load(tmp_path / "cut.npz")


def test_files_of_the_user(tmp_path: Path, rng: random.Random) -> None:
    problems = [words(rng, 20) for _ in range(3)]
    (tmp_path / "a.txt").write_text(f"{problems[0]}\n \n{problems[1]}\n\nshort\n")
    row = {"task_id": "T/1", "nested": [{"k": problems[2]}], "n": None}
    (tmp_path / "b.jsonl").write_text(f"\ufeff{json.dumps(row)}\n\n", encoding="utf-8")
    index = look_for(str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), ngram=13)
    _, tally = run(index, *problems)
    assert tally.notes == {"hit_a/0": 1, "hit_a/1": 1, "hit_b/T/1": 1}

    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "list.jsonl").write_text("[]")
    (tmp_path / "short.txt").write_text("a b c")
    for wrong in ("broken.jsonl", "list.jsonl", "short.txt", "none.jsonl", "b.csv"):
        with pytest.raises(InputError, match=wrong.replace(".", r"\.")):
            look_for(str(tmp_path / wrong))


@pytest.mark.parametrize("bad", [[0], [4], [2, 3], [0, 1, 2, 3, 4]])
def test_a_document_that_breaks_the_search_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, bad: list[int]
) -> None:
    """All documents of a batch are searched as one text."""
    index = look_for("humaneval")
    overlaps = Index.overlaps

    def breaks(self: Index, texts: list[str]) -> Any:
        if any("odd" in text for text in texts):
            raise RecursionError
        return overlaps(self, texts)

    monkeypatch.setattr(Index, "overlaps", breaks)
    texts = [f"odd {i}" if i in bad else f"x = {i}" for i in range(5)]
    kept, tally = run(index, *texts, HUMANEVAL_PROMPT)
    assert kept == [text for text in texts if "odd" not in text]
    assert tally.drops == {"broke_RecursionError": len(bad), "contaminated_humaneval": 1}

    def full(self: Index, texts: list[str]) -> Any:
        raise OSError("disk")

    monkeypatch.setattr(Index, "overlaps", full)
    with pytest.raises(OSError, match="disk"):
        run(index, "x")
