"""http against a real server: files, folders and patterns, and what servers and networks do."""

from __future__ import annotations

import gzip
import http.server
import io
import threading
import urllib.error
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from data_pipeline.readers import http as reader
from data_pipeline.readers import open_source
from data_pipeline.schema import Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; names in a path ask for what goes wrong."""

    seen: ClassVar[Counter[str]]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        if "nohead" in self.path:
            self.send_error(405)
        elif self._is_odd():
            super().do_HEAD()

    def do_GET(self) -> None:
        self.seen[self.path] += 1
        if "lost" in self.path and (self.seen[self.path] < 2 or "always" in self.path):
            self.send_response(200)
            size = Path(self.translate_path(self.path)).stat().st_size
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(b"half of it")
            self.close_connection = True
        elif "coded" in self.path:
            content = Path(self.translate_path(self.path)).read_bytes()
            packed = content if self.path.endswith(".gz") else gzip.compress(content)
            self.send_response(200)
            self.send_header("Content-Encoding", "br" if "brotli" in self.path else "gzip")
            self.send_header("Content-Length", str(len(packed)))
            self.end_headers()
            self.wfile.write(packed)
        elif self._is_odd():
            super().do_GET()

    def _is_odd(self) -> bool:
        if "moved" in self.path:
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "sub"))
            self.end_headers()
            return False
        if "forbidden" in self.path:
            self.send_error(403)
            return False
        return True


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server over `tmp_path / "site"`; its URL."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(reader, "_PAUSE_S", 0.01)
    folder = tmp_path / "site"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    class Here(Handler):
        seen: ClassVar[Counter[str]] = Counter()

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("z.py", "zipped")
    return buffer.getvalue()


FILES = {
    "a.py": b"a",
    "page.html": b"<a href='b.py'>a page, no index</a>",
    "b c.txt": b"text",
    "sub/rows.jsonl": b'{"text": "row"}\n',
    "sub/packed.jsonl.gz": gzip.compress(b'{"text": "packed"}\n'),
    "sub/deep/x.zip": zipped(),
    "node_modules/m.py": b"copy",
    ".hidden.py": b"hidden",
}
TEXTS = ["a", "text", FILES["page.html"].decode(), "row", "packed", "zipped"]


def read(url: str, **options: Any) -> tuple[list[str], Tally]:
    source = open_source(SourceConfig(kind="files", path=url), 0, **options)
    tally = Tally("read")
    found = [d.text for d in source.documents(tally)]
    tally.check()
    assert all(d[2] for d in source.identity), "a change goes unnoticed"
    return found, tally


def test_a_folder_and_all_that_is_below(site: str) -> None:
    for url in (site, f"{site}/"):
        found, tally = read(url)
        assert sorted(found) == sorted(TEXTS)
        assert tally.file_drops == {"hidden": 1, "skipped_folder": 1}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a.py", ["a"]),
        ("b%20c.txt", ["text"]),
        ("page.html", [FILES["page.html"].decode()]),
        ("sub", ["packed", "row", "zipped"]),  # the server sends it on to sub/
        ("moved/rows.jsonl", ["row"]),
        ("moved/", ["packed", "row", "zipped"]),
        ("*.py", ["a"]),
        ("*/rows.jsonl", ["row"]),
        ("**/*.gz", ["packed"]),
        ("s*", ["packed", "row", "zipped"]),
        ("sub/*/*.zip", ["zipped"]),
        ("[ab]*", ["a", "text"]),
        ("a.py?download=true", ["a"]),
        ("node_modules/m.py", ["copy"]),
    ],
)
def test_files_and_patterns(site: str, path: str, wanted: list[str]) -> None:
    assert sorted(read(f"{site}/{path}")[0]) == wanted


def test_the_same_documents_as_of_the_folder(site: str, tmp_path: Path) -> None:
    assert sorted(read(site)[0]) == sorted(read(str(tmp_path / "site"))[0])


@pytest.mark.parametrize("path", ["none.py", "none/", "*.rs", "none/*.py"])
def test_what_is_not_there(site: str, path: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(f"{site}/{path}")


def test_a_server_that_is_not_there_or_refuses(site: str) -> None:
    with pytest.raises(InputError, match=r"cannot list http://127\.0\.0\.1:1/"):
        read("http://127.0.0.1:1/x.py")
    with pytest.raises(InputError, match=r"cannot list .*403"):
        read(f"{site}/forbidden.py")


def test_a_refusal_holds_no_connection(site: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        reader._request(f"{site}/none.py", "GET")
    assert refused.value.fp is None or refused.value.fp.closed


def test_a_folder_that_may_not_be_read(site: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "forbidden").mkdir()
    (tmp_path / "site" / "forbidden.py").write_text("x")
    with pytest.raises(InputError, match=r"cannot read .*/forbidden"):
        read(site)
    found, tally = read(site, unreadable="skip")
    assert len(found) == len(TEXTS) and tally.file_drops["unreadable"] == 2


def test_a_lost_connection_costs_another_try(site: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "lost.txt").write_bytes(b"whole " * 50)
    assert read(f"{site}/lost.txt")[0] == ["whole " * 50]
    (tmp_path / "site" / "always_lost.txt").write_bytes(b"y" * 1000)
    with pytest.raises(InputError, match=r"cannot read .*the connection was lost after 10 bytes"):
        read(f"{site}/always_lost.txt")
    found, tally = read(site, unreadable="skip")
    assert len(found) == len(TEXTS) + 1
    assert tally.file_drops["unreadable"] == 1


@pytest.mark.parametrize("name", ["coded.txt", "coded.txt.jsonl", "coded.jsonl.gz"])
def test_a_coding_of_the_transfer(site: str, tmp_path: Path, name: str) -> None:
    """Some servers pack whatever they send, others say of a packed file that they did."""
    row = b'{"text": "row"}\n'
    content = {"coded.txt": b"plain", "coded.txt.jsonl": row, "coded.jsonl.gz": gzip.compress(row)}
    (tmp_path / "site" / name).write_bytes(content[name])
    assert read(f"{site}/{name}")[0] == ["plain" if name == "coded.txt" else "row"]


def test_a_coding_that_is_unknown(site: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "coded_brotli.txt").write_bytes(b"x")
    with pytest.raises(InputError, match="Content-Encoding br"):
        read(f"{site}/coded_brotli.txt")


def test_a_server_without_head(site: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "nohead.txt").write_bytes(b"got")
    assert read(f"{site}/nohead.txt")[0] == ["got"]


def test_parquet(site: str, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "site" / "p.parquet")
    assert read(f"{site}/p.parquet")[0] == ["one", "two"]


def test_a_file_that_changes_after_it_was_listed(site: str, tmp_path: Path) -> None:
    source = open_source(SourceConfig(kind="files", path=f"{site}/a.py"), 0)
    (tmp_path / "site" / "a.py").write_text("another")
    with pytest.raises(InputError, match=r"a\.py was changed after the files were listed"):
        list(source.documents(Tally("read")))
