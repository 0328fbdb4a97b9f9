"""`loopcoder data`: build a corpus, or look after one that is finished."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from loopcoder.backends import detect
from loopcoder.cli.arguments import cache_for, composed, parse_arguments
from loopcoder.cli.corpora import GIVEN
from loopcoder.cli.data_inspect import inspect
from loopcoder.cli.data_stats import stats
from loopcoder.cli.data_tools import clean, list_corpora, one_corpus, show
from loopcoder.cli.options import parse_options
from loopcoder.cli.own_tokenizer import with_own_tokenizer
from loopcoder.config.compose import to_yaml
from loopcoder.config.fields import typed
from loopcoder.data.corpus import at_once, in_use
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.storage.signals import interrupted_by_signals

HELP = """\
Build the corpus of a run, or find it already built, and print its folder.

usage: loopcoder data [--config-dir DIR] [--print-config] [key=value ...]
       loopcoder data validate CORPUS
       loopcoder data report CORPUS
       loopcoder data show CORPUS [--domain D] [--documents N] [--seed N]
       loopcoder data show CORPUS --dropped [REASON] [--documents N] [--seed N]
       loopcoder data inspect [RUN] step=N [--json] [--full] [key=value ...]
       loopcoder data stats RUN|CORPUS [--json] [key=value ...]
       loopcoder data list [--cache DIR] [--json]
       loopcoder data clean [NAME...] [--older-than DAYS] [--unfinished] [--cache DIR] [--yes]
       loopcoder data train-langid PATH... --out FILE
       loopcoder data audit PATH... [--model FILE]
       loopcoder data chat-from-docs OUT.jsonl [--only PART...] [--reasoning] [--seed N]
       loopcoder data chat-from-evals WHEEL|FOLDER OUT.jsonl [--max-per-task N]

  loopcoder data data=files path=~/src              a folder; the same command again continues
  loopcoder data data=packages model=plt_7b         real text and code from Debian and npm packages
  loopcoder data data=chat path=CHATS.jsonl data.build.tokenizer=RUN
                                                    conversations, in a run's tokens and template
  loopcoder data data=files path=DIR data.build.shares=published data.build.executor.workers=16

  validate      compare a finished corpus with its manifest and with what training relies on
  report        write its report for people, report.html, anew
  show          print random documents of a finished corpus, or what was left out of it
  inspect       what the global batch of a step consists of, of a run or of a config
  stats         what a corpus holds, or what a run has trained on: tokens, shares, epochs
  list          the corpora in the cache, what builds left there, and which runs use them
  clean         say what of the cache would go, and remove it with --yes
  train-langid  train a classifier for the programming language of code without a name
  audit         compare the languages of code with Magika's, on a sample
  chat-from-docs   make conversations of documentation and real signatures, for tuning
  chat-from-evals  make conversations of the samples of the package evals

CORPUS is a folder, a name that `loopcoder data list` prints, or the folder of a run."""


def run(argv: list[str]) -> int:
    """Build the corpus of a config and print its folder, or run one of the verbs below `data`."""
    if argv and argv[0] in _VERBS:
        return _VERBS[argv[0]](argv[1:])
    if argv and "=" not in argv[0] and not argv[0].startswith("-"):
        raise _no_verb(argv)
    arguments = parse_arguments(argv, takes=["--print-config"])
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    config = composed(arguments, detect())
    if arguments.print_config:
        print(to_yaml(config), end="")
        return EXIT_DONE
    interrupted_by_signals("stopped it")
    from data_pipeline.driver import prepare

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with cache_for(config.data):
            data = with_own_tokenizer(config).data
            corpus = prepare(data, report=report, verify=at_once(data))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "data: stopped; the same command continues with what is not done yet"
        ) from error
    for member in corpus.members:
        print(member.url or member.dir)
    return EXIT_DONE


def _no_verb(argv: list[str]) -> InputError:
    """Return the error for what is neither a verb below `data` nor an override."""
    near = difflib.get_close_matches(argv[0], _VERBS, n=1)
    fix = " ".join(["loopcoder data", *near, *argv[1:]]) if near else "loopcoder data --help"
    if not near and Path(argv[0]).expanduser().exists():
        fix = f"loopcoder data data=files {typed(f'path={argv[0]}')}"
    why = f"it is no key=value, and the verbs below data are {', '.join(_VERBS)}"
    return InputError.of(f"loopcoder data {argv[0]}", why, fix)


def _corpus(verb: str, what: str, argv: list[str]) -> Path | None:
    """Return the folder of the one corpus that a verb is given; None: its help was asked for."""
    operands, options = parse_options(f"data {verb}", argv, values={"--cache": "DIR"})
    if "--help" in options:
        print(f"{what}\n\nusage: loopcoder data {verb} CORPUS [--cache DIR]\n\n{GIVEN}")
        return None
    return one_corpus(f"data {verb}", operands, options)


def _validate(argv: list[str]) -> int:
    what = "Compare a finished corpus with its manifest and with what training relies on."
    folder = _corpus("validate", what, argv)
    if folder is None:
        return EXIT_DONE
    from data_pipeline.shuffle.validate import validate_corpus

    with in_use(folder):
        problems = validate_corpus(folder)
    if problems:
        raise InputError(problems)
    print(f"{folder} is sound")
    return EXIT_DONE


def _report(argv: list[str]) -> int:
    folder = _corpus("report", "Write the report of a finished corpus, report.html, anew.", argv)
    if folder is None:
        return EXIT_DONE
    from data_pipeline.finish import report_of

    with in_use(folder):
        print(report_of(folder))
    return EXIT_DONE


def _train_langid(argv: list[str]) -> int:
    from data_pipeline.tools.train_langid import main as train_langid

    return train_langid(argv)


def _audit(argv: list[str]) -> int:
    from data_pipeline.tools.audit_langid import main as audit

    return audit(argv)


def _chat_from_docs(argv: list[str]) -> int:
    from data_pipeline.tools.chat_from_docs import main as chat_from_docs

    return chat_from_docs(argv)


def _chat_from_evals(argv: list[str]) -> int:
    from data_pipeline.tools.chat_from_evals import main as chat_from_evals

    return chat_from_evals(argv)


_VERBS = {
    "validate": _validate,
    "report": _report,
    "show": show,
    "inspect": inspect,
    "stats": stats,
    "list": list_corpora,
    "clean": clean,
    "train-langid": _train_langid,
    "audit": _audit,
    "chat-from-docs": _chat_from_docs,
    "chat-from-evals": _chat_from_evals,
}
