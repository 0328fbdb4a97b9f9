"""Work folders with chunks of documents, as reading leaves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from data_pipeline.schema import Document
from data_pipeline.tasks.chunks import Chunk, ChunkWriter
from data_pipeline.tasks.work import Work
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import Corpus
from loopcoder.storage.files import write_json
from tests.configs import data_config


def work_of(folder: Path, chunks: Sequence[Sequence[Document]] = (), **fields: Any) -> Work:
    """Return a build with these chunks; keywords are fields of its config."""
    data = data_config(name="test", seq_length=8, mixture={"text": 1, "code": 1}, **fields)
    work = Work(folder, data, "f" * 16, ("text", "code"), {"text": 1, "code": 1})
    written: list[Chunk] = []
    for number, documents in enumerate(chunks):
        with ChunkWriter(work.documents, number, 1 << 62) as out:
            for document in documents:
                out.add(document)
        written += out.chunks
    work.documents.mkdir(parents=True, exist_ok=True)
    write_json(work.chunk_list, [astuple(chunk) for chunk in written])
    return work.take_over(lambda: None)


def work_left(corpus: Corpus, data: DataConfig) -> Work:
    """Return the work folder of a corpus that was built with `keep_work`, as a build has it."""
    folder = corpus.dir.with_name(f".{corpus.dir.name}.work")
    weights = dict(corpus.manifest["weights"])
    owner = (folder / "owner").read_text()
    return Work(folder, data, corpus.fingerprint, corpus.domains, weights, owner)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file; markers without their cost, which is a time."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.is_relative_to(folder / "done") and path.suffix == ".json":
            content = json.dumps(json.loads(content) | {"cost": None}).encode()
        if path.name not in ("owner", "tasks.lock"):
            found[str(path.relative_to(folder))] = content
    return found
