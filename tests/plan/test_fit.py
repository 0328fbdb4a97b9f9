"""What cannot fit is refused with a change that mends it, what may not is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from loopcoder.backends import Backends
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config
from loopcoder.errors import InputError
from loopcoder.plan import device
from loopcoder.plan.device import DeviceMemory, device_memory, machine_memory
from loopcoder.plan.fit import check_memory, needed_bytes

GIB = 2**30
SHARDED = "parallel.distributed_optimizer=true"
H200 = Backends(8, "NVIDIA H200", (9, 0), {"transformer_engine": "2.20"}, None, 140 * GIB)


def machine(total: float, free: float | None = None, processes: int = 1) -> DeviceMemory:
    free = total if free is None else free
    return DeviceMemory("this machine", int(total * GIB), int(free * GIB), processes)


def run_of(*overrides: str, backends: Backends | None = None) -> Config:
    return resolve(compose(list(overrides)), backends or Backends())


def refusal(config: Config, world_size: int, memory: DeviceMemory) -> str:
    with pytest.raises(InputError) as error:
        check_memory(config, 76_800, world_size, memory)
    return str(error.value)


def test_the_7b_model_in_fp32_on_a_small_machine_is_refused() -> None:
    text = refusal(run_of("model=plt_7b", "precision=fp32"), 1, machine(23.5))
    assert "113.5 GiB for weights, gradients and optimizer of one process" in text
    assert "28.4 GiB of weights" in text and "this machine has 23.5 GiB" in text
    # with activations, of which 113.5 GiB says nothing
    assert text.endswith("fix: model=plt_tiny, or a machine with 284.6 GiB")


@pytest.mark.parametrize(
    ("model", "total", "fix"),
    [("plt_7b", 80, "plt_1b"), ("plt_7b", 40, "plt_100m"), ("plt_1b", 4, "plt_tiny")],
)
def test_the_model_that_is_named_fits(model: str, total: float, fix: str) -> None:
    """With activations, and with the batch of its own recipe."""
    config = run_of(f"model={model}", "precision=bf16")
    assert refusal(config, 1, machine(total)).split("fix: ")[1].startswith(f"model={fix}, or ")
    assert check_memory(run_of(f"model={fix}", "precision=bf16"), 76_800, 1, machine(total)) is None


def test_where_no_model_fits_none_is_named() -> None:
    config = run_of("model=plt_7b", "precision=bf16")
    assert refusal(config, 1, machine(0.001)).split("fix: ")[1].startswith("a smaller model, or ")


@pytest.mark.parametrize(
    ("overrides", "gpus", "fix"),
    [
        ("precision=bf16 parallel.distributed_optimizer=false", 4, f"parallel.tp=2 {SHARDED}"),
        ("precision=bf16", 1, "parallel.tp=4 on 4 GPUs"),
        ("precision=fp32 parallel.tp=2", 2, "precision=bf16 parallel.tp=8 on 8 GPUs"),
    ],
)
def test_the_fix_on_gpus_fits(overrides: str, gpus: int, fix: str) -> None:
    config = run_of("model=plt_7b", *overrides.split(), backends=H200)
    small = DeviceMemory("an H100", 80 * GIB, 80 * GIB, 1)
    if "precision=fp32" in overrides:
        small = DeviceMemory("an A100", 40 * GIB, 40 * GIB, 1)
    assert refusal(config, gpus, small).endswith(f"fix: {fix}")
    changes, _, count = fix.partition(" on ")
    mended = run_of(
        "model=plt_7b",
        *(o for o in overrides.split() if o.partition("=")[0] not in changes),
        *changes.split(),
        backends=H200,
    )
    gpus = int(count.split()[0]) if count else gpus
    assert check_memory(mended, 76_800, gpus, small) is None


def test_processes_of_one_machine_share_its_memory() -> None:
    config = run_of("model=plt_1b", "precision=fp32", "train.micro_batch_size=1")
    assert check_memory(config, 32_768, 1, machine(200)) is None
    text = refusal(config, 2, machine(24, processes=2))
    assert "of 2 processes" in text and text.endswith("fix: parallel.nproc_per_node=1")
    stages = run_of("model=plt_1b", "precision=fp32", "parallel.pp=2", "train.micro_batch_size=1")
    one, _ = needed_bytes(config, 32_768, 1, 1)
    split, _ = needed_bytes(stages, 32_768, 2, 2)
    assert split == pytest.approx(one, rel=1e-3)


def test_what_may_not_fit_is_said_with_numbers() -> None:
    config = run_of("model=plt_1b", "precision=fp32")
    warning = check_memory(config, 32_768, 1, machine(64)) or ""
    assert warning.startswith("warning: this may not fit: one process needs about ")
    assert "17.3 GiB for weights, gradients and optimizer" in warning
    assert "64.0 GiB free" in warning and "train.micro_batch_size" in warning
    busy = check_memory(run_of("precision=fp32"), 1024, 1, machine(64, free=0.2)) or ""
    assert "0.2 GiB free" in busy
    assert check_memory(config, 32_768, 1, None) is None


def test_a_gpu_has_its_own_memory_and_an_unknown_one_says_nothing() -> None:
    assert device_memory(H200, 8) == DeviceMemory("NVIDIA H200", 140 * GIB, 140 * GIB, 1)
    assert device_memory(Backends(8, "NVIDIA H200", (9, 0)), 8) is None


def test_a_launcher_says_how_many_processes_share_the_machine() -> None:
    def processes(**environ: str) -> int:
        found = device_memory(Backends(), 16, environ)
        assert found is not None
        return found.processes

    assert processes() == 16
    assert processes(RANK="3", LOCAL_WORLD_SIZE="4") == 4
    assert processes(RANK="3") == 1  # srun over several nodes: better no refusal than a wrong one


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_groups", lambda root: [root / "job", root])
    everything = psutil.virtual_memory().total + psutil.swap_memory().total
    assert machine_memory(tmp_path)[0] == everything
    job = tmp_path / "job"
    job.mkdir()
    (job / "memory.max").write_text(f"{2 * GIB}\n")
    (job / "memory.current").write_text(f"{GIB}\n")
    (job / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory(tmp_path) == (2 * GIB, 3 * GIB // 2)


def test_the_limit_of_an_older_kernel_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_groups", lambda root: [root])
    (tmp_path / "memory.stat").write_text("total_inactive_file 0\n")
    (tmp_path / "memory.usage_in_bytes").write_text("0\n")
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine_memory(tmp_path)[0] > GIB
    (tmp_path / "memory.limit_in_bytes").write_text(str(GIB))
    assert machine_memory(tmp_path) == (GIB, GIB)


LONG = "eval.lengths=[64,65536]"


def test_a_length_that_no_memory_holds_is_refused_before_the_start() -> None:
    """Masks of 65,536 x 65,536 tokens: it ended in a traceback at the first evaluation."""
    config = run_of("precision=fp32", LONG)
    text = refusal(config, 1, machine(23.5))
    assert text.startswith("eval.lengths=[64,65536]: ")
    assert "an evaluation at 65,536 tokens of one process" in text and "has 23.5 GiB" in text
    assert text.endswith("fix: eval.lengths=[64]")
    assert (
        check_memory(run_of("precision=fp32", "eval.lengths=[64]"), 1024, 1, machine(23.5)) is None
    )
    only = run_of("precision=fp32", "eval.lengths=[65536]")
    assert refusal(only, 1, machine(23.5)).endswith("fix: eval.lengths=null")


@pytest.mark.parametrize(
    ("interval", "at_end"), [("null", "false"), ("null", "true"), ("7", "false")]
)
def test_what_is_never_evaluated_takes_nothing(interval: str, at_end: str) -> None:
    config = run_of("precision=fp32", LONG, f"eval.interval={interval}", f"eval.at_end={at_end}")
    if (interval, at_end) == ("null", "false"):
        assert check_memory(config, 1024, 1, machine(23.5)) is None
    else:
        assert "eval.lengths" in refusal(config, 1, machine(23.5))


def test_a_length_that_may_not_fit_is_said_with_what_does() -> None:
    config = run_of("precision=fp32", "eval.lengths=[512,16384]", "train.micro_batch_size=2")
    warning = check_memory(config, 1024, 1, machine(64, free=6)) or ""
    assert warning.startswith("warning: an evaluation may not fit: at 16,384 tokens one process")
    assert (
        "6.0 GiB free" in warning and "eval.lengths=[512], or train.micro_batch_size=1" in warning
    )
    assert check_memory(config, 1024, 1, machine(64)) is None
    one = replace(config, train=replace(config.train, micro_batch_size=1))
    less = needed_bytes(one, 1024, 1, 1)[1] / GIB - 0.1
    warning = check_memory(config, 1024, 1, machine(64, free=less)) or ""
    assert warning.endswith("eval.lengths=[512] takes less")


def test_on_a_gpu_logits_count() -> None:
    """Transformer Engine has no masks; two processes of a machine have two evaluations."""
    backends = replace(H200, gpu_memory_bytes=80 * GIB)
    gpu = DeviceMemory("an H100", 80 * GIB, 80 * GIB, 1)
    overrides = ["model=plt_1b", "precision=bf16", "train.micro_batch_size=4"]
    config = run_of(*overrides, "eval.lengths=[131072]", backends=backends)
    text = refusal(config, 8, gpu)
    assert "at 131,072 tokens" in text and "fix: eval.lengths=null" in text
    tiny = run_of("precision=fp32", "eval.lengths=[24576]", "train.micro_batch_size=1")
    assert check_memory(tiny, 1024, 1, machine(20)) is None
    assert "of 2 processes" in refusal(tiny, 2, machine(10, processes=2))
