"""Messages about values are in words: no regular expression, no Python."""

from __future__ import annotations

import re

import pytest

from data_pipeline.driver import prepare
from loopcoder.config.compose import compose
from loopcoder.config.data import DataConfig
from loopcoder.errors import InputError, Problem
from tests.configs import data_config


def problem_of(override: str) -> Problem:
    with pytest.raises(InputError) as caught:
        compose([override])
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("name=a/b", "name=a-b"),
        ("name=my first run", "name=my-first-run"),
        ("name=../../etc", "name=etc"),
        ("name=-x", "name=x"),
        ("name=ünïcode!", "name=ünïcode"),
        ("name=///", "name=null"),
        ('name="a, b"', "name=a-b"),
        ("data.name=a/b", "data.name=a-b"),
        ("data.name=/", "data.name=sample"),
    ],
)
def test_a_name_says_what_it_may_have_and_offers_a_clean_one(override: str, fix: str) -> None:
    problem = problem_of(override)
    assert problem.fix == fix
    assert problem.why.startswith("it is part of a folder's name: ")
    assert not re.search(r"[\\^$\[\]]|pattern|String|class", problem.why)
    if "null" not in fix:
        compose([fix])


@pytest.mark.parametrize("name", ["1.10", "_x", "ünïcode", "lr=1e-3+wsd@2", "a-b.c"])
def test_a_clean_name_is_taken(name: str) -> None:
    assert compose([f"name={name}"]).name == name


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("data.stages=[3]", "data.stages.0={until:VALUE}"),
        ("data.build.sources=[x]", "data.build.sources.0={kind:VALUE}"),
    ],
)
def test_an_entry_that_is_a_section_is_shown_as_one(override: str, fix: str) -> None:
    assert problem_of(override).fix.strip("'") == fix


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (data_config(name="x", seq_length=8, mixture={"text": 1}, sources=[]), "data.path is null"),
        (compose(["data.mixture={text:1,x:1}"]).data, "there is no domain 'x'"),
    ],
)
def test_the_pipeline_says_it_in_words_too(data: DataConfig, says: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(data)
    assert says in str(caught.value)
    assert not re.search(r"\[['\"]|None", str(caught.value))
