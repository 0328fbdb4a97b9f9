"""What is a secret, and where it is hidden."""

from __future__ import annotations

import random
import string

import pytest

from loopcoder.storage.secrets import (
    assigned_secrets,
    is_secret,
    masked,
    secret_names,
    secret_values,
)


@pytest.fixture
def secret(rng: random.Random) -> str:
    """A fresh one, of the characters that keys of S3 have."""
    characters = string.ascii_letters + string.digits + "+/="
    return "".join(rng.choices(characters, k=rng.randint(16, 40))) + "7"


def test_passwords_of_urls(secret: str) -> None:
    for before, after in (
        ("s3://me:", "@bucket/run"),
        ("cannot connect to http://:", "@proxy:8080/"),
        ("['sftp://user:", "@host/a']"),
        ("https://host/file?a=1&X-Amz-Signature=", "&b=2"),
        ("https://host/file?token=", " is gone"),
    ):
        hidden = secret.replace("&", "x")
        assert masked(f"{before}{hidden}{after}", ()) == f"{before}***{after}"
    token = secret.replace("/", "x")
    assert masked(f"https://{token}@host/a", ()) == "https://***@host/a"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run", "s3://user@bucket/run", "http://host:8080/a@b", "a: b@c", "https://a.b/c",
        "http://host/?page=2", "tcp://10.0.0.1:29500", "file:///a/b:c", "sftp://me@host/a:b",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text, ()) == text


def test_secrets_of_the_environment(secret: str) -> None:
    environ = {
        "WANDB_API_KEY": secret,
        "AWS_SECRET_ACCESS_KEY": f"{secret}2",
        "FSSPEC_S3": f'{{"key": "{secret}3", "anon": false, "endpoint_url": "http://long.name"}}',
        "FSSPEC_GCS_TOKEN": f"{secret}4",
        "https_proxy": f"http://me:{secret}5@proxy",
        "HF_TOKEN": "short",
        "MY_PASSWORD": "swordfishes",
        "SSH_KEY": "/tmp",
        "TOKENIZERS_PARALLELISM": "false1234",
        "PATH": "/usr/bin:/bin1",
    }
    names = {v: k for k, v in environ.items() if v.startswith(secret)}
    names |= {f"{secret}3": "FSSPEC_S3", f"{secret}5": "https_proxy"}
    assert secret_values(environ) == names
    others = {"HF_TOKEN", "MY_PASSWORD", "SSH_KEY"}
    assert secret_names(environ) == sorted({*names.values(), *others})
    for value in names:
        assert secret not in masked(f"x {value} y", secret_values(environ))


def test_what_a_command_sets(secret: str) -> None:
    for text in (
        f"export WANDB_API_KEY={secret}",
        f"A=1 HF_TOKEN='{secret}' x",
        f"X_PASS={secret}",
        f'API_KEY="two {secret}"',
        f"PGPASSWORD={secret}",
        f"wandb login --key={secret}",
        f"foo --password {secret}",
    ):
        assert len(assigned_secrets(text)) == 1
    for text in (
        "export WANDB_API_KEY=$(cat ~/key)",
        'HF_TOKEN="$TOKEN" x',
        "wandb login --key=$KEY --relogin; ls --token-file x",
        f"NCCL_DEBUG={secret}",
    ):
        assert assigned_secrets(text) == []
    assert is_secret("GITHUB_TOKEN") and not is_secret("TOKENS") and not is_secret("KEYBOARD")
