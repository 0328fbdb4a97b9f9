"""Every case of a long list is in exactly one part."""

from __future__ import annotations

import pytest

from tests.parts import one_of, part_of, third_of


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_parts_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    cases = {str(i): i for i in range(20)}
    parts = []
    for k in range(1, n + 1):
        monkeypatch.setenv("LOOPCODER_TEST_PART", f"{k}/{n}")
        parts.append(part_of(cases))
    assert sorted(i for part in parts for i in part.values()) == list(range(20))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPCODER_TEST_PART", "4/3")
    with pytest.raises(ValueError, match="from 1 to 3"):
        part_of({})


def test_of_few_cases_every_part_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one_of("abc") == "abc"
    found = []
    for k in range(1, 5):
        monkeypatch.setenv("LOOPCODER_TEST_PART", f"{k}/4")
        found += one_of("abc")
    assert found == ["a", "b", "c", "a"]


def test_a_third_meets_every_one_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert third_of("ab") == "ab"
    met = set()
    for k in range(1, 32):
        monkeypatch.setenv("LOOPCODER_TEST_PART", f"{k}/31")
        met |= {(case, other) for case in third_of("xyz") for other in one_of("abcdef")}
    assert met == {(case, other) for case in "xyz" for other in "abcdef"}
