"""GPUs as their driver shows them: how many, who uses them, what it has counted of errors."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Seen

_DRIVER = Path("/proc/driver/nvidia/version")
_ASK = ["nvidia-smi", "-q", "-x"]
_THROTTLES = {
    "hw_thermal_slowdown": "it is too hot",
    "sw_thermal_slowdown": "it is too hot",
    "hw_power_brake_slowdown": "its power supply asks for less",
    "hw_slowdown": "the hardware has lowered its clocks",
}
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)")
_OF_PROGRAMS = {"13", "31", "43", "45"}
"""Xids that a program causes by itself: a fault in its kernels, or that it was ended."""


def check_gpus(torch_cuda: str | None = None) -> Seen:
    """Ask nvidia-smi and the kernel's log; a machine without a driver has nothing to ask.

    Args:
        torch_cuda: Version of CUDA that torch was built for.
    """
    seen = Seen()
    try:
        done = subprocess.run(_ASK, capture_output=True, text=True, check=False)
    except OSError as error:
        if not _DRIVER.exists():
            seen.values["GPUs"] = "none"
            seen.ok("gpus", "none, and no driver of NVIDIA")
            return seen
        why = "there is a driver, and nothing else says what its GPUs have counted"
        fix = "install nvidia-utils of the driver's version; in a container: "
        fix += "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        seen.add("gpus", "note", f"nvidia-smi: {error.strerror}", why, fix)
        return seen
    if done.returncode:
        seen.values["GPUs"] = "none"
        said = (done.stdout + done.stderr).strip().replace("\n", " ")
        why = (
            "the driver does not answer as it should: it is not loaded, another version, or broken"
        )
        fix = "dmesg | grep -i nvrm; reload the driver (modprobe nvidia) or restart the machine"
        seen.add("gpus", "error", f"nvidia-smi ends with {done.returncode}: {said}", why, fix)
        return seen
    judge(seen, done.stdout, torch_cuda)
    _kernel_log(seen)
    return seen


def judge(seen: Seen, xml: str, torch_cuda: str | None = None) -> None:
    """Add what the answer of `nvidia-smi -q -x` says."""
    log = ElementTree.fromstring(xml)
    driver, gpus = log.findtext("driver_version", "?"), log.findall("gpu")
    names = sorted({gpu.findtext("product_name", "?") for gpu in gpus})
    seen.values |= {"GPUs": f"{len(gpus)} x {', '.join(names)}", "driver": driver}
    seen.ok("gpus", f"{seen.values['GPUs']}, driver {driver}")
    if len(names) > 1:
        why = "all ranks wait for the slowest"
        seen.add("gpus", "warning", f"GPUs of several kinds: {', '.join(names)}", why, _visible())
    _driver(seen, driver, log.findtext("cuda_version", ""), torch_cuda)
    for number, gpu in enumerate(gpus):
        _gpu(seen, f"GPU {number}", gpu)


def _driver(seen: Seen, driver: str, newest: str, torch_cuda: str | None) -> None:
    if torch_cuda is None or not newest or _version(newest) >= _version(torch_cuda):
        return
    major = _version(newest)[0] == _version(torch_cuda)[0]
    seen.add(
        "driver",
        "note" if major else "error",
        f"driver {driver} is for CUDA {newest}, torch is built for {torch_cuda}",
        "it runs by the compatibility of minor versions"
        if major
        else "an older driver does not run what was built for a newer CUDA",
        "a newer driver, or torch of an older CUDA",
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _gpu(seen: Seen, name: str, gpu: ElementTree.Element) -> None:
    """Add what is wrong with one GPU."""
    before = len(seen.findings)
    _used(seen, name, gpu)
    _errors(seen, name, gpu)
    _clocks(seen, name, gpu)
    if gpu.findtext("mig_mode/current_mig") == "Enabled":
        why = "a slice of a GPU has a share of its speed, and NCCL does not join slices"
        fix = "nvidia-smi -mig 0 (as root, with nothing running)"
        seen.add(name, "warning", "MIG is on", why, fix)
    if len(seen.findings) == before:
        used = gpu.findtext("fb_memory_usage/used", "?")
        seen.ok(name, f"{used} in use, {gpu.findtext('temperature/gpu_temp', '?')}")


def _used(seen: Seen, name: str, gpu: ElementTree.Element) -> None:
    used = _integer(gpu.findtext("fb_memory_usage/used")) or 0
    if used << 20 < t.GPU_USED_BYTES:
        return
    others = [
        f"{p.findtext('process_name', '?')} ({p.findtext('pid', '?')})"
        for p in gpu.findall("processes/process_info")
    ]
    who = ", ".join(others) or "processes that are not seen from here"
    why = "a run that needs the whole GPU has too little memory, and shares its time"
    seen.add(name, "warning", f"{used:,} MiB are in use by {who}", why, f"end them; {_visible()}")


def _errors(seen: Seen, name: str, gpu: ElementTree.Element) -> None:
    counted = {
        f"{place.tag} {kind.tag}": count
        for place in gpu.findall("ecc_errors/volatile")
        for kind in place
        if "uncorrectable" in kind.tag and (count := _integer(kind.text))
    }
    number = name.rsplit(maxsplit=1)[-1]
    reset = f"nvidia-smi --gpu-reset -i {number}, or restart the machine; if it comes again, have "
    reset += "the GPU replaced"
    if counted:
        fact = "uncorrectable memory errors since the last start: "
        fact += ", ".join(f"{count} {kind.split()[-1]}" for kind, count in counted.items())
        seen.add(name, "error", fact, "results may be wrong, and processes are ended", reset)
    if gpu.findtext("remapped_rows/remapped_row_failure") == "Yes":
        why = "its memory has no spare rows left"
        seen.add(name, "error", "a row of memory could not be remapped", why, "replace the GPU")
    elif gpu.findtext("remapped_rows/remapped_row_pending") == "Yes":
        why = "until then the faulty row stays in use"
        seen.add(name, "warning", "a row of memory waits to be remapped", why, reset)


def _clocks(seen: Seen, name: str, gpu: ElementTree.Element) -> None:
    active = _throttles(gpu)
    heat = _integer(gpu.findtext("temperature/gpu_temp"))
    fix = "look at cooling and power of the machine: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"
    if active:
        why = f"{'; '.join(active.values())}, and all ranks wait for the slowest"
        seen.add(name, "warning", f"clocks are lowered: {', '.join(active)}", why, fix)
    elif heat is not None and heat >= t.GPU_HOT_C:
        seen.add(name, "warning", f"{heat} C", "it lowers its clocks from a few degrees on", fix)


def _throttles(gpu: ElementTree.Element) -> dict[str, str]:
    """Return the reasons for which clocks are lowered; newer drivers call them by other names."""
    return {
        reason: text
        for reason, text in _THROTTLES.items()
        for group in ("clocks_event_reasons", "clocks_throttle_reasons")
        if gpu.findtext(f"{group}/{group[:-1]}_{reason}") == "Active"
    }


def _kernel_log(seen: Seen) -> None:
    """Add the Xids in the kernel's log, where this user may read it."""
    try:
        log = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return
    add_xids(seen, log)


def add_xids(seen: Seen, log: str) -> None:
    """Add faults of GPUs that a kernel's log tells of, each once."""
    for place, number in dict.fromkeys(_xids(log)):
        why = "the driver has seen the GPU fail; what it computed may be wrong"
        fix = (
            "NVIDIA's table of Xid errors says what each means; restart the machine, and leave it "
        )
        fix += "out if it comes again"
        level = "note" if number in _OF_PROGRAMS else "warning"
        if level == "note":
            why = "a program's own fault, or that it was ended"
        seen.add("xid", level, f"Xid {number} of the GPU at {place}", why, fix)  # type: ignore[arg-type]


def _xids(log: str) -> Iterator[tuple[str, str]]:
    yield from ((m[1], m[2]) for m in _XID.finditer(log))


def _integer(text: str | None) -> int | None:
    found = re.match(r"\d+", text or "")
    return int(found[0]) if found else None


def _visible() -> str:
    here = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "export CUDA_VISIBLE_DEVICES=NUMBERS of the others" + (f" (now {here})" if here else "")
