"""`python -m loopcoder.doctor.child MODULE:FUNCTION ARGUMENTS`: one check in its own process."""

from __future__ import annotations

import importlib
import json
import os
import sys

from loopcoder.storage.process import exit_with_parent


def main(function: str, arguments: str) -> None:
    """Call a function with arguments in JSON, and write what it has seen as JSON.

    What libraries print, in C++ too, goes to stderr.
    """
    exit_with_parent()
    result = os.dup(1)
    os.dup2(2, 1)
    module, name = function.split(":")
    seen = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    with os.fdopen(result, "w", encoding="utf-8") as out:
        json.dump(seen.to_json(), out)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # libraries of a GPU or a network may hang at the end of a process


if __name__ == "__main__":
    main(*sys.argv[1:])
