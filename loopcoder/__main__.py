"""The command `loopcoder`, and `python -m loopcoder`, which is the same."""

import os
import sys
from pathlib import Path


def main() -> int:
    """Run the command line; Ctrl-C while it is imported ends with one line."""
    _read_names_as_utf8()
    _leave_working_folder()
    from loopcoder.storage.signals import ended_at_once

    with ended_at_once():
        from loopcoder.cli.main import main as run
    return run()


def _read_names_as_utf8() -> None:
    """Start again in UTF-8 mode where a locale has another encoding for the names of files.

    What we write is UTF-8; in such a locale Python has single bytes for an umlaut in a name, which
    no file of UTF-8 may hold.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
