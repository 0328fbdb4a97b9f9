"""Weights for what is no domain: refused, with a corpus of its own as the way to have one."""

from __future__ import annotations

import pytest

from loopcoder.config.compose import compose
from loopcoder.errors import InputError


@pytest.mark.parametrize(
    "override",
    [
        "data.mixture={sources:{a:1}}",
        "data.mixture={text:1,languages:{Python:2,Java:1}}",
        "data.mixture.code={Python:2}",
        "data.stages=[{mixture:{code:{Python:2}}}]",
    ],
)
def test_weights_below_a_domain_are_refused_with_a_corpus_each(override: str) -> None:
    with pytest.raises(InputError) as error:
        compose([override])
    (problem,) = error.value.problems
    assert "lie mixed" in problem.why and "data.corpora=[{path:FOLDER,weight:1}" in problem.fix
