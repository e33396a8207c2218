"""What a kernel's Python function launches on an architecture that is not here: it is run, on pretended tensors.

Tensors are ordinary CPU tensors that say their device is "cuda"; torch answers questions about the GPU as the wanted
part would; and triton, for which the wanted architecture is active, compiles each launch and stops there. So tiles,
specializations and the path that a kernel takes are those it takes on that part, and no list of launches goes stale.

Needs a process in which triton compiles (TRITON_INTERPRET=0), one architecture a process: triton remembers its target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from moeracle.kernels import tuned
from moeracle.kernels.hopper import prepared_weight
from moeracle.kernels.toolchain.architectures import Architecture
from moeracle.kernels.toolchain.jit_arguments import arguments_of

GPU = torch.device("cuda", 0)
ENVIRONMENT = {  # of a process that compiles and never runs
    "TRITON_INTERPRET": "0",
    "TRITON_DEFAULT_FP_FUSION": "1",  # the default changes in triton 3.10
    "TRITON_DISABLE_LINE_INFO": "1",  # the same machine code without its source lines: a tenth less time
}
_PREPARE = prepared_weight.prepare_weight


class Pretended(torch.Tensor):
    """A CPU tensor that Python code takes for a GPU's."""

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)


class _Pretending(TorchFunctionMode):
    """Runs every torch function on the CPU, whatever device it names, and calls its results the GPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def real(value: Any) -> Any:
            if isinstance(value, Pretended):
                return torch.Tensor.as_subclass(value, torch.Tensor)
            if isinstance(value, torch.device) or (isinstance(value, str) and value.partition(":")[0] == "cuda"):
                return torch.device("cpu")
            return value

        def pretend(value: Any) -> Any:
            return torch.Tensor.as_subclass(value, Pretended) if isinstance(value, torch.Tensor) else value

        def each(leaf: Callable[[Any], Any], value: Any) -> Any:  # most values hold no others
            return tree_map(leaf, value) if isinstance(value, (tuple, list, dict)) else leaf(value)

        with torch._C.DisableTorchFunction():
            if func is torch.device:
                return func(*args, **(kwargs or {}))
            named = {name: each(real, value) for name, value in (kwargs or {}).items()}
            return each(pretend, func(*(each(real, value) for value in args), **named))


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel, compiled and not run.

    Args:
        kernel: the jitted function's name.
        constants: its compile-time arguments.
        grid: programs, or () where the kernel was given a function of its choices that needs a device.
        tensors: (address, bytes, shape) of each tensor argument.
        compiled: triton's compiled kernel: asm, metadata; equal launches share one.
    """

    kernel: str
    constants: dict[str, Any]
    grid: tuple[int, ...]
    tensors: tuple[tuple[int, int, tuple[int, ...]], ...]
    compiled: Any = field(repr=False)


class _Driver:
    """All that triton asks of a driver before it would launch."""

    def __init__(self, arch: Architecture) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(arch.kind, arch.number, arch.lanes)

    def get_current_target(self) -> Any:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return GPU

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"driver.{name}: a dry run compiles kernels and never launches one")


def _usual_fold(scale: torch.Tensor) -> int:
    """Return fold_of for scales as small as most models', since there are no values to look at."""
    return 2 if scale.dtype == torch.bfloat16 else 0


def _prepare_one_expert(w: Any, **kinds: bool) -> Any:
    """Prepare the first expert's weight and allocate the others: values do not matter here, but time does."""
    if w.packed.ndim == 2:
        return _PREPARE(w, **kinds)
    first = replace(w, packed=w.packed[:1], scale=w.scale[:1], zero=None if w.zero is None else w.zero[:1])
    made, E = _PREPARE(first, **kinds), w.packed.shape[0]

    def for_all_experts(part: torch.Tensor) -> torch.Tensor:
        return torch.empty(E, *part.shape[1:], dtype=part.dtype, device=part.device)

    zero = None if made.zero is None else for_all_experts(made.zero)
    return replace(made, words=for_all_experts(made.words), scale=for_all_experts(made.scale), zero=zero)


def properties_of(arch: Architecture) -> SimpleNamespace:
    """Return what torch.cuda.get_device_properties would say of an architecture's example part."""
    part, units = arch.example
    number = int(arch.number) if arch.kind == "cuda" else int(arch.name[3:-2]) * 10 + int(arch.name[-2], 16)
    return SimpleNamespace(
        name=part,
        gcnArchName=arch.name if arch.kind == "hip" else "",
        major=number // 10,
        minor=number % 10,
        multi_processor_count=units,
        warp_size=arch.lanes,
        shared_memory_per_block_optin=arch.local_most,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_multiprocessor=arch.local,
        regs_per_multiprocessor=arch.registers,
        max_threads_per_multi_processor=arch.max_waves * arch.lanes,
        L2_cache_size=32 << 20,
        total_memory=96 << 30,
    )


@contextmanager
def pretending(
    arch: Architecture, compiles: Callable[[str, tuple[Any, ...]], bool] = lambda kernel, choices: True
) -> Iterator[list[Launch]]:
    """Within this block this process has a GPU of `arch`, on which every Triton launch is compiled and recorded.

    Args:
        arch: which.
        compiles: (kernel, choices) -> whether a launch is; `choices` are equal where nothing differs but run-time
            values, which triton may specialize on: 1, and what 16 divides.
    Raises:
        RuntimeError: triton is interpreting in this process.
    """
    import triton
    from triton.runtime.jit import JITFunction

    if type(triton.language.standard.sum).__name__ == "InterpretedFunction":
        raise RuntimeError("triton: is interpreting; compile in a process with TRITON_INTERPRET=0")
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        given, constants = arguments_of(self, args, options)
        kinds = [getattr(value, "dtype", type(value)) for name, value in given.items() if name not in constants]
        launch_options = [(name, value) for name, value in options.items() if name not in self.arg_names]
        if not compiles(self.__name__, (*constants.items(), *launch_options, *kinds)):
            return None
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        tensors = tuple(
            (value.data_ptr(), value.numel() * value.element_size(), tuple(value.shape))
            for value in tree_leaves(given)
            if isinstance(value, torch.Tensor)
        )
        programs = tuple(grid(given | options)) if callable(grid) else tuple(grid)
        launches.append(Launch(self.__name__, constants, programs, tensors, compiled))
        return compiled

    facts = properties_of(arch)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "get_device_properties": lambda *_: facts,
        "get_device_capability": lambda *_: (facts.major, facts.minor),
        "get_device_name": lambda *_: facts.name,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch.version, "hip", "6.4" if arch.kind == "hip" else None))
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        stack.enter_context(mock.patch.object(prepared_weight, "prepare_weight", _prepare_one_expert))
        stack.enter_context(mock.patch.object(prepared_weight, "fold_of", _usual_fold))
        tuned._places.cache_clear()
        stack.callback(tuned._places.cache_clear)
        driver = triton.runtime.driver
        stack.callback(setattr, driver, "_active", driver._active)
        driver.set_active(_Driver(arch))
        stack.enter_context(_Pretending())
        yield launches
