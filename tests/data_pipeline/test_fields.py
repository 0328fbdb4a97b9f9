"""No value of any field of `data` ends in a traceback: it is taken, or refused in words."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.driver import check_input, prepare
from loopcoder.backends import detect
from loopcoder.config.check import check
from loopcoder.config.compose import _validate, compose, load_config, to_yaml
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import FieldAt, leaves
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config
from loopcoder.errors import InputError
from tests.configs import data_config

_ROOT = FieldAt(Config)
KEYS = [
    key
    for section in ("data", "data.build.sources.0", "data.stages.0")
    for key, _ in leaves(_ROOT.at(section.split(".")) or _ROOT, f"{section}.")
]
NUMBERS = [-1, 0, 1, 0.5, 1e-300, 1e300, 10**30, 2**63, float("nan"), float("inf"), True, False]
TEXTS = ["", " ", "x", "nope", "\0", "\ud800", "~nosuchuser/x", "a" * 5000, "x://y", "1", "[", "*"]
LISTS: list[Any] = [[], [""], [None], [1], ["x", "x"], [[]], [{}], ["\0"], ["~nosuchuser"]]
MAPPINGS: list[dict[Any, Any]] = [
    {},
    {"": 1},
    {"x": -1},
    {"x": "y"},
    {"x": ["y"]},
    {"code": 2},
    {"text": 1, "code": 1e-300},
    {"text": 1, "cdoe": 1},
    {"Pyhton": 1},
    {"Python": 0},
    {"*": 0, "Python": 1e-320},
    {0: 0.5, -1: 0.5, 10**30: 0.5},
    {"1": None},
]
ODD: list[Any] = [None, *NUMBERS, *TEXTS, *LISTS, *MAPPINGS]


def put(container: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        container = container[int(part)] if part.isdigit() else container[part]
    container[last] = value


def test_every_field_takes_odd_values_or_refuses_them(
    config: Callable[..., DataConfig], tmp_path: Path, rng: random.Random
) -> None:
    overrides = ["data.seq_length=16", "data.stages=[{until:100},{}]"]
    base = dataclasses.replace(compose(overrides), data=config())
    plain = dataclasses.asdict(base)
    plain["data"]["stages"] = [{"until": 100}, {}]
    backends, file = detect(), tmp_path / "config.yaml"
    assert len(KEYS) > 100
    for key in KEYS:
        for value in rng.sample(ODD, 5):
            container = copy.deepcopy(plain)
            put(container, key, value)
            try:
                found = _validate(Config, container, {})
                check(resolve(found, backends), 1, backends)
                check_input(found.data)
            except InputError as error:
                assert all((p.fact, p.why, p.fix) for p in error.problems), (key, value)
            except Exception as error:
                raise AssertionError(f"{key}={value!r}: {error!r}") from error
    file.write_text(to_yaml(base))
    assert load_config(file) == base


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epochs": {"code": 2}}, "the mixture takes tokens of text too"),
        ({"epochs": {"code": 2, "tetx": 1}}, "there is no domain 'tetx'"),
        ({"shares": {"Pyhton": 1}}, "{Python:1}"),
        ({"cache_dir": "~nosuchuser/x"}, "no user 'nosuchuser'"),
        ({"tokenizer": "a\0b"}, "null"),
    ],
)
def test_prepare_refuses_before_anything_is_read(
    config: Callable[..., DataConfig], fields: dict[str, Any], says: str
) -> None:
    data = config(**fields)
    for refuse in (check_input, prepare):
        with pytest.raises(InputError, match=says):
            refuse(data)
    assert not (Path(config().build.cache_dir)).exists()


def test_a_large_vocabulary_is_refused() -> None:
    """Training reserves memory for all of it at once, and the process would be aborted."""
    with pytest.raises(ValueError, match="less than or equal"):
        data_config(name="x", seq_length=8, mixture={"code": 1}, tokenizer_vocab_size=2**31)
