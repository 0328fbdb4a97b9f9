"""What is wrong with finished corpora that a config names, before any of them is opened."""

from __future__ import annotations

import re
from collections.abc import Iterator

from loopcoder.config.fields import typed
from loopcoder.config.schema import Config
from loopcoder.config.types import NAME
from loopcoder.errors import Problem

_FIELDS = ("loss", "bpb", "weighting", "unigram_entropy")
"""What stands behind `val/` in the name of a field that is no set of one's own."""


def check_own_sets(config: Config) -> Iterator[Problem]:
    """Yield why the sets of `eval.corpora` cannot have the names, or be the folders, that they are
    given."""
    for name, path in config.eval.corpora.items():
        given = f"eval.corpora={{{name}:{path}}}"
        other = typed(f"eval.corpora={{own:{path}}}")
        if name in _FIELDS:
            yield Problem(given, f"val/{name} is a field of every run already", other)
        elif not re.fullmatch(NAME, name):
            why = f"the field is val/{name}/loss: letters, digits and . _ - + = , @ make a name"
            yield Problem(given, why, other)
        if not path.strip():
            why = "a validation set is the folder of a finished corpus"
            yield Problem(given, why, typed(f"eval.corpora={{{name}:FOLDER}}"))
