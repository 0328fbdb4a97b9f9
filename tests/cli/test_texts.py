"""Whatever verb it is given to, a text is what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loopcoder.cli import evaluate
from loopcoder.cli import main as cli
from loopcoder.cli.asked import as_asked
from loopcoder.config.compose import compose, load_config
from tests.cli.conftest import Loop
from tests.cli.run_dirs import run_dir

TEXTS = ["20241122_103000", "1.10", "007", "1e5", "true", "läufe [1]"]


@pytest.mark.parametrize("text", TEXTS)
def test_train_and_doctor(loop: Loop, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", f"run_dir={text}"]) == 0
    assert loop.called_with[3] == Path(text) and loop.called_with[0].run_dir == text
    assert cli.main(["doctor", f"run_dir={text}"]) == 0
    assert f"free at {text}" in capsys.readouterr().out


@pytest.mark.parametrize("text", TEXTS)
def test_a_printed_config_reads_back(
    loop: Loop, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for verb in ("train", "data"):
        overrides = [f"logging.wandb_project={text}", "data=files", f"path={text}"]
        assert cli.main([verb, "--print-config", *overrides]) == 0
        (tmp_path / "c.yaml").write_text(capsys.readouterr().out, "utf-8")
        config = load_config(tmp_path / "c.yaml")
        assert config.logging.wandb_project == text
        assert config.data.path == text


@pytest.mark.parametrize("name", ["20241122_103000", "1.10", "007", "1e5", "true"])
def test_names_of_runs(loop: Loop, name: str) -> None:
    assert cli.main(["train", f"name={name}"]) == 0
    assert loop.called_with[3].name.startswith(f"{name}-")


@pytest.mark.parametrize(
    "name",
    ["a[b]", "[1]", "a,b", "it's", 'say "x"', "a=b", "a(b)", "läufe", "{x}", "a%20b", "1.10"],
)
def test_a_folder_of_presets(
    loop: Loop, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mine = tmp_path / "presets" / name
    (mine / "experiment").mkdir(parents=True)
    (mine / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    assert cli.main(["train", "--config-dir", str(mine), "experiment=mine"]) == 0
    assert loop.called_with[0].seed == 5
    sweep = ["train", "-m", "--print-config", f"--config-dir={mine}", "experiment=mine"]
    assert cli.main([*sweep, "model.num_loops=1,2"]) == 0
    assert capsys.readouterr().out.count("seed: 5") == 2


@pytest.mark.parametrize("text", TEXTS)
def test_evaluate(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(place: str, *_: Any) -> Any:
        asked.append(place)
        raise SystemExit

    monkeypatch.setattr(evaluate, "checkpoints", find)
    with pytest.raises(SystemExit):
        cli.main(["evaluate", f"checkpoint={text}"])
    assert asked == [text]
    data = ["data=corpus", f"path={text}"]
    assert as_asked(compose([]), compose(data), data).data.path == text


@pytest.mark.parametrize("text", TEXTS)
def test_folders_behind_other_verbs(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir(Path(text), losses=1, saved=1)
    assert cli.main(["runs", text, "--json"]) == 0
    assert f'"{text}"' in capsys.readouterr().out.encode().decode("unicode_escape")
    assert cli.main(["data", "validate", text]) == 3
    assert text in capsys.readouterr().err
