"""Training and encoding."""

from __future__ import annotations

import builtins
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from data_pipeline.tokenizer import encoder as encoder_module
from data_pipeline.tokenizer.encoder import Encoder, train_tokenizer
from data_pipeline.tokenizer.probe import probe_texts
from data_pipeline.tokenizer.spec import EOD, SPECIAL_TOKENS
from loopcoder.errors import InputError
from tests.data_pipeline.conftest import VOCAB_SIZE, random_text
from tests.data_pipeline.tokenizer.conftest import TEXTS, changed


def test_special_tokens_are_last(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    assert len(SPECIAL_TOKENS) == 64
    ids = [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS]
    assert ids == list(range(VOCAB_SIZE - 64, VOCAB_SIZE))
    encoder = Encoder(tokenizer_path)
    assert (encoder.vocab_size, encoder.eod_id) == (VOCAB_SIZE, VOCAB_SIZE - 64)


def test_training_is_deterministic(tmp_path: Path, tokenizer_path: Path) -> None:
    train_tokenizer(
        [*TEXTS, random_text(random.Random(0), 20_000)], VOCAB_SIZE, tmp_path / "again.json"
    )
    assert (tmp_path / "again.json").read_bytes() == tokenizer_path.read_bytes()


def test_token_bytes_are_exact(tokenizer_path: Path, rng: random.Random) -> None:
    encoder = Encoder(tokenizer_path)
    texts = [random_text(rng, rng.randrange(1, 400)) for _ in range(100)]
    ids, lengths = encoder.encode_documents(texts)
    assert lengths.sum() == len(ids)
    plain = Tokenizer.from_file(str(tokenizer_path))
    for text, tokens in zip(texts, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        assert encoder.token_bytes[tokens].sum() == len(text.encode())
        assert tokens[-1] == encoder.eod_id
        assert plain.decode(tokens[:-1].tolist()) == text
    assert not encoder.token_bytes[-64:].any()


@pytest.mark.parametrize("special", [True, False])
def test_markers_in_text_stay_text(tmp_path: Path, tokenizer_path: Path, special: bool) -> None:
    added = json.loads(tokenizer_path.read_text())["added_tokens"]
    path = changed(
        tokenizer_path, tmp_path / "t.json", added_tokens=[t | {"special": special} for t in added]
    )
    encoder = Encoder(path)
    text = "a" + "".join(SPECIAL_TOKENS) + " b <|endoftext|>"
    ids, _ = encoder.encode_documents([text, EOD])
    assert (ids >= VOCAB_SIZE - 64).sum() == 2
    assert Tokenizer.from_file(str(path)).decode(ids.tolist()).count(EOD) >= 3
    assert encoder.token_bytes[ids].sum() == len(text + EOD)


def test_added_tokens_that_are_no_markers_are_used(tmp_path: Path, tokenizer_path: Path) -> None:
    added = json.loads(tokenizer_path.read_text())["added_tokens"]
    spaces = added[0] | {"id": VOCAB_SIZE, "content": " " * 9, "special": False}
    encoder = Encoder(changed(tokenizer_path, tmp_path / "t.json", added_tokens=[*added, spaces]))
    ids, _ = encoder.encode_documents(["x" + " " * 9 + "y"])
    assert VOCAB_SIZE in ids
    assert encoder.vocab_size == VOCAB_SIZE + 1
    assert encoder.token_bytes[ids].sum() == 11


def test_truncation_of_an_imported_tokenizer_is_ignored(
    tmp_path: Path, tokenizer_path: Path
) -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    encoder = Encoder(changed(tokenizer_path, tmp_path / "t.json", truncation=cut))
    _, lengths = encoder.encode_documents(["one two three four"])
    assert lengths[0] > 4


def test_dropout_of_an_imported_tokenizer_is_ignored(tmp_path: Path, tokenizer_path: Path) -> None:
    model = json.loads(tokenizer_path.read_text())["model"] | {"dropout": 0.5}
    encoder = Encoder(changed(tokenizer_path, tmp_path / "t.json", model=model))
    whole, _ = Encoder(tokenizer_path).encode_documents(TEXTS)
    assert np.array_equal(encoder.encode_documents(TEXTS)[0], whole)


def test_markers_may_be_in_the_vocabulary_too(tmp_path: Path, tokenizer_path: Path) -> None:
    spec = json.loads(tokenizer_path.read_text())
    name = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": VOCAB_SIZE, "content": name})
    # all of them: fastokens refuses a vocabulary with holes
    spec["model"]["vocab"] |= {t["content"]: t["id"] for t in spec["added_tokens"]}
    encoder = Encoder(changed(tokenizer_path, tmp_path / "t.json", **spec))
    ids, _ = encoder.encode_pieces([name])
    assert VOCAB_SIZE not in ids
    assert encoder.decode_bytes(ids) == encoder.decode_bytes([VOCAB_SIZE]) == name.encode()


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_shapes_and_types(tokenizer_path: Path, backend: Any) -> None:
    encoder = Encoder(tokenizer_path, backend=backend)
    ids, lengths = encoder.encode_documents(["", "a b", ""])
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int32)
    assert lengths[0] == lengths[2] == 1
    assert (ids == encoder.eod_id).sum() == 3
    assert encoder.decode_bytes(ids) == f"{EOD}a b{EOD}{EOD}".encode()
    nothing, no_lengths = encoder.encode_documents([])
    assert len(nothing) == len(no_lengths) == 0
    assert (nothing.dtype, no_lengths.dtype) == (np.int32, np.int32)


# How Qwen2, GPT-2, GPT-4 and GPT-4o split text, and one that none of them is.
SPLITS = {
    "qwen2": None,
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "nfc": None,
    "other": r"\d| ?\w+|[^\w\s]+|\s+",
}


@pytest.fixture(scope="module", params=SPLITS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path
) -> tuple[Encoder, Encoder]:
    """Both backends of one tokenizer, one for each way to split."""
    path = tmp_path_factory.mktemp("split") / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    if SPLITS[request.param] is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLITS[request.param]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if request.param == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("\t\t")])
    path.write_text(tokenizer.to_str())
    return Encoder(path, backend="fast"), Encoder(path, backend="reference")


# what separates the pieces of a text: blanks of all kinds, quotes, digits, spelt control tokens
BLANKS = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2028\u3000\u200b\u200d\ufe0f\ufeff\x00"
STRINGS = (
    "\r\n",
    "'s",
    "'LL",
    "    ",
    "\t\t",
    " " * 70,
    "\n" * 9,
    "12345",
    "e\u0301",
    "👩\u200d💻",
    "🇩🇪🏳️\u200d🌈",
    "漢字かなカナ、。",
    "안녕하세요 세계",
    "\x00\x01\x1b[31m\x7f\x80\x9f",
    "def f(x: int) -> None:\n\treturn x!=0x1F",
    "<|endoftext|><|fim_prefix|>",
)
ODD = st.sampled_from([*BLANKS, *STRINGS, *SPECIAL_TOKENS[:9]])
CHARACTERS = st.characters(exclude_categories=["Cs"])


@pytest.mark.data_full
@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.lists(ODD | CHARACTERS | st.text(max_size=9)).map("".join), max_size=8))
def test_backends_agree(pair: tuple[Encoder, Encoder], texts: list[str]) -> None:
    fast, reference = pair
    assert (fast.backend, reference.backend) == ("fast", "reference")
    ids, lengths = fast.encode_documents(texts)
    expected, expected_lengths = reference.encode_documents(texts)
    assert np.array_equal(ids, expected)
    assert np.array_equal(lengths, expected_lengths)
    if fast.lossless:
        assert fast.decode_bytes(ids) == "".join(text + EOD for text in texts).encode()
    # to HF itself as well, not only to our use of it
    plain = [fast._tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    assert [i[:-1].tolist() for i in np.split(ids, np.cumsum(lengths))[:-1]] == plain


def test_backends_agree_on_source_files(pair: tuple[Encoder, Encoder], rng: random.Random) -> None:
    folder = Path(os.__file__).parent
    texts = []
    for path in rng.sample(sorted(folder.glob("*.py")), 12):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
    fast, reference = (e.encode_documents(texts) for e in pair)
    assert np.array_equal(fast[0], reference[0])
    assert np.array_equal(fast[1], reference[1])


def without_fastokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "find_spec", lambda name: None)


def test_choice_of_backend(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizer_path)
    assert (encoder.backend, encoder.engine.split()[0]) == ("fast", "fastokens")
    slow = Encoder(tokenizer_path, backend="reference")
    assert (slow.backend, slow.engine.split()[0]) == ("reference", "tokenizers")
    with pytest.raises(InputError, match="backend=auto, fast or reference"):
        Encoder(tokenizer_path, backend="quick")  # type: ignore[arg-type]
    without_fastokens(monkeypatch)
    assert Encoder(tokenizer_path).backend == "reference"
    fix = r"pip install '.\[data\]', or data.build.tokenizer_backend=reference"
    with pytest.raises(InputError, match=fix):
        Encoder(tokenizer_path, backend="fast")


def test_the_reference_needs_no_fastokens(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def importing(name: str, *rest: Any) -> Any:
        assert name != "fastokens"
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    Encoder(tokenizer_path, backend="reference").encode_documents(TEXTS)


def test_threads(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTOKENS_BPE_THREADS", raising=False)
    assert Encoder(tokenizer_path).threads == 1 == int(os.environ["FASTOKENS_BPE_THREADS"])
    with pytest.raises(InputError, match="is '1', but threads is 2"):
        Encoder(tokenizer_path, threads=2)
    monkeypatch.setenv("FASTOKENS_BPE_THREADS", "3")
    assert Encoder(tokenizer_path).threads == Encoder(tokenizer_path, threads=3).threads == 3
    assert Encoder(tokenizer_path, backend="reference", threads=2).threads is None
    monkeypatch.setenv("FASTOKENS_BPE_THREADS", "many")
    with pytest.raises(InputError, match="'many'"):
        Encoder(tokenizer_path)


def test_one_thread_by_default(tokenizer_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; "
        "from data_pipeline.tokenizer.encoder import Encoder; "
        "e = Encoder(Path(sys.argv[1])); e.encode_documents(['loop gate ' * 50_000] * 8); "
        "print(e.backend, len(os.listdir('/proc/self/task')))"
    )
    environ = {k: v for k, v in os.environ.items() if k != "FASTOKENS_BPE_THREADS"}
    environ["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", script, str(tokenizer_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fast", "1"]


def test_the_probe_reports_a_difference(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    texts = probe_texts(json.loads(tokenizer_path.read_text()))
    wrong = rng.choice([n for n, text in enumerate(texts) if text])
    true = encoder_module._fast_tokenizer

    def broken(as_json: str, path: Path) -> Any:
        tokenizer = true(as_json, path)

        def encode(texts: list[str], **options: Any) -> tuple[bytes, bytes]:
            raw, raw_offsets = tokenizer.encode_batch_flat(texts, **options)
            ids = np.frombuffer(raw, np.uint32).copy()
            offsets = np.frombuffer(raw_offsets, np.uint64).astype(np.int64)
            ids[rng.randrange(offsets[wrong], offsets[wrong + 1])] ^= 1
            return ids.tobytes(), raw_offsets

        return SimpleNamespace(encode_batch_flat=encode)

    monkeypatch.setattr(encoder_module, "_fast_tokenizer", broken)
    with pytest.raises(InputError, match="backend=reference") as caught:
        Encoder(tokenizer_path)
    (problem,) = caught.value.problems
    text = texts[wrong]
    assert repr(text) in problem.fact or "from character" in problem.fact
    assert len(problem.fact) < 2000
    assert problem.fact.count("[") >= 2
    Encoder(tokenizer_path, backend="reference")


def test_the_probe_finds_a_real_difference(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = encoder_module._fast_tokenizer

    def other(as_json: str, path: Path) -> Any:
        return true(as_json.replace(r"\\s*[\\r\\n]+", r"\\s*[\\n]+"), path)

    monkeypatch.setattr(encoder_module, "_fast_tokenizer", other)
    with pytest.raises(InputError, match="differently"):
        Encoder(tokenizer_path)


def test_what_fastokens_cannot_read(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastokens

    def fail(as_json: str) -> None:
        raise ValueError("unsupported")

    monkeypatch.setattr(fastokens, "Tokenizer", SimpleNamespace(from_json_str=fail))
    with pytest.raises(InputError, match="backend=reference"):
        Encoder(tokenizer_path)
