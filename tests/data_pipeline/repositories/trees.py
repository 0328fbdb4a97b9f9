"""Trees of repositories, and what should become of them, told without the pipeline's code."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from loopcoder.config.build import SourceConfig
from loopcoder.data.corpus import Corpus
from tests.data_pipeline.builds import token_ids, whole

LANGUAGES = {".py": "Python", ".c": "C", ".java": "Java"}
MAX_BYTES = 1500
WORDS = ("loop", "gate", "shift", "token", "window", "layer")

Files = dict[str, str]
"""Content by path."""


class Wanted(NamedTuple):
    """A document that should be in the corpus."""

    repository: str | None
    language: str
    files: tuple[tuple[str, str], ...]
    """(path, content); a single one stands for itself."""


def program(rng: random.Random, lines: int) -> str:
    number = rng.randrange(10**9)
    return "".join(f"{rng.choice(WORDS)}_{i} = {number + i}\n" for i in range(lines))


def random_tree(rng: random.Random, repositories: int = 14) -> Files:
    """Return repositories of 1 to 9 files, some of which are too long to join others."""
    tree = {f"top{i}.py": program(rng, 5) for i in range(3)}
    for number in range(repositories):
        for i in range(rng.randrange(1, 10)):
            folders = "/".join(rng.choices(("src", "lib", "a b", "ä"), k=rng.randrange(3)))
            inner = f"{folders}/f{i}".lstrip("/") + rng.choice([*LANGUAGES])
            lines = rng.choice((3, 10, 30, 120))
            tree[f"repo{number}/{inner}"] = program(rng, lines)
    return tree


def write(folder: Path, tree: Files) -> Path:
    for name, text in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def wanted(tree: Files, max_bytes: int = MAX_BYTES) -> list[Wanted]:
    """Return the documents of a tree: by repository and language, in the order of the paths."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    found = []
    for name, text in sorted(tree.items(), key=lambda item: item[0].split("/")):
        repository, _, path = name.rpartition("/") if "/" not in name else name.partition("/")
        language = LANGUAGES[Path(name).suffix]
        if repository:
            groups.setdefault((repository, language), []).append((path, text))
        else:
            found.append(Wanted(None, language, ((path, text),)))
    for (repository, language), files in groups.items():
        used, start = 0, 0
        for number, (path, text) in enumerate(files):
            size = len(f"{path}\n{text}".encode())
            if number > start and used + size > max_bytes:
                found.append(Wanted(repository, language, tuple(files[start:number])))
                start = number
            used = size + (used if number > start else len(f"{repository}\n".encode()))
        found.append(Wanted(repository, language, tuple(files[start:])))
    return found


def fields(folder: Path, **changes: Any) -> dict[str, Any]:
    """Fields of a config that takes all the code of a tree."""
    return whole("code") | {"sources": [SourceConfig(kind="files", path=str(folder))]} | changes


class Reader:
    """Takes the ids of a corpus apart."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
        self._tokenizer.encode_special_tokens = True

    def id(self, marker: str) -> int:
        return int(self._tokenizer.token_to_id(marker))

    def encoded(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decoded(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def documents(self, split: str, domain: str = "code") -> Iterator[list[int]]:
        """Yield the ids of each document, its EOD included."""
        ids = token_ids(self.corpus, domain, split)
        ends = np.flatnonzero(ids == self.corpus.eod_id) + 1
        assert ends[-1] == len(ids)
        for document in np.split(ids, ends[:-1]):
            yield document.tolist()

    def expected(self, document: Wanted) -> list[int]:
        """Return the ids of a document in which nothing is rearranged."""
        if len(document.files) == 1:
            ids = self.encoded(document.files[0][1])
        else:
            ids = [self.id("<|repo_name|>"), *self.encoded(f"{document.repository}\n")]
            for path, text in document.files:
                ids += [self.id("<|file_sep|>"), *self.encoded(f"{path}\n{text}")]
        return [*ids, self.corpus.eod_id]

    def parsed(self, ids: list[int]) -> tuple[str | None, list[tuple[str, str]], int]:
        """Return the repository, (path, content) of the files as they stand, and how many of them
        are rearranged; a document of one file has neither repository nor path."""
        start = self.id("<|repo_name|>")
        assert ids[-1] == self.corpus.eod_id and start not in ids[1:]
        if ids[0] != start:
            text, is_cut = self._whole(ids[:-1])
            return None, [("", text)], int(is_cut)
        borders = [n for n, i in enumerate(ids) if i == self.id("<|file_sep|>")]
        if not borders:  # cut in its name, at the end of a shard
            return None, [], 0
        name = self.decoded(ids[1 : borders[0]])
        assert name.endswith("\n")
        files, cuts = [], []
        for first, last in pairwise([*borders, len(ids) - 1]):
            part = ids[first + 1 : last]
            cut_at = part.index(self.id("<|fim_prefix|>")) if self._is_cut(part) else None
            if cut_at is None:
                path, _, text = self.decoded(part).partition("\n")
            else:
                path, text = self.decoded(part[:cut_at])[:-1], self._whole(part[cut_at:])[0]
            files.append((path, text))
            cuts.append(cut_at is not None)
        assert not any(cuts[:-1]), "only the last file may be rearranged"
        return name[:-1], files, sum(cuts)

    def _is_cut(self, ids: list[int]) -> bool:
        return self.id("<|fim_prefix|>") in ids

    def _whole(self, ids: list[int]) -> tuple[str, bool]:
        """Return the text of a file that may be rearranged."""
        if not self._is_cut(ids):
            return self.decoded(ids), False
        prefix, suffix, middle = (self.id(f"<|fim_{n}|>") for n in ("prefix", "suffix", "middle"))
        assert ids[0] == prefix and ids[-1] == self.id("<|im_end|>")
        second, third = ids.index(suffix), ids.index(middle)
        parts = ids[1:second], ids[third + 1 : -1], ids[second + 1 : third]
        return "".join(map(self.decoded, parts)), True
