"""The command `loopcoder`, and `python -m loopcoder`, which is the same."""

import os
import sys
from pathlib import Path


def main() -> int:
    """Run the command line; Ctrl-C while it is imported ends with one line."""
    _leave_working_folder()
    from loopcoder.storage.signals import ended_at_once

    with ended_at_once():
        from loopcoder.cli.main import main as run
    return run()


def _leave_working_folder() -> None:
    """Take the working folder off the path, where `python -m` puts it first.

    A launch.py there would be imported instead of our package of this name.
    """
    ours = Path(__file__).resolve().parents[1]
    is_first = sys.path[:1] in ([""], [os.getcwd()])  # noqa: PTH109 - as Python writes it
    if is_first and not sys.flags.safe_path and Path.cwd() != ours:
        del sys.path[0]


if __name__ == "__main__":
    sys.exit(main())
