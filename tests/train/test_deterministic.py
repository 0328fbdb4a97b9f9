"""train.deterministic tells every library before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from loopcoder.errors import InputError
from loopcoder.train.deterministic import use_deterministic_algorithms

NAMES = ("CUBLAS_WORKSPACE_CONFIG", "NVTE_ALLOW_NONDETERMINISTIC_ALGO", "NCCL_ALGO")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)


def test_libraries_are_told() -> None:
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert [os.environ[name] for name in NAMES] == [":4096:8", "0", "Ring"]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    use_deterministic_algorithms()
    assert [os.environ[name] for name in NAMES] == [":16:8", "0", "Tree"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8"),
        ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1"),
        ("NCCL_ALGO", "NVLS"),
    ],
)
def test_the_opposite_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}={value}(.|\n)*unset {name}"):
        use_deterministic_algorithms()
    assert not torch.are_deterministic_algorithms_enabled()
