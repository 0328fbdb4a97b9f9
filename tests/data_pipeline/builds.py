"""Building a corpus in tests: in another process, and what came out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import Corpus

Config = Callable[..., DataConfig]
REPOSITORY = Path(__file__).parents[2]

CHILD = """
import json, sys
from data_pipeline.driver import prepare
from loopcoder.config.data import DataConfig
corpus = prepare(DataConfig(**json.loads(sys.argv[1])))
foreign = {"torch", "megatron"} & {name.partition(".")[0] for name in sys.modules}
assert not foreign, foreign
print("tokens", corpus.tokens("text", "train"))
"""


def child(config: DataConfig, before: str = "") -> subprocess.Popen[str]:
    """Start another process that runs `before` and prepares the same corpus."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", before + CHILD, json.dumps(dataclasses.asdict(config))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def token_ids(corpus: Corpus, domain: str, split: str) -> np.ndarray:
    files = [prefix + ".bin" for prefix in corpus.prefixes(domain, split)]
    return np.concatenate([np.fromfile(file, dtype=np.uint16) for file in files])


def documents(corpus: Corpus, domain: str, split: str) -> list[str]:
    """Decode every document of a split."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    ids = token_ids(corpus, domain, split)
    ends = np.flatnonzero(ids == corpus.eod_id) + 1
    assert ends[-1] == len(ids)
    return [tokenizer.decode(d[:-1].tolist()) for d in np.split(ids, ends[:-1])]


def whole(domain: str) -> dict[str, Any]:
    """Fields of a config that takes all documents of a domain: nothing is cut for the other's sake,
    nor for the last sequence's."""
    return {"mixture": {domain: 1}, "seq_length": 1}


def left(config: DataConfig, end: str) -> list[Path]:
    return [p for p in Path(config.build.cache_dir).iterdir() if p.name.endswith(end)]


def hashes(corpus: Corpus) -> dict[str, Any]:
    return dict(corpus.manifest["files"])
