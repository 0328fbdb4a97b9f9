"""Options and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopcoder.cli.arguments import (
    Arguments,
    fields_of,
    parse_arguments,
    rank,
    say,
    section_of,
)
from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.config.generation import GenerateConfig
from loopcoder.config.serving import ServeConfig
from loopcoder.errors import InputError


def test_options_are_told_from_overrides() -> None:
    assert parse_arguments(["a=1", "-m", "~b", "--print-config"]) == Arguments(
        ["a=1", "~b"], multirun=True, print_config=True
    )
    for given in (["--config-dir", "~/x"], ["--config-dir=~/x"]):
        assert parse_arguments([*given, "a=1"]) == Arguments(["a=1"], Path.home() / "x")
    assert parse_arguments(["-h"]).help and parse_arguments(["--help"]).help


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--multi"], "the options of this verb are -m, --print-config, --config-dir"),
        (["--max-steps"], "fix: train.max_steps=NUMBER"),
        (["--max-steps", "10"], "fix: train.max_steps=10"),
        (["--lr=1e-3"], "fix: optim.lr=1e-3"),
        (["--num_loops", "seed=1"], "fix: model.num_loops=NUMBER"),
        (["--model", "plt_1b"], "fix: model=plt_1b"),
        (["-n", "2"], "fix: leave it out"),
        (["--zzz=2"], "fix: leave it out"),
        (["--config-dir"], "it needs a folder"),
        (["--config-dir="], "it needs a folder"),
    ],
)
def test_an_unknown_option_names_what_there_is(given: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_arguments(given)


def test_only_rank_0_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("one")
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert rank() == 2
    say("two")
    monkeypatch.setenv("RANK", "0")
    say("three")
    assert capsys.readouterr().out == "one\nthree\n"


@pytest.mark.parametrize("option", ["-m", "--multirun", "--print-config"])
def test_an_option_that_a_verb_would_ignore_is_refused(option: str) -> None:
    with pytest.raises(InputError, match="options of this verb are --config-dir DIR and --help"):
        parse_arguments([option, "a=1"], takes=[])


def test_the_help_of_a_section_has_its_defaults() -> None:
    lines = fields_of("generate", GenerateConfig).splitlines()
    keys = [line.split()[0] for line in lines]
    assert {"generate.max_tokens=256", "generate.seed=null", "generate.stop=[]"} <= {*keys}
    assert GenerateConfig() == section_of(keys, "generate", GenerateConfig)[0]


@pytest.mark.parametrize(
    ("name", "schema", "bare"),
    [
        ("generate", GenerateConfig, ["max_tokens=5", "seed=1"]),
        ("serve", ServeConfig, ["port=8001"]),
        ("diagnose", DiagnoseConfig, ["loops=3"]),
    ],
)
def test_a_field_of_the_section_without_its_name(
    name: str, schema: type[object], bare: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        section_of(["prompt=a", *bare], name, schema)
    assert [p.fix for p in raised.value.problems] == [f"{name}.{one}" for one in bare]
    assert section_of(["prompt=seed=1"], name, schema)[1] == ["prompt=seed=1"]
