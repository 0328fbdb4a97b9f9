"""Samples of the package evals as conversations, without the data of other licences."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.tools.chat_from_evals import conversation_of, main
from loopcoder.chat.parsing import parse
from loopcoder.errors import InputError

DATA = "evals/registry/data"
LICENSE = f"MIT License\n- **Location**: {DATA}/borrowed\n    - **License**: CC BY-NC\n"


def sample(*messages: tuple[str, str], ideal: Any = "yes", **more: str) -> dict[str, Any]:
    given = [{"role": role, "content": content} | more for role, content in messages]
    return {"input": given, "ideal": ideal}


def files() -> dict[str, str]:
    many = [json.dumps(sample(("system", "Add."), ("user", f"{n} + 1"), ideal=f"{n + 1}"))
            for n in range(40)]  # fmt: skip
    return {
        f"{DATA}/sums/a.jsonl": "\n".join(many[:20]),
        f"{DATA}/sums/b.jsonl": "\n".join([*many[20:], "{broken", '{"ideal": 1}']),
        f"{DATA}/borrowed/a.jsonl": json.dumps(sample(("user", "not ours"))),
        "evals-3.0.dist-info/LICENSE.md": LICENSE,
    }


def made(package: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    told: list[str] = []
    assert main([str(package), str(out), *options], told.append) == 0
    assert "do not report scores" in told[-1]
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_wheel_and_its_folder_give_the_same(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evals.whl", "w") as wheel:
        for name, text in files().items():
            wheel.writestr(name, text)
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_text(text)
    rows = made(tmp_path / "evals.whl", tmp_path / "a.jsonl", "--max-per-task", "10")
    assert rows == made(tmp_path / "folder", tmp_path / "b.jsonl", "--max-per-task=10")
    assert len(rows) == 10
    assert {row["source"].rpartition("/")[0] for row in rows} == {"evals 3.0:sums"}
    for row in rows:
        first, second, answer = parse(row).messages
        assert (first.role, second.role, answer.role) == ("system", "user", "assistant")
        assert int(second.content.split()[0]) + 1 == int(answer.content)
        assert row["licence"] == "MIT" and "must not be scored" in row["made"]
    assert len(made(tmp_path / "folder", tmp_path / "c.jsonl")) == 40
    assert made(tmp_path / "folder", tmp_path / "d.jsonl", "--max-per-task=10", "--seed=1") != rows


def test_forms_of_samples() -> None:
    def told(given: dict[str, Any]) -> list[tuple[str, str]] | None:
        found = conversation_of(json.dumps(given).encode())
        return found and [(m["role"], m["content"]) for m in found]

    assert told(sample(("system", "2 + 2?"), ideal=["4", "four"])) == [
        ("user", "2 + 2?"), ("assistant", "4"),
    ]  # fmt: skip
    assert told({"input": "Who?", "ideal": "me "}) == [("user", "Who?"), ("assistant", "me")]
    assert told(sample(("user", "x"), ("assistant", "y"))) is None
    assert told(sample(("user", "x"), ("critic", "y"))) is None
    assert told(sample(("user", "x"), ideal=[])) is None
    assert told(sample(("user", " "))) is None
    shown = [
        {"role": "system", "content": "Add."},
        {"role": "system", "name": "example_user", "content": "1 + 1"},
        {"role": "system", "name": "example_assistant", "content": "2"},
        {"role": "user", "content": "2 + 2"},
    ]
    found = conversation_of(json.dumps({"input": shown, "ideal": "4"}).encode())
    assert found is not None
    assert [m["role"] for m in found] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.get("train", True) for m in found] == [True, True, False, True, True]


def test_what_is_no_such_package(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_text("no archive")
    for package in (tmp_path / "x.whl", tmp_path / "absent.whl", tmp_path):
        with pytest.raises(InputError, match="pip download --no-deps evals"):
            main([str(package), str(tmp_path / "out.jsonl")])
