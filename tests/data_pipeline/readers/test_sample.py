"""The embedded corpus of what is installed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.driver import prepare
from data_pipeline.readers import sample
from data_pipeline.schema import Tally
from loopcoder.config.build import FimConfig, NearDedupConfig, SourceConfig
from loopcoder.config.data import DataConfig
from loopcoder.config.filters import FilterConfig
from loopcoder.errors import InputError
from tests.configs import data_config

DOMAIN_BYTES = 600_000


def make(tmp_path: Path) -> DataConfig:
    return data_config(
        name="sample",
        seq_length=64,
        mixture={"text": 1, "code": 1},
        sources=[SourceConfig(kind="sample", max_bytes=DOMAIN_BYTES)],
        cache_dir=str(tmp_path),
        tokenizer_vocab_size=600,
        filters=FilterConfig(linguist_generated="auto"),
        near_dedup=NearDedupConfig(enabled="auto"),
        fim=FimConfig(rate=0),
    )


@pytest.mark.data_full
def test_sample_is_mixed_and_repeatable(tmp_path: Path) -> None:
    first = prepare(make(tmp_path / "a"))
    second = prepare(make(tmp_path / "b"))
    assert first.fingerprint == second.fingerprint
    for name in first.manifest["files"]:
        assert (first.dir / name).read_bytes() == (second.dir / name).read_bytes()
    for domain in first.domains:
        rows = [r for r in first.manifest["plan"]["languages"] if r["domain"] == domain]
        assert 0.4 * DOMAIN_BYTES <= sum(r["supply_bytes"] for r in rows) <= DOMAIN_BYTES
    assert first.tokens("text", "train") == first.tokens("code", "train")
    languages = first.languages("code", "train")
    assert len(languages) >= 3
    assert 0 < languages["Python"]["tokens"] < 0.8 * first.tokens("code", "train")


def test_no_package_dominates_and_ours_is_left_out() -> None:
    source = sample.SampleSource("s", SourceConfig(kind="sample", max_bytes=DOMAIN_BYTES))
    tally = Tally("read")
    by_package: dict[str, int] = {}
    for document in source.documents(tally):
        assert not set(document.path.split("/")) & {"loopcoder", "data_pipeline"}
        if document.domain == "code":
            package = "/".join(document.path.split("/")[:2])
            size = len(document.text.encode())
            by_package[package] = by_package.get(package, 0) + size
            assert size <= 200_000
    tally.check()
    assert max(by_package.values()) <= 0.25 * DOMAIN_BYTES
    assert len(by_package) > 10


def test_too_small_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site-packages" / "p").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "site-packages" / "p" / f"{i}.py").write_text(f"x = {i}\n")
    monkeypatch.setattr(sample, "_roots", lambda: [("site", tmp_path / "site-packages")])
    monkeypatch.setattr(sample, "_SYSTEM_DOCS", ())
    with pytest.raises(InputError, match=r"no documents|found only .* bytes of code"):
        prepare(make(tmp_path / "cache"))


def test_packages_elsewhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dist-packages" / "p").mkdir(parents=True)
    (tmp_path / "dist-packages" / "p" / "m.py").write_text("x = 1\n")
    (tmp_path / "project" / "q").mkdir(parents=True)
    (tmp_path / "project" / "q" / "m.py").write_text("x = 1\n")
    monkeypatch.setattr(
        sys, "path", [*sys.path, str(tmp_path / "dist-packages"), str(tmp_path / "project")]
    )
    keys = [c.key for c in sample._installed()]
    assert "site/p/m.py" in keys
    assert "site/q/m.py" not in keys


@pytest.mark.data_full
def test_only_needs_numpy_tokenizers_xxhash(tmp_path: Path) -> None:
    script = f"""
import sys
extras = ("datasets", "pyarrow", "zstandard", "orjson", "fastokens", "rensa", "enry", "datatrove")
for name in (*extras, "torch", "megatron"):
    sys.modules[name] = None  # an import of it fails
from data_pipeline.driver import prepare
from tests.data_pipeline.readers.test_sample import make
from pathlib import Path
print(prepare(make(Path({str(tmp_path)!r}))).tokens("code", "train"))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
