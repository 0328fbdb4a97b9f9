"""A file of a diagnosis says what was written, and what is no such file is refused in words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopcoder.diagnose.results import FORMAT, read, write
from loopcoder.errors import InputError
from tests.diagnose.made_up import compared


def test_what_was_written_is_read(tmp_path: Path, seed: int) -> None:
    diagnosis = compared(random.Random(seed))[-1]
    write(tmp_path / "a.json", diagnosis)
    assert read([tmp_path / "a.json"]) == [diagnosis]


def renamed(fields: dict[str, Any]) -> None:
    del fields["series"][0]["values"]


def as_text(fields: dict[str, Any]) -> None:
    fields["loops"] = "x"


def text_among_numbers(fields: dict[str, Any]) -> None:
    layered = next(s for s in fields["series"] if s["layers"])
    layered["values"][0][0] = "1.0"


def one_loop_less(fields: dict[str, Any]) -> None:
    fields["series"][0]["low"].pop()


def newer(fields: dict[str, Any]) -> None:
    fields["format"] = FORMAT + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (renamed, "series.0.values: Field required"),
        (as_text, "loops: Input should be a valid integer"),
        (text_among_numbers, "has other values than loops and layers"),
        (one_loop_less, "has other low than loops and layers"),
        (newer, f"it has format {FORMAT + 1}, this version reads {FORMAT}"),
        (dict.clear, "it has no 'format'"),
    ],
)
def test_what_is_none_is_refused(
    change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "a.json"
    write(path, compared(random.Random(seed))[-1])
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError) as caught:
        read([path])
    assert says in caught.value.problems[0].fact


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read([tmp_path / "a.json"])
    assert caught.value.problems[0].fact == f"there is no file {tmp_path / 'a.json'}"
