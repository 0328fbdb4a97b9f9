"""What `loopcoder serve` is asked, before anything is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from loopcoder.cli import serve
from loopcoder.cli.renamed_fields import renamed
from loopcoder.cli.run_names import name_of
from loopcoder.config.serving import ServeConfig
from loopcoder.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "fact", "fix"),
    [
        ([], "loopcoder serve", "loopcoder serve checkpoint=DIR"),
        (["runs/x"], "runs/x", "checkpoint=runs/x"),
        (["checkpoint="], "checkpoint=", "checkpoint=DIR"),
        (["checkpoint=R", "checkpoint=S"], "checkpoint=S", "checkpoint=DIR"),
        (["checkpoint=R", "serve.port=70000"], "serve.port=70000", "serve.port="),
        (["checkpoint=R", "serve.place=5"], "serve.place", "serve.places=5"),
        (["checkpoint=R", "serve.places=0"], "serve.places=0", "serve.places="),
        (["checkpoint=R", "optim.lr=1"], "optim.lr=1", "leave it out"),
        (["checkpoint=R", "serve.host=0.0.0.0"], "without a key", "export LOOPCODER_API_KEY="),
        (["checkpoint=R", "--reload"], "--reload", "leave it out"),
        (["checkpoint=nowhere", "serve.port=0"], "there is no folder nowhere", "loopcoder runs"),
    ],
)
def test_wrong_input_says_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fact: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOPCODER_API_KEY", raising=False)
    with pytest.raises(InputError) as raised:
        serve.run(arguments)
    problem = raised.value.problems[0]
    assert fact in problem.fact and fix in problem.fix


def test_a_port_in_use_is_found_before_weights_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="already in use"):
            serve.run(["checkpoint=nowhere", f"serve.port={port}"])


def test_an_empty_key_is_none_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPCODER_API_KEY", "")
    with pytest.raises(InputError, match="LOOPCODER_API_KEY is set to nothing"):
        serve.run(["checkpoint=nowhere"])


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("runs/small/checkpoints/step_00000010", "small"),
        ("s3://bucket/small/checkpoints/step_00000010", "small"),
        ("/exports/coder", "coder"),
        ("step_00000010", "here"),
        (".", "here"),
    ],
)
def test_the_model_is_called_after_its_run_or_folder(
    place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert name_of(place) == name


def test_what_does_not_fit_names_the_fields_of_the_command() -> None:
    with pytest.raises(InputError) as raised, renamed(serve._FIELDS):
        raise InputError.of(
            "max_length=5, model.kernels=cuda", "too long", "num_places=3, max_length=4 or less"
        )
    problem = raised.value.problems[0]
    assert problem.fact == "serve.max_length=5, model.kernels=cuda"
    assert problem.fix == "serve.places=3, serve.max_length=4 or less"


def test_help_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"serve.{name}" in text for name in ServeConfig.__dataclass_fields__)
