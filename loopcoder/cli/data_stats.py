"""`loopcoder data stats`: what a corpus holds, or what a run has trained on so far."""

from __future__ import annotations

import json
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.cli.corpora import corpus_folder
from loopcoder.cli.data_tools import cache_of
from loopcoder.cli.options import config_dir_of, parse_options, split_folders
from loopcoder.cli.run_folders import runs_below
from loopcoder.data.corpus import in_use, load_corpus
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.storage.signals import interrupted_by_signals

HELP = """\
Count what a finished corpus holds, or what a run has trained on: tokens by domain, language and
source, and epochs. No GPU is needed.

usage: loopcoder data stats RUN [--json] [--cache DIR]
       loopcoder data stats CORPUS [--json] [--cache DIR] [--config-dir DIR] [key=value ...]

  loopcoder data stats runs/plt_tiny-r2-cc8f20c8a9     a run, at its newest save
  loopcoder data stats RUN/checkpoints/step_00001000   at one of its checkpoints
  loopcoder data stats sample-de90dc211f64d29c         a corpus: its folder, or its name as
                                                       `loopcoder data list` prints it, or its URL
  loopcoder data stats CORPUS model=plt_1b train.tokens=20000000000
                                                       also: epochs of it that a run would take

  --json        one object, with every language and source
  --cache DIR   where corpora are looked up, instead of $LOOPCODER_CACHE, or ~/.cache/loopcoder

A run's tokens are those of its ledger, which every save writes: what its sequences predicted,
whether it counted in the loss or not. `wanted` is what the mixtures of its data stages come to."""

_VALUES = {"--cache": "DIR", "--config-dir": "DIR"}


def stats(argv: list[str]) -> int:
    """Print what a corpus holds or a run has trained on."""
    operands, options = parse_options("data stats", argv, flags=["--json"], values=_VALUES)
    if "--help" in options:
        print(HELP)
        return EXIT_DONE
    interrupted_by_signals("before all was counted; nothing is lost")
    folders, overrides = split_folders(operands)
    if len(folders) != 1:
        raise InputError.of(
            f"loopcoder data stats {' '.join(operands)}".rstrip(),
            "it takes one run, checkpoint or finished corpus",
            "loopcoder data stats RUN, or loopcoder data stats CORPUS; loopcoder runs and "
            "loopcoder data list name what there is",
        )
    cache = cache_of(options)
    path = Path(folders[0]).expanduser()
    if _is_of_a_run(path):
        if overrides:
            raise InputError.of(
                f"loopcoder data stats {path} {' '.join(overrides)}",
                "a run has the configuration that it was trained with",
                f"loopcoder data stats {path}, or a corpus in place of the run",
            )
        from loopcoder.cli.run_stats import account_of

        account = account_of(path, cache)
        print(json.dumps(account.as_json(), indent=1) if "--json" in options else account.as_text())
        return EXIT_DONE
    from loopcoder.cli.corpus_stats import Contents, epochs_of

    folder = corpus_folder("data stats", folders[0], cache)
    with in_use(folder):
        corpus = load_corpus(folder, "size")
        contents = Contents(corpus, epochs_of(corpus, overrides, config_dir_of(options)))
        print(
            json.dumps(contents.as_json(), indent=1) if "--json" in options else contents.as_text()
        )
    return EXIT_DONE


def _is_of_a_run(path: Path) -> bool:
    """Say whether a folder is that of a run or of a checkpoint."""
    return (path / layout.STATE).is_file() or next(runs_below(path, 0), None) == path
