"""Corpora as a chat pipeline packs them, of conversations of random tokens and random masks."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenizer.encoder import train_tokenizer
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.indexed import IndexedWriter
from loopcoder.data.labels import LABELS, LabelWriter
from loopcoder.data.manifest import FORMAT_VERSION
from loopcoder.data.mask import MaskWriter
from loopcoder.storage.files import synced_entry

VOCAB = 340
EOD, NEWLINE = VOCAB - 64, 77
"""Special tokens come last, and the end of a document first of them."""
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\nSo: ' -}}{%- endif -%}"
)
"""None that loopcoder would make of the tokenizer."""
LANGUAGES = ("en", "de")

Conversation = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Its tokens, the last of which is the end of a document, and which of them are trained."""


def conversation(rng: np.random.Generator, length: int) -> Conversation:
    """Draw one of some tokens, of which one is trained at least, where there are three."""
    ids = rng.integers(0, EOD, length)
    ids[-1] = EOD
    trained = rng.random(length) < rng.random()
    trained[rng.integers(1, max(2, length - 1))] = True
    trained[[0, -1]] = False
    return ids, trained


def sequence(rng: np.random.Generator, seq_length: int, longest: int) -> list[Conversation]:
    """Draw conversations that fill a sequence, the last one up to its end with filler."""
    found: list[Conversation] = []
    left = seq_length
    while left >= 3:
        found.append(conversation(rng, int(rng.integers(3, min(longest, left) + 1))))
        left -= len(found[-1][0])
    ids, trained = found[-1]
    filled = np.concatenate([ids[:-1], np.full(left, NEWLINE), ids[-1:]])
    found[-1] = filled, np.concatenate([trained[:-1], np.zeros(left + 1, dtype=bool)])
    return found


def chat_corpus(
    folder: Path,
    rng: np.random.Generator,
    *,
    seq_length: int = 32,
    sequences: int = 12,
    shards: int = 2,
    template: str = TEMPLATE,
) -> Corpus:
    """Write a packed corpus with so many sequences in each shard, and some that are held out."""
    splits: dict[str, Any] = {}
    labels = [("chat", language, "made") for language in LANGUAGES]
    names = {"train": [f"train/chat-{i:05}" for i in range(shards)], "val": ["val/chat"]}
    for split, prefixes in names.items():
        entries, rows = [], np.zeros((len(labels), 2), dtype=np.int64)
        for prefix in prefixes:
            (folder / split).mkdir(parents=True, exist_ok=True)
            packed = [c for _ in range(sequences) for c in sequence(rng, seq_length, seq_length)]
            packed.append((np.array([EOD]), np.array([False])))
            ids, trained = (np.concatenate(part) for part in zip(*packed, strict=True))
            lengths = np.array([len(own) for own, _ in packed])
            tokens, mask = IndexedWriter(folder / prefix, VOCAB), MaskWriter(folder / prefix)
            tokens.append(ids, lengths)
            mask.append(trained)
            tokens.finish()
            mask.finish()
            kinds = rng.integers(0, len(labels), len(lengths))
            of_documents = LabelWriter(len(labels))
            of_documents.append(lengths, kinds)
            of_documents.finish(folder / (prefix + LABELS))
            np.add.at(rows, kinds, np.stack([np.ones_like(lengths), lengths], axis=1))
            entries.append({"prefix": prefix, "documents": len(lengths), "tokens": len(ids)})
        by_label = [
            {"label": n, "documents": int(row[0]), "tokens": int(row[1])}
            for n, row in enumerate(rows)
        ]
        sums = {key: sum(e[key] for e in entries) for key in ("documents", "tokens")}
        splits[split] = {**sums, "languages": {}, "labels": by_label, "shards": entries}
    shutil.copy(_tokenizer(), folder / "tokenizer.json")
    np.save(folder / "token_bytes.npy", np.ones(VOCAB, dtype=np.int64))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "held_out.jsonl").write_text('{"messages": []}\n')
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): synced_entry(path) for path in paths}
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": f"{rng.integers(1 << 60):016x}",
        "tokenizer": {
            "xxh3_128": files["tokenizer.json"]["xxh3_128"],
            "vocab_size": VOCAB,
            "eod_id": EOD,
        },
        "domains": {"chat": splits},
        "labels": labels,
        "packed": {"seq_length": seq_length, "sequences": sequences * shards, "padding": 0.01},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_corpus(folder)


@functools.cache
def _tokenizer() -> Path:
    """Train a tokenizer with the special tokens of a build, once for all tests of a process."""
    path = Path(tempfile.mkdtemp(prefix="tokenizer_of_chat_")) / "tokenizer.json"
    train_tokenizer(["def add(a, b):\n    return a + b\n", "loop gate window\n"] * 20, VOCAB, path)
    return path
