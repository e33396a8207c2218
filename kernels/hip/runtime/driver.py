"""Loading machine code and starting it through the GPU's driver: libcuda or libamdhip64, called with ctypes.

The two drivers have the same calls under other names, so one implementation serves both. Nothing is built for torch:
its tensors lend their addresses, its current stream the order. The AMD path has not been run on AMD hardware
(docs/hip.md).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from moeracle.kernels.hip.runtime import build

DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@dataclass(frozen=True)
class Driver:
    """One vendor's driver library and the names of its calls."""

    library: Any
    load: str
    find: str
    attribute: str
    launch: str

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            RuntimeError: it returned an error, with the driver's own text.
        """
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: error {status}{self._text(status)}")

    def _text(self, status: int) -> str:
        text = ctypes.c_char_p()
        if self.load.startswith("cu"):
            self.library.cuGetErrorString(status, ctypes.byref(text))
        else:
            self.library.hipGetErrorString.restype = ctypes.c_char_p
            text = ctypes.c_char_p(self.library.hipGetErrorString(status))
        return f": {text.value.decode()}" if text.value else ""


@cache
def driver() -> Driver:
    """Return the driver that torch's GPU build stands on.

    Raises:
        RuntimeError: its library cannot be loaded.
    """
    if torch.version.hip:
        # torch's own copy, already in the process: a second one would know nothing of torch's memory.
        folder = Path(torch.__file__).parent / "lib"
        library = _open(*(str(p) for p in sorted(folder.glob("libamdhip64.so*"))), "libamdhip64.so")
        return Driver(
            library, "hipModuleLoadData", "hipModuleGetFunction", "hipFuncSetAttribute", "hipModuleLaunchKernel"
        )
    library = _open("libcuda.so.1", "libcuda.so")
    return Driver(library, "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel")


def _open(*names: str) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(f"GPU driver: none of {', '.join(names)} can be loaded")


@cache
def _function(source: Path, name: str, defines: build.Defines, index: int) -> ctypes.c_void_p:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch = properties.gcnArchName.partition(":")[0]
        code = build.build_gfx(source, dict(defines), arch)
    else:
        code = build.build_cuda(source, dict(defines), f"sm_{properties.major}{properties.minor}")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    driver().call(driver().load, ctypes.byref(module), code.read_bytes())
    driver().call(driver().find, ctypes.byref(function), module, name.encode())
    return function


def launch_on_gpu(
    source: Path,
    name: str,
    defines: build.Defines,
    device: torch.device,
    grid: Any,
    block: Any,
    values: list[Any],
    shared: int,
) -> None:
    """Start a kernel on torch's current stream of a device and return at once.

    Args:
        source, name, defines: the .hip file, its function and its macros; built for the device at first use.
        device: where its tensors are.
        grid, block: three sizes each.
        values: its arguments as ctypes values.
        shared: bytes of dynamic shared memory.
    Raises:
        RuntimeError: the driver refuses.
        ToolchainError: no compiler for this GPU.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        stream = torch.cuda.current_stream(index).cuda_stream  # also makes torch's context current
        function = _function(source, name, defines, index)
        if shared and not torch.version.hip:  # above 48 KB, static arrays included, NVIDIA wants to be asked
            driver().call(driver().attribute, function, DYNAMIC_SHARED, shared)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        sizes = [ctypes.c_uint(n) for n in (*grid, *block, shared)]
        driver().call(driver().launch, function, *sizes, ctypes.c_void_p(stream), pointers, None)
