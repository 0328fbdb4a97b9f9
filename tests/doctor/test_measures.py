"""What is measured, and what figures are held against. GPUs: tests/gpu/test_doctor.py."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from loopcoder.config.schema import HardwareConfig
from loopcoder.doctor import measures
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Seen

AUTO = HardwareConfig(name="auto")


def test_a_product_on_a_cpu_has_no_peak() -> None:
    seen = Seen()
    measures.bf16_product(seen, torch.device("cpu"), AUTO, side=64)
    (finding,) = seen.findings
    assert finding.level == "ok" and finding.value and finding.unit == "TFLOP/s"


@pytest.mark.parametrize(("share", "level"), [(0, "ok"), (-1e6, "warning")])
def test_a_product_at_the_boundary(share: float, level: str) -> None:
    seen = Seen()
    measures.add_product(seen, "GPU 0 bf16", t.PEAK_SHARE * 1e15 + share, 1e15)
    assert seen.findings[0].level == level and "1,000 on the data sheet" in seen.findings[0].fact


def _reduced() -> list[tuple[float, bool]]:
    t.REDUCED_BYTES["gloo"] = 1 << 12
    cpu = torch.device("cpu")
    return [
        measures.all_reduce(HashStore(), 0, 1, cpu, 20, inside=inside) for inside in (True, False)
    ]


@pytest.mark.dist_full
def test_an_all_reduce_of_one_rank() -> None:
    """In a process of its own: another test's may be in a world."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_reduced).result()
    assert found == [(0, True), (0, True)]  # nothing crosses a link


@pytest.mark.parametrize(
    ("gpu", "rate", "right", "level"),
    [
        ("NVIDIA H200", t.LINK_SHARE * 450e9, True, "ok"),
        ("NVIDIA H200", t.LINK_SHARE * 450e9 - 1, True, "warning"),
        ("NVIDIA H100 PCIe", t.LINK_SHARE * 64e9, True, "ok"),
        ("a GPU of the future", 1.0, True, "ok"),
        (None, 1.0, True, "ok"),
        ("NVIDIA H200", 450e9, False, "error"),
    ],
)
def test_links_inside(gpu: str | None, rate: float, right: bool, level: str) -> None:
    seen = Seen()
    measures.add_inside(seen, rate, right, 8, AUTO, gpu)
    assert [f.level for f in seen.findings] == [level]
    assert level == "ok" or seen.findings[0].fix


def test_cards_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measures.rdma_bytes_per_s(tmp_path) is None
    for card, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "4: ACTIVE"), ("mlx5_2", "1: DOWN")):
        port = tmp_path / card / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert measures.rdma_bytes_per_s(tmp_path) == 100e9
    monkeypatch.setattr(measures, "rdma_bytes_per_s", lambda: 100e9)
    for rate, gpus, level in (
        (t.NETWORK_SHARE * 100e9, True, "ok"),
        (t.NETWORK_SHARE * 100e9 - 1, True, "warning"),
        (1e6, False, "ok"),
    ):
        seen = Seen()
        measures.add_between(seen, rate, True, 2, gpus)
        assert [f.level for f in seen.findings] == [level]
