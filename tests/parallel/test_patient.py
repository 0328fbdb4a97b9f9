"""A store whose node is gone without a word holds nobody up, and may come back."""

from __future__ import annotations

import random
import threading

import pytest
from torch.distributed import HashStore

from loopcoder.parallel.patient import PatientStore, StoreSilent


class CutOff(HashStore):  # type: ignore[misc]
    """A store that does not answer while its cable is pulled."""

    def __init__(self) -> None:
        super().__init__()
        self.plugged = threading.Event()

    def get(self, key: str) -> bytes:
        self.plugged.wait()
        return bytes(super().get(key))


def test_what_is_asked_late_is_answered_in_its_place(rng: random.Random) -> None:
    cut = CutOff()
    store = PatientStore(cut, patience_s=0.05)
    values = {str(n): str(rng.random()) for n in range(20)}
    for key, value in values.items():
        store.set(key, value)
    with pytest.raises(StoreSilent):
        store.get("0")
    with pytest.raises(StoreSilent):  # at once, and nothing is asked meanwhile
        store.set("0", "never")
    assert store.silent_s >= 0.05
    cut.plugged.set()
    while True:
        try:
            found = store.get("0").decode()
            break
        except StoreSilent:
            continue
    assert found == values["0"]
    assert {key: store.get(key).decode() for key in values} == values
    assert store.check(["0", "1"]) and not store.check(["0", "another"])
    assert store.silent_s < 0.05


def test_what_the_store_raises_is_raised() -> None:
    class Gone(HashStore):  # type: ignore[misc]
        def check(self, keys: list[str]) -> bool:
            raise ConnectionResetError(keys)

    with pytest.raises(ConnectionResetError):
        PatientStore(Gone(), patience_s=5).check(["a"])
