"""What nvidia-smi and the kernel's log say of GPUs, each finding planted once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loopcoder.doctor import gpus
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Seen

GPU = """<gpu id="00000000:01:00.0">
<product_name>NVIDIA H200</product_name>
<mig_mode><current_mig>Disabled</current_mig></mig_mode>
<fb_memory_usage><total>143771 MiB</total><used>12 MiB</used></fb_memory_usage>
<temperature><gpu_temp>41 C</gpu_temp></temperature>
<ecc_errors><volatile><sram_uncorrectable_parity>0</sram_uncorrectable_parity>
<dram_uncorrectable>0</dram_uncorrectable></volatile></ecc_errors>
<remapped_rows><remapped_row_pending>No</remapped_row_pending>
<remapped_row_failure>No</remapped_row_failure></remapped_rows>
<clocks_event_reasons>
<clocks_event_reason_hw_thermal_slowdown>Not Active</clocks_event_reason_hw_thermal_slowdown>
</clocks_event_reasons>
<processes></processes>
</gpu>"""


def judged(*given: str, torch_cuda: str | None = None) -> Seen:
    seen = Seen()
    xml = "<nvidia_smi_log><driver_version>580.1</driver_version><cuda_version>13.0</cuda_version>"
    gpus.judge(seen, f"{xml}{''.join(given)}</nvidia_smi_log>", torch_cuda)
    return seen


def test_gpus_that_are_well() -> None:
    seen = judged(GPU, GPU, torch_cuda="13.0")
    assert {f.level for f in seen.findings} == {"ok"}
    assert seen.values == {"GPUs": "2 x NVIDIA H200", "driver": "580.1"}


@pytest.mark.parametrize(
    ("before", "after", "level", "said"),
    [
        (">12 MiB<", f">{t.GPU_USED_BYTES >> 20} MiB<", "warning", "not seen from here"),
        (
            "<processes></processes>",
            "<processes><process_info><pid>77</pid><process_name>python</process_name>"
            "</process_info></processes>",
            "ok",
            "12 MiB",
        ),
        ("<dram_uncorrectable>0<", "<dram_uncorrectable>3<", "error", "3 dram_uncorrectable"),
        ("pending>No<", "pending>Yes<", "warning", "waits to be remapped"),
        ("failure>No<", "failure>Yes<", "error", "could not be remapped"),
        ("slowdown>Not Active<", "slowdown>Active<", "warning", "hw_thermal_slowdown"),
        ("41 C", f"{t.GPU_HOT_C} C", "warning", f"{t.GPU_HOT_C} C"),
        ("41 C", f"{t.GPU_HOT_C - 1} C", "ok", "12 MiB"),
        ("Disabled", "Enabled", "warning", "MIG is on"),
    ],
)
def test_one_that_is_not(before: str, after: str, level: str, said: str) -> None:
    assert before in GPU
    for planted in (
        GPU.replace(before, after),
        GPU.replace(before, after).replace("clocks_event_reason", "clocks_throttle_reason"),
    ):
        finding = judged(GPU, planted).findings[-1]
        assert (finding.check, finding.level) == ("GPU 1", level)
        assert said in finding.fact and ((finding.why and finding.fix) or level == "ok")


def test_gpus_of_two_kinds() -> None:
    found = judged(GPU, GPU.replace("H200", "H100")).findings
    assert any(f.level == "warning" and "several kinds" in f.fact for f in found)


@pytest.mark.parametrize(("cuda", "level"), [("13.0", None), ("13.1", "note"), ("14.0", "error")])
def test_a_driver_that_is_older_than_torch(cuda: str, level: str | None) -> None:
    found = [f.level for f in judged(GPU, torch_cuda=cuda).findings if f.check == "driver"]
    assert found == ([] if level is None else [level])


def test_faults_in_the_kernels_log() -> None:
    seen = Seen()
    line = "[ 12.3] NVRM: Xid (PCI:0000:01:00): {}, pid=1, name=python, something"
    gpus.add_xids(seen, "\n".join(map(line.format, (79, 79, 31))))
    assert [(f.level, f.fact.split()[1]) for f in seen.findings] == [
        ("warning", "79"),
        ("note", "31"),
    ]


@pytest.mark.parametrize("code", [0, 9])
def test_nvidia_smi_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    program = tmp_path / "nvidia-smi"
    log = f"<nvidia_smi_log><driver_version>1</driver_version>{GPU}</nvidia_smi_log>"
    program.write_text(f"#!/bin/sh\necho '{log if code == 0 else 'no devices'}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = [f for f in gpus.check_gpus().findings if f.check == "gpus"]
    assert found[0].level == ("error" if code else "ok")
    assert code == 0 or "no devices" in found[0].fact


def test_a_driver_without_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path)
    assert gpus.check_gpus().findings[0].level == "note"
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "none")
    assert gpus.check_gpus().findings[0].level == "ok"
