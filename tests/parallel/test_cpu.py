"""The CPU shim changes megatron-core's view of torch, and torch's own for nobody."""

from __future__ import annotations

import importlib
import inspect
import sys
import types

import pytest
import torch

from loopcoder.parallel import cpu

pytestmark = pytest.mark.skipif(
    not cpu.needed(), reason="nothing is installed where there is a GPU"
)


@pytest.fixture(autouse=True)
def _installed(ranks):
    """`mcore.initialise` has installed the shim."""


@pytest.fixture
def inside():
    """torch as megatron's modules see it."""
    return importlib.import_module("megatron.core.tensor_parallel.layers").torch


def from_shim(value: object) -> bool:
    """Whether a function, class or module comes from cpu.py, however it calls itself."""
    if inspect.isfunction(value):  # functools.wraps copies the name and module of what it wraps
        return value.__code__.co_filename == cpu.__file__
    return cpu.__name__ in (type(value).__module__, getattr(value, "__module__", ""))


def test_torch_itself_is_what_it_was():
    """Anything of the shim inside torch's own namespaces would reach other code in this process."""
    found = {
        f"{owner.__name__}.{name}"
        for owner in (
            torch,
            torch.cuda,
            torch.Tensor,
            torch.cuda.random,
            torch.cuda.memory,
            torch.random,
        )
        for name, value in vars(owner).items()
        if from_shim(value)
    }
    assert found == {"Tensor.cuda", "Tensor.pin_memory"}  # as its docstring says
    for name in cpu._FACTORIES:
        assert isinstance(getattr(torch, name), types.BuiltinFunctionType), name
    assert sys.modules["torch"] is torch
    assert type(torch.cuda) is types.ModuleType


def test_torch_still_says_that_there_is_no_gpu():
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")
    with pytest.raises((RuntimeError, AssertionError)):
        torch.cuda.current_device()
    assert not torch.cuda.is_available()
    assert torch.zeros(2).type() == "torch.FloatTensor"


def test_the_two_methods_that_are_changed(seed):
    x = torch.randn(3, generator=torch.Generator().manual_seed(seed))
    assert x.cuda() is x
    assert x.cuda(0, non_blocking=True) is x
    assert x.pin_memory() is x


def test_every_megatron_module_sees_the_proxy():
    seen = {
        name: module.__dict__["torch"]
        for name, module in list(sys.modules.items())
        if name.startswith("megatron.") and "torch" in module.__dict__
    }
    assert len(seen) > 50
    assert [name for name, value in seen.items() if value is torch] == []


def test_modules_outside_megatron_see_torch():
    for name, module in list(sys.modules.items()):
        if not name.startswith("megatron.") and name != cpu.__name__:
            assert not from_shim(getattr(module, "__dict__", {}).get("torch")), name


def test_a_module_that_megatron_imports_later_sees_the_proxy(tmp_path, monkeypatch, inside):
    (tmp_path / "imported_late.py").write_text("import torch\n")
    package = importlib.import_module("megatron.core")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    late = importlib.import_module("megatron.core.imported_late")
    monkeypatch.delitem(sys.modules, "megatron.core.imported_late")
    monkeypatch.delattr(package, "imported_late")
    assert late.torch is inside


def test_installing_again_changes_nothing():
    hooks, method = list(sys.meta_path), torch.Tensor.cuda
    cpu.install()
    assert sys.meta_path == hooks
    assert torch.Tensor.cuda is method


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 1)], ids=str)
def test_the_proxys_cuda_is_the_cpu(inside, device):
    assert inside.zeros(2, 3, device=device).device.type == "cpu"
    assert inside.empty(4, device=device, pin_memory=True).shape == (4,)
    assert inside.tensor([1, 2], dtype=torch.int32, device=device).dtype == torch.int32
    assert inside.full_like(torch.ones(3), 7.0, device=device).tolist() == [7.0] * 3
    on_current = inside.arange(3, device=inside.cuda.current_device())
    assert on_current.device.type == "cpu"


def test_the_proxy_passes_everything_else_on(inside):
    assert inside.nn is torch.nn
    assert inside.Tensor is torch.Tensor
    assert inside.matmul is torch.matmul
    assert inside.cuda.FloatTensor is torch.cuda.FloatTensor
    assert not inside.cuda.is_available()
    with pytest.raises(AttributeError):
        _ = inside.no_such_function


def test_streams_and_events_have_always_happened(inside):
    stream = inside.cuda.Stream()
    with inside.cuda.stream(stream):
        event = stream.record_event()
    inside.cuda.current_stream().wait_stream(stream)
    inside.cuda.current_stream().wait_event(event)
    inside.cuda.synchronize()
    assert event.query()
    assert inside.cuda.memory_allocated() == inside.cuda.max_memory_allocated() == 0


def test_random_states_are_the_cpus(inside, seed):
    inside.cuda.manual_seed(seed)
    state = inside.cuda.get_rng_state()
    first = torch.rand(5)
    inside.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(5), first)


def test_random_regions_leave_the_outer_stream_alone(seed):
    rng = importlib.import_module("megatron.core.tensor_parallel.random")
    tracker = rng.get_cuda_rng_tracker()
    torch.manual_seed(seed)
    expected = torch.rand(4)
    torch.manual_seed(seed)
    with tracker.fork():
        first = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with tracker.fork():
        second = torch.rand(4)
    assert not torch.equal(first, second)  # the region's own stream goes on
    with pytest.raises(ZeroDivisionError), tracker.fork():
        raise ZeroDivisionError


def test_lazy_modules_are_not_asked(monkeypatch):
    """torch.utils.mkldnn of a newer torch warned of what it then made."""
    asked = []
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = asked.append
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    monkeypatch.setattr(cpu, "_with_cuda_type_names", lambda function: function)  # it is already
    cpu._patch_optimizers()
    assert "clip_grad_by_total_norm_fp32" not in asked


def test_cuda_type_names_inside_megatrons_optimizers_only():
    """megatron accepts no parameters but those that call themselves torch.cuda.*Tensor."""
    x = torch.zeros(2)

    def names() -> tuple[str, str]:
        return x.type(), x.bfloat16().type()

    assert cpu._with_cuda_type_names(names)() == (
        "torch.cuda.FloatTensor",
        "torch.cuda.BFloat16Tensor",
    )
    assert cpu._with_cuda_type_names(lambda: x.type(torch.float64).dtype)() == torch.float64
    assert names() == ("torch.FloatTensor", "torch.BFloat16Tensor")
    with pytest.raises(ZeroDivisionError):
        cpu._with_cuda_type_names(lambda: 1 / 0)()
    assert names() == ("torch.FloatTensor", "torch.BFloat16Tensor")


def test_device_is_the_cpu():
    assert cpu.device() == torch.device("cpu")


def test_the_norm_of_all_gradients(seed):
    clip = importlib.import_module("megatron.core.optimizer.clip_grads")
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(shape, generator=generator) for shape in ((3, 5), (7,), (2, 2))]
    norm, _ = clip.l2_norm_impl(0, None, [grads], False)
    exact = torch.cat([g.flatten().double() for g in grads]).norm()
    torch.testing.assert_close(norm, exact.float().reshape(1))
    grads[1][3] = torch.nan
    assert clip.l2_norm_impl(0, None, [grads], False)[0].isnan()
