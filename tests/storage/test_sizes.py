"""Sizes of folders, and how they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopcoder.storage.files import in_words, size_of


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(1000))
    (tmp_path / "file").write_bytes(bytes(30))
    assert size_of(tmp_path) == 1030 and size_of(tmp_path / "file") == 30
    assert size_of(tmp_path / "none") == 0
    (tmp_path / "a" / "up").symlink_to(tmp_path)  # not followed, and counted as the name it is
    assert 1030 < size_of(tmp_path) < 1400


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (20e9, "20 GB"),
        (3e15, "3000 TB"),
    ],
)
def test_sizes_for_people(size: float, words: str) -> None:
    assert in_words(int(size)) == words
