"""A verb with a schema of its own: its root file, its groups, its fields."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import pytest
from pydantic.dataclasses import dataclass

from loopcoder.config import compose as module
from loopcoder.config.compose import compose, conf_dir, group_options, load_config, save_config
from loopcoder.config.identity import config_hash
from loopcoder.config.schema import HardwareConfig
from loopcoder.config.types import STRICT
from loopcoder.errors import InputError


@dataclass(frozen=True, config=STRICT)
class WeightsConfig:
    """How weights are written."""

    dtype: Literal["bf16", "fp32"]
    """Number format of the weights."""


@dataclass(frozen=True, config=STRICT)
class ExportConfig:
    """What `export` writes, and where."""

    checkpoint: str
    """One checkpoint, or a folder of them."""
    output: str
    """Folder that is written."""
    weights: WeightsConfig
    hardware: HardwareConfig
    path: str | None = None
    """Not the path of `data`."""


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The presets of a run, and a root file and a group of `export` beside them."""
    folder = tmp_path / "conf"
    shutil.copytree(conf_dir(), folder)
    (folder / "export.yaml").write_text(
        "defaults:\n  - weights: bf16\n  - optional hardware: auto\n  - _self_\n"
    )
    (folder / "weights").mkdir()
    for name in ("bf16", "fp32"):
        (folder / "weights" / f"{name}.yaml").write_text(f"dtype: {name}\n")
    monkeypatch.setattr(module, "conf_dir", lambda: folder)
    return folder


def export(*overrides: str, config_dir: Path | None = None) -> ExportConfig:
    return compose(overrides, config_dir, schema=ExportConfig, root="export")


def test_a_verb_has_the_groups_of_its_own_schema(conf: Path) -> None:
    assert group_options([conf], ExportConfig, "export").keys() == {"hardware", "weights"}
    run = group_options([conf])
    assert {"checkpoint", "data", "experiment", "recipe"} <= run.keys() and "weights" not in run


def test_its_fields_do_not_collide_with_the_groups_of_a_run(tmp_path: Path) -> None:
    config = export("checkpoint=/runs/a/checkpoints", "output=~/out", "path=/p", "hardware=h100")
    assert config.checkpoint == "/runs/a/checkpoints"
    assert (config.output, config.path) == ("~/out", "/p")
    assert config.weights == WeightsConfig("bf16") and config.hardware.name == "h100"
    assert export("checkpoint=x", "output=y", "weights=fp32").weights.dtype == "fp32"
    with pytest.raises(InputError) as caught:
        compose(["checkpoint=/runs/a/checkpoints"])
    assert [p.fix for p in caught.value.problems] == ["checkpoint.init_from=/runs/a/checkpoints"]


def test_its_mistakes_are_told_by_its_schema() -> None:
    with pytest.raises(InputError) as caught:
        export("checkpont=x", "weights=fp16", "weights.dtype=int8", "model=plt_1b", "output=a,b")
    found = {p.fact: p.fix for p in caught.value.problems}
    assert found["checkpont=x"] == "checkpoint=x"
    assert found["weights=fp16"] == "weights=bf16"
    assert found["weights.dtype=int8"] == "weights.dtype=bf16"
    assert found["model=plt_1b"] == "leave it out"
    assert found["output=a,b"] == "'output=\"a,b\"'"
    assert found["checkpoint has no value"] == "checkpoint=VALUE"
    assert export("checkpoint=x", 'output="a,b"').output == "a,b"


def test_presets_of_the_user_belong_to_it_too(tmp_path: Path) -> None:
    (tmp_path / "mine" / "weights").mkdir(parents=True)
    (tmp_path / "mine" / "weights" / "small.yaml").write_text("dtype: bf16\n")
    config = export("checkpoint=x", "output=y", "weights=small", config_dir=tmp_path / "mine")
    assert config.weights.dtype == "bf16"


def test_its_config_goes_to_a_file_and_back(tmp_path: Path) -> None:
    config = export("checkpoint=x", "output=y")
    save_config(config, tmp_path / "export.yaml")
    assert load_config(tmp_path / "export.yaml", schema=ExportConfig) == config
    assert config_hash(config) != config_hash(export("checkpoint=x", "output=z"))


def test_a_root_file_that_is_not_there_is_named(conf: Path) -> None:
    (conf / "export.yaml").unlink()
    with pytest.raises(InputError, match="export"):
        export("checkpoint=x", "output=y")
