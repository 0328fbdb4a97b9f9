"""Which tokenizers of others are taken, and which are refused, with their reasons."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers

from data_pipeline.tokenizer.encoder import Encoder, train_tokenizer
from data_pipeline.tokenizer.imported import import_tokenizer
from data_pipeline.tokenizer.spec import SPECIAL_TOKENS, byte_of_char
from loopcoder.errors import InputError
from tests.data_pipeline.conftest import VOCAB_SIZE
from tests.data_pipeline.tokenizer.conftest import TEXTS, changed


def test_import_of_a_tokenizer(tmp_path: Path, tokenizer_path: Path) -> None:
    imported = import_tokenizer(tokenizer_path, "auto")
    assert imported.backend == Encoder(tokenizer_path).backend
    assert (imported.vocab_size, imported.eod_id) == (VOCAB_SIZE, VOCAB_SIZE - 64)
    assert list(imported.markers) == list(SPECIAL_TOKENS)
    assert imported.lossless
    spec = json.loads(tokenizer_path.read_text())
    fewer = [t for t in spec["added_tokens"] if t["content"] != "<|fim_middle|>"]
    tokenizer = Tokenizer.from_str(json.dumps(spec | {"added_tokens": fewer}))
    tokenizer.normalizer = normalizers.NFC()
    (tmp_path / "nfc.json").write_text(tokenizer.to_str())
    imported = import_tokenizer(tmp_path / "nfc.json", "reference")
    assert set(SPECIAL_TOKENS) - set(imported.markers) == {"<|fim_middle|>"}
    assert (imported.backend, imported.lossless) == ("reference", False)


@pytest.mark.parametrize("kind", ["bpe", "bpe_bytes", "unigram", "word"])
def test_sentencepiece_is_refused_with_its_reasons(
    tmp_path: Path, kind: str, rng: random.Random
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [" ".join(rng.choices(["loop", "gate", "shift", "tokens"], k=8)) for _ in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "sp"),
        model_type=kind.removesuffix("_bytes"),
        byte_fallback=kind == "bpe_bytes",
        vocab_size=300 if kind == "bpe_bytes" else 30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(InputError, match=f"SentencePiece model .{kind[:3].upper()}") as caught:
        import_tokenizer(tmp_path / "sp.model", "auto")
    whys = " ".join(p.why for p in caught.value.problems)
    assert ("merges are of characters" in whys) == kind.startswith("bpe")
    assert ("vanish" in whys) == (kind != "bpe_bytes")
    facts = " ".join(p.fact for p in caught.value.problems)
    assert "nmt_nfkc" in facts and "U+2581" in facts


def test_byte_fallback_is_refused(tmp_path: Path) -> None:
    # what transformers makes of Llama 2's tokenizer.model
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("\u2581", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.save(str(tmp_path / "t.json"))
    # the reason: not every text comes back
    assert tokenizer.encode("a \u2581").ids == tokenizer.encode("a\u2581 ").ids
    with pytest.raises(InputError, match="not a byte-level BPE"):
        import_tokenizer(tmp_path / "t.json", "auto")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        import_tokenizer(tmp_path / "none.model", "auto")
    (tmp_path / "tiktoken.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(InputError, match="tiktoken"):
        import_tokenizer(tmp_path / "tiktoken.model", "auto")
    for content in (b"", b"\xff\x00garbage", b"hello world\n" * 9):
        (tmp_path / "odd.model").write_bytes(content)
        with pytest.raises(InputError, match="no SentencePiece model"):
            import_tokenizer(tmp_path / "odd.model", "auto")


def test_tokenizers_that_lose_text(tmp_path: Path, tokenizer_path: Path) -> None:
    spec = json.loads(tokenizer_path.read_text())
    split, byte_level = spec["pre_tokenizer"]["pretokenizers"]
    blank = {"type": "Sequence", "pretokenizers": [split, byte_level | {"add_prefix_space": True}]}
    with pytest.raises(InputError, match="blank before every text"):
        Encoder(changed(tokenizer_path, tmp_path / "blank.json", pre_tokenizer=blank))
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, byte_level]}
    with pytest.raises(InputError, match="loses text"):
        Encoder(
            changed(tokenizer_path, tmp_path / "words.json", pre_tokenizer=words),
            backend="reference",
        )
    greedy = spec["added_tokens"][0] | {"content": "loop", "special": False, "rstrip": True}
    with pytest.raises(InputError, match=r"loses text|differently"):
        Encoder(
            changed(
                tokenizer_path,
                tmp_path / "strip.json",
                added_tokens=[*spec["added_tokens"], greedy | {"id": VOCAB_SIZE}],
            )
        )
    few = {t: i for t, i in spec["model"]["vocab"].items() if t != "Ã"}
    model = spec["model"] | {"vocab": few, "merges": []}
    with pytest.raises(InputError, match="1 of the 256 bytes"):
        Encoder(changed(tokenizer_path, tmp_path / "bytes.json", model=model))


def test_control_characters_that_a_tokenizer_lacks_are_said_to_go(
    tmp_path: Path, tokenizer_path: Path
) -> None:
    spec = json.loads(tokenizer_path.read_text())
    lacks = {char for char, byte in byte_of_char().items() if byte in (0x04, 0x1D, 0xC0, 0xF2)}
    few = {t: i for t, i in spec["model"]["vocab"].items() if not lacks & set(t)}
    merges = [m for m in spec["model"]["merges"] if not lacks & set("".join(m))]
    model = spec["model"] | {"vocab": few, "merges": merges}
    path = changed(tokenizer_path, tmp_path / "few.json", model=model)
    encoder = Encoder(path, backend="reference")
    assert not encoder.lossless
    text = "a\x04b\x1d\x1c\U00080000 \U00040000\n"
    kept = "ab\x1c \U00040000\n"
    assert encoder.normalised(text) == kept
    ids, _ = encoder.encode_pieces([text])
    assert encoder.decode_bytes(ids.tolist()) == kept.encode()


def test_unusable_tokenizers(tmp_path: Path, tokenizer_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Encoder(tmp_path / "none.json")
    (tmp_path / "cut.json").write_bytes(tokenizer_path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Encoder(tmp_path / "cut.json")
    with pytest.raises(InputError, match=r"no token <\|endoftext\|>"):
        Encoder(changed(tokenizer_path, tmp_path / "eod.json", added_tokens=[]))
    with pytest.raises(InputError, match="not a byte-level BPE"):
        Encoder(changed(tokenizer_path, tmp_path / "b.json", pre_tokenizer=None, decoder=None))
    with pytest.raises(InputError, match="tokenizer_vocab_size=320"):
        train_tokenizer(TEXTS, 319, tmp_path / "small.json")
