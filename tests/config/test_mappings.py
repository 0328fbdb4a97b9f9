"""Fields that are one word or a mapping: only what was meant is told, with a value to type."""

from __future__ import annotations

import pytest

from loopcoder.config.compose import compose
from loopcoder.errors import InputError


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("data.build.shares={Python:-1}", "data.build.shares.Python=-1"),
        ("data.build.shares={Python:nan}", "data.build.shares.Python=nan"),
        ("data.build.shares={Python:null}", "data.build.shares.Python=null"),
        ("data.build.epochs={text:x,code:1}", "data.build.epochs.text=x"),
        ("data.build.epochs={text:0}", "data.build.epochs.text=0"),
    ],
)
def test_a_wrong_value_of_a_mapping_is_one_problem(given: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        compose([given])
    (problem,) = caught.value.problems
    assert problem.fact == key
    assert problem.fix == f"{key.partition('=')[0]}=NUMBER"


def test_two_wrong_values_of_a_mapping_are_two_problems() -> None:
    with pytest.raises(InputError) as caught:
        compose(["data.build.shares={Python:x,C:-2,Go:3}"])
    assert [p.fact for p in caught.value.problems] == [
        "data.build.shares.Python=x",
        "data.build.shares.C=-2",
    ]
