"""Fields that are one word or a mapping: only what was meant is told, with a value to type."""

from __future__ import annotations

import shlex

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


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("path=A,B", "path=[A,B], or loopcoder train -m path=A,B for a run of each"),
        ("path=~/a,~/b", """'path=["~/a","~/b"]'"""),
        (
            "path=a b,c",
            """'path=["a b",c]', or loopcoder train -m 'path=a b,c' for a run of each""",
        ),
        (
            "data.build.sources.0.path=x,y",
            "data.build.sources.0.path=[x,y], or loopcoder train -m data.build.sources.0.path=x,y "
            "for a run of each",
        ),
        ("data.build.sources.0.packages=a,b", "data.build.sources.0.packages=[a,b]"),
        ("eval.lengths=128,256", "eval.lengths=[128,256]"),
        ("data.mixture=text:1,code:1", "'data.mixture={text:1,code:1}'"),
        ("data.build.shares=Python:1,C:2", "'data.build.shares={Python:1,C:2}'"),
        ("optim.lr=1e-3,1e-4", "loopcoder train -m optim.lr=1e-3,1e-4"),
        ("run_dir=a,b", "loopcoder train -m run_dir=a,b"),
    ],
)
def test_values_with_commas_offer_what_the_field_takes(given: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        compose(["data=files", given])
    assert [p.fix for p in caught.value.problems] == [fix]
    if fix[0] == "'" or "[" in fix:
        (override, *_) = shlex.split(fix.replace(", or", " , or"))
        compose(["data=files", override])  # what is offered can be read
