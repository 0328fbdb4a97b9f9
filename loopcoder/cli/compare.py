"""`loopcoder compare`: the logits of two models on a text, and where they differ first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loopcoder.backends import refuse_missing
from loopcoder.cli.arguments import parse_arguments
from loopcoder.errors import EXIT_DONE, InputError, counted
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

if TYPE_CHECKING:
    from loopcoder.differences import Difference, Side

HELP = """\
Run two models on a text, in fp32, and say where their logits are furthest apart, after each loop,
and which weights differ. Both are run by loopcoder: no code of a folder is executed.

usage: loopcoder compare checkpoint=DIR|URL folder=DIR text=TEXT

  loopcoder compare checkpoint=runs/NAME folder=export text='def add(a, b):'
  loopcoder compare checkpoint=A checkpoint=B text=@program.py   two checkpoints, on a file
  loopcoder compare folder=A folder=B text='def add(a, b):'      two folders for transformers

The exit code is 0 where the largest difference is no more than what fp32 rounds (256 of its steps,
as a share of the largest logit), and 1 where it is more. The tokens are those of the first model's
tokenizer. Of models with other numbers of loops R the loops that both have are compared, and the
last of each."""

_DIFFER = 1


def run(argv: list[str]) -> int:
    """Compare, and print what was found."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    interrupted_by_signals("before the end of the comparison; nothing is lost, start it again")
    pairs = [argument.partition("=")[::2] for argument in arguments.overrides]
    places = [value for key, value in pairs if key in ("checkpoint", "folder")]
    texts = [value for key, value in pairs if key == "text"]
    if len(places) != 2 or len(texts) != 1 or len(pairs) != 3 or not all([*places, *texts]):
        raise InputError.of(
            "loopcoder compare " + " ".join(argv),
            "it takes two models, each by checkpoint= or folder=, and one text=",
            "loopcoder compare checkpoint=DIR folder=DIR text='def add(a, b):'",
        )
    refuse_missing()
    with ended_at_once():
        from loopcoder.differences import compare, differing, side

    first, tokens = side(places[0], _text(texts[0]))
    second, _ = side(places[1], tokens, first)
    found = compare(first, second)
    print(_weights(first, second, differing(first, second)))
    if first.num_loops != second.num_loops:
        print(
            f"R differs: {first.place} has {counted(first.num_loops, 'loop')}, "
            f"{second.place} {second.num_loops}; "
            "compared are the loops that both have, and the last of each"
        )
    print("logits after each loop, counted from 0 as in metrics.jsonl:")
    for difference in found:
        print(_line(difference))
    return EXIT_DONE if all(d.is_rounding for d in found) else _DIFFER


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    path = Path(given[1:]).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "text=@FILE is read from a file in UTF-8"
        raise InputError.of(f"{path} cannot be read: {error}", why, "text=TEXT") from error


def _weights(a: Side, b: Side, names: list[str]) -> str:
    if not names:
        return f"weights: all {len(a.sums)} tensors are equal, bit for bit"
    first = names[0]
    lacks = [side.place for side in (a, b) if first not in side.sums]
    what = f"which {lacks[0]} lacks" if lacks else "is the first"
    return f"weights: {len(names)} of {len(a.sums | b.sums)} tensors differ; {first} {what}"


def _line(d: Difference) -> str:
    words = "within rounding" if d.is_rounding else "more than rounding"
    return (
        f"{_loops(*d.loop_idx)}: largest difference {abs(d.values[0] - d.values[1]):.3g} at "
        f"position {d.position}, id {d.token}: {d.values[0]:.7g} and {d.values[1]:.7g} "
        f"({d.share:.2g} of the largest logit: {words})"
    )


def _loops(first: int, second: int) -> str:
    return f"loop {first}" if first == second else f"last loops, {first} and {second}"
