"""Secrets of the environment and of the command line are in nothing that a run writes or prints."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from loopcoder.cli.main import main
from loopcoder.config.compose import compose
from loopcoder.errors import InputError
from loopcoder.metrics.writer import MetricsWriter, append_event
from tests.train.conftest import SMALL


def written_below(folder: Path) -> bytes:
    return b"\n".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def secret(rng: random.Random) -> str:
    return f"{rng.getrandbits(120):030x}1z"


@pytest.mark.dist_full
def test_a_run_with_secrets_around_it(
    secret: str, documents: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    environ = environment | {
        "WANDB_API_KEY": secret,
        "AWS_SECRET_ACCESS_KEY": secret,
        "HF_TOKEN": secret,
        "FSSPEC_S3": f'{{"key": "me", "secret": "{secret}"}}',
        "https_proxy": f"http://me:{secret}@localhost:9",
        "DATABASE": f"postgres://me:{secret}@localhost/x",
    }

    command = [sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"]
    command += [f"run_dir={run_dir}", "train.max_steps=2", "logging.wandb=offline"]
    done = subprocess.run(
        command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert secret not in said and secret.encode() not in written_below(tmp_path)
    assert (run_dir / "wandb").exists()


def test_what_is_printed_is_masked(
    secret: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also what is no value of a config."""
    monkeypatch.setenv("MY_TOKEN", secret)
    assert main(["train", f"--stroe=s3://me:{secret}@bucket/run"]) == 3
    assert main([f"is {secret}"]) == 3
    captured = capfd.readouterr()
    assert secret not in captured.out + captured.err
    assert "me:***@bucket" in captured.err and "is ***" in captured.err


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=files", "path=https://me:{}@host/files"],
        ["data=corpus", "path=s3://me:{}@bucket/corpus"],
        ["data=files", "data.build.sources=[{{kind:files,path:'https://me:{}@host/a'}}]"],
        ["data=files", "path=https://host/file.parquet?X-Amz-Signature={}"],
        ["checkpoint.init_from=s3://me:{}@bucket/run"],
        ["checkpoint.store=s3://me:{}@bucket/run", "checkpoint.store=null"],
        ["eval.corpora={{own:'s3://me:{}@bucket/c'}}"],
        ["checkpoint.store=s3://me:${{oc.env:MY_TOKEN}}@bucket/run"],
        ["name=run-${{oc.env:MY_TOKEN}}"],
        ["logging.wandb_project={}"],
    ],
)
def test_a_config_takes_no_secrets(
    overrides: list[str],
    secret: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_TOKEN", secret)
    asked = [override.format(secret) for override in overrides]
    with pytest.raises(InputError) as error:
        compose(asked)
    assert secret not in str(error.value) and "fix: " in str(error.value)
    assert main(["data", "--print-config", *asked]) == 3
    assert not list(tmp_path.iterdir())
    captured = capfd.readouterr()
    assert secret not in captured.out + captured.err


def test_a_preset_of_ones_own_takes_none(secret: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    preset = f"defaults: [files, _self_]\npath: https://me:{secret}@host/files\n"
    (tmp_path / "data" / "mine.yaml").write_text(preset)
    with pytest.raises(InputError, match=r"data\.path=https://me:\*\*\*@host/files has a") as error:
        compose(["data=mine"], tmp_path)
    assert secret not in str(error.value)


def test_events_quote_no_secrets(
    secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", secret)
    why = f"http://me:{secret}2@proxy refused {secret}"
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.event("run_stopped", why=why, more={"list": [why]}, step=3)
    append_event(tmp_path, "run_stopped", why=why, step=3)
    text = (tmp_path / "events.jsonl").read_text()
    assert secret not in text and text.count("http://me:***@proxy refused ***") == 3
