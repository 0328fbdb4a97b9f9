"""Make megatron-core's training path run without a GPU. Inactive where one is present.

megatron-core 0.19 assumes CUDA in some forty places: it allocates on `torch.cuda.current_device()`,
opens streams, keeps random states on the device, and compares tensor types with
`'torch.cuda.FloatTensor'`. None of that matters to the arithmetic, so on a machine without a GPU we
give megatron's modules (and only them) a `torch` whose `cuda` does nothing and whose "cuda" device
is the CPU. torch itself keeps its behaviour, except that `Tensor.cuda()` and `Tensor.pin_memory()`
return the tensor.

This is the only file that does so; everything else in loopcoder asks for `device()` and gets on
with it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

_FACTORIES = (
    *("tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "eye"),
    *("rand", "randn", "randint", "linspace"),
    *("zeros_like", "ones_like", "empty_like", "full_like"),
)
"""Functions of torch that take a device."""


def needed() -> bool:
    """Whether this machine has no GPU, so that `install` has something to do."""
    return not torch.cuda.is_available()


def device() -> torch.device:
    """Return the device that this process computes on."""
    return torch.device("cpu") if needed() else torch.device("cuda", torch.cuda.current_device())


class _Stream:
    """A stream on which everything has already happened."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def wait_stream(self, *_: Any) -> None:
        pass

    def wait_event(self, *_: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None:
        pass


class _Event:
    """An event that is always complete."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: _Event) -> float:
        return 0.0


class _Cuda(types.ModuleType):
    """What megatron's modules see as `torch.cuda`; what is not here falls through to the real
    one."""

    Stream = _Stream
    Event = _Event

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def is_available(self) -> bool:
        return False

    def is_current_stream_capturing(self) -> bool:
        return False

    def synchronize(self, *_: Any, **__: Any) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def set_device(self, *_: Any) -> None:
        pass

    def current_stream(self, *_: Any, **__: Any) -> _Stream:
        return _Stream()

    default_stream = current_stream

    def stream(self, _: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def get_rng_state(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def memory_allocated(self, *_: Any) -> int:
        return 0

    max_memory_allocated = memory_allocated


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapped


class _Torch(types.ModuleType):
    """What megatron's modules see as `torch`."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = _Cuda("torch.cuda")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_PROXY = _Torch()


def _give_proxy(module: types.ModuleType) -> None:
    if module.__dict__.get("torch") is torch:
        module.torch = _PROXY  # type: ignore[attr-defined]


class _ImportHook:
    """Gives the proxy to every megatron module that is imported from now on (megatron imports
    lazily)."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith("megatron."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            _give_proxy(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _cuda_type_names() -> Iterator[None]:
    """Let `tensor.type()` say 'torch.cuda.FloatTensor', the only spelling megatron's optimizers
    accept."""
    base = torch.Tensor.type

    def named(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = base(self, *args, **kwargs)
        if args or kwargs or not isinstance(name, str) or name.startswith("torch.cuda"):
            return name
        return name.replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = named  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del torch.Tensor.type


def _with_cuda_type_names(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _cuda_type_names():
            return function(*args, **kwargs)

    return wrapped


def _patch_optimizers() -> None:
    clip = importlib.import_module("megatron.core.optimizer.clip_grads")
    optimizer = importlib.import_module("megatron.core.optimizer.optimizer")
    distributed = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    for cls in (distributed.DistributedOptimizer, optimizer.Float16OptimizerWithFloat16Params):
        cls.__init__ = _with_cuda_type_names(cls.__init__)
    original = clip.clip_grad_by_total_norm_fp32
    wrapped = _with_cuda_type_names(original)
    for module in list(sys.modules.values()):
        # not getattr, for which lazy modules, such as torch.utils.mkldnn, make what they warn of
        if getattr(module, "__dict__", {}).get("clip_grad_by_total_norm_fp32") is original:
            module.clip_grad_by_total_norm_fp32 = wrapped  # type: ignore[attr-defined]


def _patch_norm() -> None:
    """Take the norm of all gradients at once, on the device: megatron's stand-in for apex asks for
    that of each tensor."""
    clip: Any = importlib.import_module("megatron.core.optimizer.clip_grads")

    def norm(_: int, __: Any, tensors: list[list[torch.Tensor]], *___: Any) -> tuple[Any, None]:
        each = torch.stack(torch._foreach_norm(tensors[0]))
        return torch.linalg.vector_norm(each).reshape(1), None

    clip.l2_norm_impl = norm


def _patch_rng() -> None:
    """Keep megatron's per-region random states on the CPU generator."""
    rng: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    rng._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    rng._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)

    @contextlib.contextmanager
    def fork(self: Any, name: str = "model-parallel-rng") -> Iterator[None]:
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)

    rng.CudaRNGStatesTracker.fork = fork


def install() -> None:
    """Prepare megatron-core for this machine; does nothing with a GPU, or a second time."""
    if not needed() or any(isinstance(finder, _ImportHook) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _ImportHook())
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron."):
            _give_proxy(module)
    _patch_rng()
    _patch_optimizers()
    _patch_norm()
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.Tensor.pin_memory = lambda self, *_, **__: self  # type: ignore[method-assign]
