"""Documents of repositories as ids."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline.repositories.layout import File, join
from data_pipeline.schema import Document
from data_pipeline.tokenizer import fim, repositories
from data_pipeline.tokenizer.encoder import Encoder
from data_pipeline.tokenizer.fim import Cut, Specials
from data_pipeline.tokenizer.repositories import Separators, cut_file
from data_pipeline.tokenizer.spec import SPECIAL_TOKENS
from loopcoder.config.build import FimConfig
from loopcoder.errors import InputError
from tests.data_pipeline.conftest import random_text
from tests.data_pipeline.tokenizer.conftest import changed

Files = list[tuple[str, str]]
ALWAYS = FimConfig(rate=1.0)


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> Encoder:
    return Encoder(tokenizer_path)


def joined(name: str, files: Files) -> Document:
    parts = [
        File(path, Document(f"{name}-{path}", text, "code", "C", "0-files", path))
        for path, text in files
    ]
    return join("key", name, parts)


def random_files(rng: random.Random) -> Files:
    count = rng.randrange(2, 7)
    return [(f"src/f{i}.c", random_text(rng, rng.randrange(250))) for i in range(count)]


def encode(
    encoder: Encoder, documents: list[Document], rules: FimConfig, copy: int = 1, **fields: None
) -> list[list[int]]:
    specials = fields.get("specials", Specials.of(encoder))
    ids, lengths = repositories.encode(
        encoder, documents, [copy] * len(documents), rules, specials, Separators.of(encoder)
    )
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int32)
    assert lengths.sum() == len(ids)
    return [d.tolist() for d in np.split(ids, np.cumsum(lengths))[:-1]]


class Reference:
    """Ids as HF's tokenizers give them, piece by piece, put together here."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True

    def text(self, piece: str) -> list[int]:
        return list(self._tokenizer.encode(piece, add_special_tokens=False).ids)

    def marker(self, name: str) -> int:
        return int(self._tokenizer.token_to_id(name))

    def document(
        self, name: str, files: Files, last: tuple[str, list[str], bool] | None
    ) -> list[int]:
        """`last` is the path of a file that is rearranged, its prefix, middle and suffix, and
        whether the suffix comes first."""
        ids = [self.marker("<|repo_name|>"), *self.text(name + "\n")]
        for path, content in files:
            ids += [self.marker("<|file_sep|>"), *self.text(f"{path}\n{content}")]
        if last is not None:
            path, (prefix, middle, suffix), suffix_first = last
            ids += [self.marker("<|file_sep|>"), *self.text(f"{path}\n")]
            ids.append(self.marker("<|fim_prefix|>"))
            if suffix_first:
                ids += [self.marker("<|fim_suffix|>"), *self.text(suffix)]
                ids += [self.marker("<|fim_middle|>"), *self.text(prefix), *self.text(middle)]
            else:
                ids += [*self.text(prefix), self.marker("<|fim_suffix|>"), *self.text(suffix)]
                ids += [self.marker("<|fim_middle|>"), *self.text(middle)]
            ids.append(self.marker("<|im_end|>"))
        return [*ids, self.marker("<|endoftext|>")]


def test_ids_are_those_of_a_reference(
    encoder: Encoder, tokenizer_path: Path, rng: random.Random
) -> None:
    reference = Reference(tokenizer_path)
    names = [f"me/repo{i}" for i in range(60)]
    all_files = [random_files(rng) for _ in names]
    documents = [joined(*pair) for pair in zip(names, all_files, strict=True)]
    plain = [reference.document(*pair, None) for pair in zip(names, all_files, strict=True)]
    assert encode(encoder, documents, FimConfig(rate=0.0)) == plain
    # held-out documents are never rearranged
    assert encode(encoder, documents, ALWAYS, specials=None) == plain
    orders = Counter()
    for name, files, document, ids in zip(
        names, all_files, documents, encode(encoder, documents, ALWAYS), strict=True
    ):
        found = cut_file(files, document.id, 1, ALWAYS)
        if found is None:
            assert all(len(text) < ALWAYS.min_chars for _, text in files)
            continue
        number, where = found
        path, text = files[number]
        parts = [text[: where.start], text[where.start : where.stop], text[where.stop :]]
        others = files[:number] + files[number + 1 :]
        assert ids == reference.document(name, others, (path, parts, where.suffix_first))
        orders[where.suffix_first] += 1
    assert set(orders) == {True, False}


def test_the_file_that_is_cut_comes_back(encoder: Encoder, rng: random.Random) -> None:
    sep, end = encoder.marker("<|file_sep|>"), encoder.marker("<|im_end|>")
    for number in range(40):
        files = [(f"{i}.c", random_text(rng, rng.randrange(20, 99))) for i in range(4)]
        (ids,) = encode(encoder, [joined(f"r{number}", files)], ALWAYS)
        assert ids[-2:] == [end, encoder.eod_id] and ids.count(end) == 1
        borders = [n for n, token in enumerate(ids) if token == sep]
        assert len(borders) == len(files)
        last = encoder.decode_bytes(ids[borders[-1] + 1 : -2]).decode()
        path, _, rest = last.partition("\n<|fim_prefix|>")
        prefix, _, rest = rest.partition("<|fim_suffix|>")
        suffix, _, middle = rest.partition("<|fim_middle|>")
        assert prefix + middle + suffix == dict(files)[path]
        before = [
            encoder.decode_bytes(ids[a + 1 : b]).decode().split("\n", 1)
            for a, b in pairwise(borders)
        ]
        assert [tuple(f) for f in before] == [f for f in files if f[0] != path]


def test_spelt_markers_stay_text(encoder: Encoder, rng: random.Random) -> None:
    special = {encoder.marker(name) for name in SPECIAL_TOKENS}
    for marker in SPECIAL_TOKENS[:9]:
        files = [("a.c", "int a = 1234567;\n"), (f"{marker}.c", f"x{marker}y"), ("b.c", marker)]
        files = rng.sample(files, 3)
        (ids,) = encode(encoder, [joined(f"of {marker}", files)], ALWAYS)
        is_cut = len(set(ids) & special) > 3
        # a document that spells a marker of filling in is left alone
        assert is_cut == (not marker.startswith("<|fim_"))
        assert sum(i in special for i in ids) == 1 + len(files) + 1 + 4 * is_cut
        if not is_cut:
            text = "<|file_sep|>".join([f"of {marker}\n", *(f"{p}\n{c}" for p, c in files)])
            assert encoder.decode_bytes(ids) == f"<|repo_name|>{text}<|endoftext|>".encode()


def test_which_file_is_cut() -> None:
    files = [("a", "x" * 9), *((f"{i}", "x" * 30) for i in range(4))]
    total = 8000
    rules = FimConfig(rate=0.5)
    found = [cut_file(files, f"doc{i}", 1, rules) for i in range(total)]
    counts = Counter(None if f is None else f[0] for f in found)
    assert 0.45 < 1 - counts[None] / total < 0.55
    assert counts[0] == 0, "it is too short"
    assert all(0.1 < counts[n] / total < 0.15 for n in (1, 2, 3, 4))
    # independent of the cut
    cuts = {n: [f[1].start for f in found if f and f[0] == n] for n in (1, 2)}
    assert all(8 < np.mean(starts) < 13 for starts in cuts.values())
    others = [cut_file(files, f"doc{i}", 2, rules) for i in range(total)]
    assert sum(a == b is not None for a, b in zip(found, others, strict=True)) < total / 20
    assert cut_file(files[:1], "doc", 1, ALWAYS) is None
    assert cut_file([*files, ("b", f"{fim.MIDDLE}")], "doc", 1, ALWAYS) is None


def test_the_cuts_of_a_release_are_fixed() -> None:
    files = [(f"{i}", "x" * 1000) for i in range(5)]
    found = [cut_file(files, f"doc{i}", 1 + i % 2, FimConfig(seed=7)) for i in range(5)]
    cuts = [Cut(781, 877, False), Cut(366, 701, True)]  # as in test_fim.py
    assert found == [None, None, (0, cuts[0]), (3, cuts[1]), None]


def test_order_and_batches_change_nothing(encoder: Encoder, rng: random.Random) -> None:
    documents = [joined(f"r{i}", random_files(rng)) for i in range(30)]
    whole = encode(encoder, documents, FimConfig())
    order = rng.sample(range(30), 30)
    assert encode(encoder, [documents[i] for i in order], FimConfig()) == [whole[i] for i in order]
    for i in order[:5]:
        assert encode(encoder, [documents[i]], FimConfig()) == [whole[i]]
    assert encode(encoder, [], ALWAYS) == []
    assert encode(encoder, documents, FimConfig(), copy=2) != whole


def test_a_tokenizer_without_separators(tmp_path: Path, tokenizer_path: Path) -> None:
    added = json.loads(tokenizer_path.read_text())["added_tokens"]
    bare = Encoder(changed(tokenizer_path, tmp_path / "t.json", added_tokens=added[:6]))
    with pytest.raises(InputError, match=r"no token <\|repo_name\|>"):
        Separators.of(bare)
