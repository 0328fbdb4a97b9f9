"""Fill in the middle."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.tokenizer import fim
from data_pipeline.tokenizer.encoder import Encoder, train_tokenizer
from data_pipeline.tokenizer.fim import Cut, Specials
from data_pipeline.tokenizer.spec import EOD, SPECIAL_TOKENS
from loopcoder.config.build import FimConfig
from loopcoder.errors import InputError
from tests.data_pipeline.conftest import VOCAB_SIZE, random_text

ALWAYS = FimConfig(rate=1.0)
SIGMAS = 5.0


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = ["def loop(x):\n    return x + 1\n", random_text(random.Random(0), 20_000)]
    train_tokenizer(texts, VOCAB_SIZE, path)
    return path


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> Encoder:
    return Encoder(tokenizer_path)


def apply(
    encoder: Encoder, texts: list[str], rules: FimConfig, copy: int = 1, domain: str = "code"
) -> list[list[int]]:
    """Return the ids of each document; the ids of documents are their places."""
    ids, lengths = fim.apply(
        encoder,
        texts,
        [f"doc{i}" for i in range(len(texts))],
        [copy] * len(texts),
        rules,
        Specials.of(encoder),
        domain=domain,
    )
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int32)
    assert lengths.sum() == len(ids)
    return [d.tolist() for d in np.split(ids, np.cumsum(lengths))[:-1]]


def parsed(encoder: Encoder, ids: list[int]) -> tuple[str, tuple[bytes, bytes, bytes]] | None:
    """Return the layout and (prefix, suffix, middle); SPM's prefix is within its middle.

    None for a plain document. Control tokens anywhere else are an error.
    """
    assert ids[-1] == encoder.eod_id
    controls = [(n, i) for n, i in enumerate(ids) if i >= VOCAB_SIZE - 64]
    if len(controls) == 1:
        return None
    specials = Specials.of(encoder)
    order = [specials.prefix, specials.suffix, specials.middle, specials.end, encoder.eod_id]
    assert [i for _, i in controls] == order
    at = [n for n, _ in controls]
    assert (at[0], at[3], at[4]) == (0, len(ids) - 2, len(ids) - 1)
    pieces = [encoder.decode_bytes(ids[a + 1 : b]) for a, b in pairwise(at[:4])]
    return "SPM" if at[1] == 1 else "PSM", (pieces[0], pieces[1], pieces[2])


def test_documents_come_back(encoder: Encoder, rng: random.Random) -> None:
    texts = [random_text(rng, rng.randrange(ALWAYS.min_chars, 300)) for _ in range(300)]
    layouts = set()
    for place, (text, ids) in enumerate(zip(texts, apply(encoder, texts, ALWAYS), strict=True)):
        found = parsed(encoder, ids)
        where = fim.cut(text, f"doc{place}", 1, ALWAYS)
        assert found is not None and where is not None
        layout, (prefix, suffix, middle) = found
        layouts.add(layout)
        parts = text[: where.start], text[where.start : where.stop], text[where.stop :]
        assert (prefix + middle + suffix).decode() == text
        assert suffix.decode() == parts[2]
        if where.suffix_first:
            assert layout == "SPM"
            assert (prefix, middle.decode()) == (b"", parts[0] + parts[1])
        else:
            assert (prefix.decode(), middle.decode()) == parts[:2]
        # each piece is encoded alone
        pieces = [encoder.encode_pieces([p])[0].tolist() for p in parts]
        s = Specials.of(encoder)
        expected = (
            [s.prefix, s.suffix, *pieces[2], s.middle, *pieces[0], *pieces[1]]
            if where.suffix_first
            else [s.prefix, *pieces[0], s.suffix, *pieces[2], s.middle, *pieces[1]]
        )
        assert ids == [*expected, s.end, encoder.eod_id]
    assert layouts == {"PSM", "SPM"}


@pytest.mark.parametrize("suffix_first", [False, True])
@pytest.mark.parametrize("ends", [(0, 0), (0, 12), (12, 12), (0, 5), (5, 12), (5, 5)])
def test_empty_pieces(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int], suffix_first: bool
) -> None:
    monkeypatch.setattr(fim, "cut", lambda *_: Cut(*ends, suffix_first))
    text = "hello world\n"
    assert len(text) == 12
    first, second = apply(encoder, [text, text], ALWAYS)
    assert first == second
    s = Specials.of(encoder)
    parts = (text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :])
    prefix, middle, suffix = (encoder.encode_pieces([p])[0].tolist() for p in parts)
    if suffix_first:
        expected = [s.prefix, s.suffix, *suffix, s.middle, *prefix, *middle]
    else:
        expected = [s.prefix, *prefix, s.suffix, *suffix, s.middle, *middle]
    assert first == [*expected, s.end, encoder.eod_id]


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_any_text_comes_back(encoder: Encoder, texts: list[str], rate: float, seed: int) -> None:
    rules = FimConfig(rate=rate, seed=seed)
    for text, ids in zip(texts, apply(encoder, texts, rules), strict=True):
        found = parsed(encoder, ids)
        if found is None:
            assert ids == encoder.encode_documents([text])[0].tolist()
        else:
            prefix, suffix, middle = found[1]
            assert (prefix + middle + suffix).decode() == text


def near(count: int, share: float, total: int) -> bool:
    """Whether a count is within the binomial error."""
    return abs(count - share * total) <= SIGMAS * math.sqrt(total * share * (1 - share))


@pytest.mark.parametrize(("rate", "spm_share"), [(0.5, 0.5), (0.9, 0.25), (0.1, 1.0), (1.0, 0.0)])
def test_shares(rng: random.Random, rate: float, spm_share: float) -> None:
    total = 20_000
    rules = FimConfig(rate=rate, spm_share=spm_share, seed=rng.randrange(1 << 40))
    cuts = [fim.cut("x" * 30, f"doc{i}", 1, rules) for i in range(total)]
    taken = [c for c in cuts if c is not None]
    assert near(len(taken), rate, total)
    assert near(sum(c.suffix_first for c in taken), spm_share, len(taken))


def test_cuts_are_uniform(rng: random.Random) -> None:
    total, length = 40_000, 10
    rules = FimConfig(rate=1.0, min_chars=length, seed=rng.randrange(1 << 40))
    counts = np.zeros((length + 1, length + 1), dtype=np.int64)
    for i in range(total):
        where = fim.cut("é" * length, f"doc{i}", 1, rules)
        assert where is not None
        counts[where.start, where.stop] += 1
    borders = length + 1
    for start in range(borders):
        for stop in range(borders):
            share = (start == stop) / borders**2 + (start < stop) * 2 / borders**2
            assert near(counts[start, stop], share, total) if share else not counts[start, stop]


def test_copies_and_seeds_cut_elsewhere(rng: random.Random) -> None:
    text = random_text(rng, 500)
    keys = [(copy, seed) for copy in (1, 2, 3) for seed in (0, 1)]
    for name in ("a", "b"):
        cuts = {key: fim.cut(text, name, key[0], FimConfig(rate=1.0, seed=key[1])) for key in keys}
        assert len(set(cuts.values())) == len(keys)
    # the rate is drawn anew as well
    rules = FimConfig()
    taken = [[fim.cut(text, f"{i}", copy, rules) is None for i in range(200)] for copy in (1, 2)]
    assert 40 < sum(a != b for a, b in zip(*taken, strict=True)) < 160


def test_order_and_batches_change_nothing(encoder: Encoder, rng: random.Random) -> None:
    texts = {f"doc{i}": random_text(rng, rng.randrange(200)) for i in range(60)}

    def encoded(names: list[str]) -> dict[str, list[int]]:
        ids, lengths = fim.apply(
            encoder,
            [texts[n] for n in names],
            names,
            [2] * len(names),
            FimConfig(),
            Specials.of(encoder),
            domain="code",
        )
        parts = np.split(ids, np.cumsum(lengths))[:-1]
        return {name: part.tolist() for name, part in zip(names, parts, strict=True)}

    whole = encoded(list(texts))
    names = list(texts)
    rng.shuffle(names)
    assert encoded(names) == whole
    for name in names[:10]:
        assert encoded([name])[name] == whole[name]


def test_processes_agree(tokenizer_path: Path, encoder: Encoder, rng: random.Random) -> None:
    texts = [random_text(rng, 100) for _ in range(30)]
    script = (
        "import json, sys; from pathlib import Path; from data_pipeline.tokenizer import fim; "
        "from loopcoder.config.build import FimConfig; "
        "from data_pipeline.tokenizer.encoder import Encoder; e = Encoder(Path(sys.argv[1])); "
        "texts = json.load(sys.stdin); n = len(texts); "
        "ids, _ = fim.apply(e, texts, [f'doc{i}' for i in range(n)], [1] * n, FimConfig(), "
        "fim.Specials.of(e), domain='code'); print(json.dumps(ids.tolist()))"
    )
    expected = list(chain.from_iterable(apply(encoder, texts, FimConfig())))
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tokenizer_path)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == expected


def test_the_cuts_of_a_release_are_fixed() -> None:
    # a corpus that was built once must be built the same again
    found = [fim.cut("x" * 1000, f"doc{i}", 1 + i % 2, FimConfig(seed=7)) for i in range(5)]
    assert found == [None, None, Cut(781, 877, False), Cut(366, 701, True), None]


def test_what_is_left_alone(encoder: Encoder, rng: random.Random) -> None:
    text = random_text(rng, 200)
    plain = encoder.encode_documents([text])[0].tolist()
    assert apply(encoder, [text], ALWAYS, domain="text") == [plain]
    assert apply(encoder, [text], FimConfig(rate=0.0)) == [plain]
    rules = FimConfig(rate=1.0, min_chars=201)
    assert apply(encoder, [text], rules) == [plain]
    assert parsed(encoder, apply(encoder, [text + "."], rules)[0]) is not None
    assert apply(encoder, [], ALWAYS) == []
    assert apply(encoder, ["", "a"], ALWAYS) == [
        encoder.encode_documents([t])[0].tolist() for t in ("", "a")
    ]


def test_spelt_markers_stay_text(encoder: Encoder) -> None:
    spelt = [f"before the marker {marker} and after it" for marker in SPECIAL_TOKENS[:9]]
    for text, ids in zip(spelt, apply(encoder, spelt, ALWAYS), strict=True):
        found = parsed(encoder, ids)
        assert (found is None) == ("<|fim_" in text)
        if found is not None:
            assert b"".join((found[1][0], found[1][2], found[1][1])).decode() == text
        else:
            assert encoder.decode_bytes(ids) == (text + EOD).encode()


@pytest.mark.parametrize("fields", [{"rate": 1.5}, {"rate": -0.1}, {"spm_share": 2}])
def test_impossible_rules(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        FimConfig(**fields)


def test_a_tokenizer_without_markers(tmp_path: Path, tokenizer_path: Path) -> None:
    spec = json.loads(tokenizer_path.read_text())
    spec["added_tokens"] = spec["added_tokens"][:1]
    (tmp_path / "t.json").write_text(json.dumps(spec))
    bare = Encoder(tmp_path / "t.json")
    with pytest.raises(InputError, match=r"no token <\|fim_prefix\|>"):
        Specials.of(bare)


def test_specials_by_name() -> None:
    names: list[str] = []
    fake: Any = SimpleNamespace(marker=lambda name: names.append(name) or len(names))
    assert Specials.of(fake) == Specials(prefix=1, middle=2, suffix=3, end=4)
    assert names == ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|im_end|>"]
