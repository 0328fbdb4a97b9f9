"""A corpus on a real S3 server, which is refused, paused, killed and started again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.driver import prepare
from loopcoder.config.data import CacheConfig, DataConfig, ResolvedStage
from loopcoder.data import mirror
from loopcoder.data.blend import Blend, reader_of
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError, LoopcoderError
from loopcoder.storage import remote
from tests.configs import data_config
from tests.data.stores import Server, needs_server, server, set_environment, written

pytestmark = [needs_server, pytest.mark.data_full]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rng = np.random.default_rng()
    return written(tmp_path_factory.mktemp("corpus"), rng, tokens=400_000, shards=2)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("s3") / "server") as started:
        yield started


@pytest.fixture(scope="module")
def url(running: Server, local: Corpus) -> str:
    return running.upload(local.dir, "corpora")


@pytest.fixture
def config(
    running: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., DataConfig]:
    set_environment(monkeypatch, running.environment())
    mirror.mirror.cache_clear()

    def make(path: str = url) -> DataConfig:
        return data_config(
            name="corpus", path=path, seq_length=200, mixture={"text": 1, "code": 1},
            reader="packed", cache=CacheConfig(dir=str(tmp_path / "kept")),
        )  # fmt: skip

    return make


def opened(config: DataConfig) -> Corpus:
    return prepare(config, report=lambda _: None, verify="small")


def rows(corpus: Corpus, config: DataConfig) -> torch.Tensor:
    stage = ResolvedStage(config.mixture, config.seq_length, 1e4)
    return Blend(corpus, stage, 0, 7, reader_of(config)).rows(np.arange(3000))[0]


def test_it_gives_the_same_samples(local: Corpus, config: Callable[..., DataConfig]) -> None:
    assert torch.equal(rows(opened(config()), config()), rows(local, config()))


@pytest.mark.parametrize(
    ("key", "secret"), [("testkey", "wrong"), ("nobody", "x"), ("other", "othersecret")]
)
def test_who_may_not_read_is_told_so(
    running: Server, config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch,
    key: str, secret: str,
) -> None:  # fmt: skip
    set_environment(monkeypatch, running.environment(key, secret))
    with pytest.raises(InputError, match="may not be read") as caught:
        opened(config())
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


def test_who_has_no_credentials_is_told_so(
    config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="may not be read"):
        opened(config())


@pytest.mark.parametrize("path", ["s3://corpora/nothing", "s3://nosuchbucket/corpus"])
def test_what_is_not_there_is_named(config: Callable[..., DataConfig], path: str) -> None:
    with pytest.raises(InputError, match=f"{path}/manifest.json is not there"):
        opened(config(path))


def test_a_server_that_answers_nothing_for_some_seconds(
    running: Server, local: Corpus, config: Callable[..., DataConfig]
) -> None:
    there = opened(config())
    running.pause()
    threading.Timer(2, running.go_on).start()
    assert torch.equal(rows(there, config()), rows(local, config()))


def test_objects_that_change_are_named(
    running: Server, local: Corpus, config: Callable[..., DataConfig]
) -> None:
    url = running.upload(local.dir, "changed")
    shard = local.prefixes("code", "train")[0].removeprefix(f"{local.dir}/") + ".bin"
    there, content = opened(config(url)), Path(local.dir, shard).read_bytes()
    running.fs.pipe_file(f"changed/corpus/{shard}", bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(InputError, match=f"{url}/{shard} is damaged in its bytes 0 to"):
        rows(there, config(url))
    running.fs.pipe_file(f"changed/corpus/{shard}", content[:-100])
    with pytest.raises(InputError, match=f"{url}/{shard} ends after"):
        rows(there, config(url))
    mirror.mirror.cache_clear()
    with pytest.raises(InputError, match=f"{url}/{shard} has .* bytes"):
        opened(config(url))


def test_a_server_that_is_gone_for_good(
    local: Corpus, config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with server(tmp_path / "its own") as own:
        url = own.upload(local.dir, "corpora")
        set_environment(monkeypatch, own.environment())
        there = opened(config(url))
        own.kill()
        monkeypatch.setattr(remote.time, "sleep", lambda _: None)
        with pytest.raises(LoopcoderError, match="its server does not answer") as caught:
            rows(there, config(url))
        assert not isinstance(caught.value, InputError)
        assert capsys.readouterr().err.count("once more in") >= len(remote.WHILE_TRAINING)
        mirror.mirror.cache_clear()
        with pytest.raises(LoopcoderError, match=r"manifest.json cannot be read"):
            opened(config(url))
