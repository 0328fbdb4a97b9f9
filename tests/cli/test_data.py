"""`loopcoder data` without the pipeline; its verbs are tested with a corpus, in
tests/data_pipeline/test_driver.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from loopcoder.cli import main as cli
from loopcoder.config.compose import load_config
from tests.cli.conftest import Loop


def test_data_prints_the_folder_of_the_corpus(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data"]) == 0
    assert capsys.readouterr().out == "/the/corpus\n"
    assert loop.verified == "hash" and loop.called_with == ()
    assert cli.main(["data", "data.verify=size"]) == 0
    assert loop.verified == "size"


def test_print_config_builds_nothing(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["data", "--print-config", "data=files", "path=/x", "data.build.val_fraction=0.125"]
    assert cli.main(asked) == 0
    Path("c.yaml").write_text(capsys.readouterr().out)
    data = load_config(Path("c.yaml")).data
    assert (data.path, data.build.val_fraction) == ("/x", 0.125)
    assert cli.main([*asked, "data.build.val_fraction=2"]) == 3
    for verb in (["data", "validate"], ["doctor"], ["evaluate"], ["runs"], ["data", "list"]):
        assert cli.main([*verb, "--print-config"]) == 3  # and not ignored
    assert loop.verified == "" and loop.called_with == ()


def test_a_build_that_is_stopped_can_be_started_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["data_pipeline.driver"], "prepare", stopped)
    assert cli.main(["data"]) == 75
    assert "the same command continues" in capsys.readouterr().err
