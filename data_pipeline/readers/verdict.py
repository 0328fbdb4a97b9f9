"""When a source is refused for what is wrong with it: by shares of the whole, whatever the order.

What the parts of a source counted is added up when all are read, and judged then. Reading ends
early only where the verdict cannot change any more.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.readers.columns import field_of, key_of, offered
from data_pipeline.schema import Tally
from loopcoder.chat.unusable import REASONS, fix_of
from loopcoder.errors import InputError, counted

BAD_ROWS = (
    "broken_json",
    "not_an_object",
    "missing_text",
    "text_not_a_string",
    "corrupt_rows",
    *(reason for reason in REASONS if reason not in ("nothing_to_train", "too_large")),
)
"""Drops that speak against the input or the config, not only against a row."""
NOT_UTF8 = "not_utf8"
"""Fault of a text that may not be there: data.build.invalid_utf8=error."""
MAX_BAD_FRACTION = 0.2
MIN_ROWS = 1000
_MIN_BAD_FILES = 5
_NAMED = 3
"""Files that a message names for each reason."""


def judge(tally: Tally, source: str) -> None:
    """Judge a source that was read to its end.

    Raises:
        InputError: too many of its files or rows are damaged, it has faults and no document, or
            texts that are not UTF-8 and may not be there.
    """
    judge_utf8(tally)
    judge_files(tally, source, tally.files)
    judge_rows(tally, source)
    bad = {reason: n for reason, n in tally.drops.items() if reason in BAD_ROWS}
    bad |= {r: n for r, n in tally.file_drops.items() if r.startswith(("corrupt", "no_column"))}
    if bad and not tally.rows_out:
        why, fix = _advice(bad, tally, source)
        raise InputError.of(
            f"source {source} has no usable document: "
            + ", ".join(f"{n} {reason}" for reason, n in bad.items())
            + _named(tally),
            f"a source from which nothing is read would be left out unnoticed{why}",
            fix,
        )


def judge_utf8(tally: Tally, *, is_all: bool = True) -> None:
    """Raise InputError for all texts that are not UTF-8, if they were to be refused.

    Args:
        tally: Of reading.
        is_all: The source was read to its end.
    """
    number = tally.notes[NOT_UTF8]
    if not number:
        return
    named = list(tally.worst()[NOT_UTF8])
    what = "1 document is" if number == 1 else f"{number:,} documents are"
    raise InputError.of(
        f"{what} not UTF-8{'' if is_all else ' so far'}: {', '.join(named[:_NAMED])}"
        + (f" and {number - _NAMED:,} more" if number > _NAMED else ""),
        "replacing bytes or leaving documents out silently would change what is trained on",
        "data.build.invalid_utf8=replace or =drop, or convert them (iconv -t UTF-8)",
    )


def judge_files(tally: Tally, source: str, num_files: int) -> None:
    """Raise InputError if more than a fifth of `num_files` files are damaged."""
    bad = sum(n for reason, n in tally.file_drops.items() if reason.startswith("corrupt"))
    if bad >= _MIN_BAD_FILES and bad > MAX_BAD_FRACTION * num_files:
        raise InputError.of(
            f"{bad:,} of the {counted(num_files, 'file')} of source {source} are damaged: "
            + ", ".join(f"{n} {r}" for r, n in tally.file_drops.most_common())
            + _named(tally),
            f"more than {MAX_BAD_FRACTION:.0%} damaged files mean that the copy went wrong",
            "copy the files again, or take the damaged ones out of the source's path",
        )


def judge_rows(tally: Tally, source: str) -> None:
    """Raise InputError if more than a fifth of at least 1,000 rows are bad."""
    bad = {reason: tally.drops[reason] for reason in BAD_ROWS if tally.drops[reason]}
    number = sum(bad.values())
    if tally.rows_in >= MIN_ROWS and number > MAX_BAD_FRACTION * tally.rows_in:
        why, fix = _advice(bad, tally, source)
        raise InputError.of(
            f"{number:,} of the {counted(tally.rows_in, 'row')} of source {source} are unusable: "
            + ", ".join(f"{n} {r}" for r, n in tally.drops.most_common())
            + _named(tally),
            f"more than {MAX_BAD_FRACTION:.0%} bad rows point to the input or the config, "
            f"not to single rows{why}",
            fix,
        )


def _advice(bad: Mapping[str, int], tally: Tally, source: str) -> tuple[str, str]:
    """Return what more there is to say of a source, and what to do about its commonest fault.

    Args:
        bad: Rows and files by what is wrong with them.
    """
    most = max(bad, key=lambda reason: bad[reason])
    has_none = most == "no_messages" or (most.startswith("no_column") and _is_chat(source))
    if most in REASONS and not has_none:
        return "", fix_of(most, key_of(source))
    if has_none and not tally.columns:
        why = "; no column that was read holds a list of messages"
        return why, fix_of("no_messages", key_of(source))
    if tally.columns:
        named, fix = offered(tally.columns, source)
        return f"; a table without its {_field(source)} has {named}", fix
    return (
        "; it may be a wrong file or column, or a copy that went wrong",
        f"check {_field(source)} and path of the source, or take it out of data.build.sources",
    )


def _is_chat(source: str) -> bool:
    return source.partition("-")[2] == "chat"


def _field(source: str) -> str:
    return field_of(source.partition("-")[2])


def described(faults: Mapping[str, Mapping[str, int]], named: int) -> list[str]:
    """Return a line for each reason, with the worst files."""
    lines = []
    for reason, files in faults.items():
        worst = [f"{path} ({n:,})" if n > 1 else path for path, n in files.items()]
        more = " ..." if len(worst) > named else ""
        lines.append(f"{reason}: {', '.join(worst[:named])}{more}")
    return lines


def _named(tally: Tally) -> str:
    return "".join(f"\n    {line}" for line in described(tally.worst(), _NAMED))
