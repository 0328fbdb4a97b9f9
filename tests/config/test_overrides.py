"""A text field is what was written, wherever it stands; a number is one only where the schema has
it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.sweep.points import points
from loopcoder.backends import Backends
from loopcoder.config.compose import compose
from loopcoder.config.overrides import parse_overrides, quoted
from loopcoder.errors import InputError

WRITTEN = [
    "20241122_103000", "1.10", "007", "1e5", "5.", ".5", "-1", "+1", "0x10", "1_000", "inf", "nan",
    "true", "False", "on", "Null", "none", "a b", " a ", "a=b", "1:2", "läufe/ü", "~/x",
    "'a", "a'", '"a', '"a" b', "[a]", "/d/[0-9]*.jsonl", "{a", "f(x)", "a\\b",
]  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("key", ["run_dir", "logging.wandb_project", "data.build.sources.0.path"])
def test_a_text_is_what_was_written(key: str, text: str) -> None:
    if key.endswith("path") and text == "[a]":
        pytest.skip("a list, where one is allowed")
    (override,) = parse_overrides([f"{key}={text}"], problems := [])
    assert not problems and override.value() == text


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("run_dir=20241122_103000", "run_dir"),
        ("data.name=1.10", "data.name"),
        ("data.build.tokenizer=007", "data.build.tokenizer"),
        ("hardware.name=1e5", "hardware.name"),
        ("logging.wandb_project=true", "logging.wandb_project"),
        ("logging.wandb_project=null", "logging.wandb_project"),
        ("checkpoint.init_from=2024_11", "checkpoint.init_from"),
        ("path=007", "data.path"),
    ],
)
def test_the_config_has_it_too(override: str, path: str) -> None:
    value = compose(["data=corpus", override])
    for name in path.split("."):
        value = getattr(value, name)
    assert value == override.partition("=")[2]


@pytest.mark.parametrize(
    ("written", "text"),
    [("'x y'", "x y"), ('"1.10"', "1.10"), ('"null"', "null"), (r"a\,b", "a,b"), ("null", None)],
)
def test_quotes_escapes_and_null_are_as_before(written: str, text: str | None) -> None:
    assert compose([f"run_dir={written}"]).run_dir == text


def test_texts_inside_lists_and_mappings() -> None:
    source = "{kind:files,path:[007,1.10],licence:1.10,packages:[1e5,true],max_documents:1_000}"
    data = compose(
        [
            f"data.build.sources=[{source},{{kind:hf,path:1e5,licence:null}}]",
            "data.build.shares={1e5:1e1,C:2}",
            "data.build.filters.source_licences={1.0:1.0}",
            "data.build.decontaminate.benchmarks=[007,1.10]",
            "data.stages=[{until:1e6,mixture:{code:1.0}},{}]",
        ]
    ).data
    first, second = data.build.sources
    assert (first.path, first.licence, first.packages) == (["007", "1.10"], "1.10", ["1e5", "true"])
    assert first.max_documents == 1000
    assert (second.path, second.licence) == ("1e5", None)
    assert data.build.shares == {"1e5": 10.0, "C": 2.0}
    assert data.build.filters.source_licences == {"1.0": "1.0"}
    assert data.build.decontaminate.benchmarks == ["007", "1.10"]
    assert data.stages[0].until == 1_000_000


def test_a_mistake_shows_what_was_written() -> None:
    with pytest.raises(InputError) as caught:
        compose(["model=1e5", "wandb_project=1.10"])
    assert [p.fact for p in caught.value.problems] == ["model=1e5", "wandb_project=1.10"]
    assert caught.value.problems[1].fix == "logging.wandb_project=1.10"


def test_sweeps_keep_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    axis = "logging.wandb_project=1.10,007,1e5,'a b'"
    folder, found = points(
        ["run_dir=20241122_103000", axis, "data.name=2_0", "hardware.name='a,b'"], None, Backends()
    )
    assert folder == Path("20241122_103000")
    assert [p.config.logging.wandb_project for p in found] == ["1.10", "007", "1e5", "a b"]
    assert {(p.config.data.name, p.config.hardware.name) for p in found} == {("2_0", "a,b")}
    assert found[0].run_dir.name == "00_wandb_project=1.10"
    for point in found:
        assert compose(point.overrides).run_dir == str(point.run_dir)
    _, rates = points(["optim.lr=1e-3,2e-3"], None, Backends())
    assert rates[0].label == "optim.lr=0.001"  # as sweeps of before have named their folders


def preset(folder: Path, text: str, name: str = "mine") -> Path:
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return folder


def test_presets_may_have_names_that_look_like_numbers(tmp_path: Path) -> None:
    preset(tmp_path, "seed: 5\n", "007")
    preset(tmp_path, "run_dir: '1.10'\n", "1e5")
    config = compose(["experiment=[007,1e5]"], tmp_path)
    assert (config.seed, config.run_dir) == (5, "1.10")
    _, found = points(["experiment=007,1e5"], tmp_path, Backends())
    assert [p.config.seed for p in found] == [5, 1234]


@pytest.mark.parametrize(
    ("yaml", "key"),
    [
        ("run_dir: 20241122_103000\n", "run_dir"),
        ("run_dir: 1.10\n", "run_dir"),
        ("logging:\n  wandb_project: true\n", "logging.wandb_project"),
        ("data:\n  path: 007\n", "data.path"),
        ("hydra:\n  sweeper:\n    params:\n      data.name: 1.10\n", "data.name"),
    ],
)
def test_a_number_for_a_text_in_yaml_is_refused(tmp_path: Path, yaml: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        compose(["experiment=mine"], preset(tmp_path, yaml))
    (problem,) = caught.value.problems
    assert key in problem.fact and "in quotes" in problem.fix


def test_quoted_survives_the_parser() -> None:
    for text in ["1.10", 'a"b', "a\\", "null", "a,b", " "]:
        assert compose([f"run_dir={quoted(text)}"]).run_dir == text
