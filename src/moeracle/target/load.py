"""Finding the kernels that a TARGET text names; every bad TARGET is one clear line."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from moeracle.properties.common.torch_state import PLAIN, keeping
from moeracle.ref.errors import unknown

from .declaration import Kernel, check_device, declared_in, kernel, make_kernel, require_device
from .importing import TargetError, cause, imported
from .interpreter import prepare_triton
from .tiles import EVERY

__all__ = ["Kernel", "Target", "TargetError", "kernel", "load_target", "require_device"]


# The TARGETs that are registries of ours, and where they are.
OWN = {"moeracle.kernels": "moeracle.kernels.registry", "moeracle.kernels.hip": "moeracle.kernels.hip.registry"}
# The arguments of `make_kernel` that an entry of a registry has as they are.
OF_ENTRY = ("op", "name", "layout", "device", "supports", "zeros", "dtypes")


@dataclass(frozen=True)
class Target:
    """What a TARGET text named: the text itself, and its kernels in the order they were declared.

    Args:
        name: the text.
        kernels: in the order in which they were declared.
    """

    name: str
    kernels: tuple[Kernel, ...]


def load_target(text: str, device: str | None = None, source: bytes | None = None) -> Target:
    """Return the kernels of `module`, `module:name`, `path/to/file.py` or `path/to/file.py:name`.

    Args:
        text: the TARGET; `moeracle.kernels` is this library's own registry, `moeracle.kernels.hip` its HIP kernels.
        device: where to run them instead of where they declare, or None.
        source: of a file: what it held, in place of what it holds now.
    Returns:
        The Target, with at least one kernel.
    Raises:
        TargetError: no such file or module, it does not import (the cause and where), it declares no kernel, or
            none of that name (the nearest is suggested).
        ValueError: `device` is not a device's name.
    """
    if device is not None:
        check_device(device)
    place, name = _split(text)
    cannot_interpret = prepare_triton(device)
    if place in OWN:
        kernels = _registry(OWN[place], device, name)
    else:
        module, state = imported(place, source)
        kernels = declared_in(module)
        if state != PLAIN:
            kernels = [replace(k, fn=keeping(k.fn, state)) for k in kernels]
    if not kernels:
        raise TargetError(f"TARGET {place}: holds no kernels; put @moeracle.kernel(OP, …) above a function")
    if name:
        chosen = [k for k in kernels if name in (k.name, getattr(k.fn, "__name__", ""))] or _tiled(kernels, name)
        if not chosen:
            raise TargetError(str(unknown(f"kernel of {place}", name, dict.fromkeys(k.name for k in kernels))))
        kernels = chosen
    if cannot_interpret and any(_uses_triton(k) for k in kernels):
        raise TargetError(f"TARGET {place}: {cannot_interpret}")
    if device is not None:
        kernels = [replace(k, device=device) for k in kernels]
    return Target(text, tuple(kernels))


def _tiled(kernels: Sequence[Kernel], name: str) -> list[Kernel]:
    """Return the kernels that `name[TILE]` asks for: one, or with `name[*]` one for each tile declared.

    Raises:
        TargetError: no such tile.
    """
    before, bracket, tile = name.removesuffix("]").partition("[")
    named = [k for k in kernels if k.tiles and before in (k.name, getattr(k.fn, "__name__", ""))]
    if not bracket or not name.endswith("]"):
        return []
    try:
        return [k.with_tile(text) for k in named for text in (k.tiles if tile == EVERY else (tile,))]
    except ValueError as error:
        raise TargetError(str(error)) from None


def _split(text: str) -> tuple[str, str]:
    before, colon, name = text.partition(".py:")
    if name and Path(f"{before}.py").is_file():  # whatever the name holds
        return f"{before}.py", name
    place, colon, name = text.rpartition(":")
    # A colon that belongs to the path (a drive letter) is followed by a separator, a name never holds one.
    if not colon or any(c in name for c in "/\\"):
        place, name = text, ""
    if not place:
        raise TargetError(f"TARGET: got {text!r}, must be a module, module:name or path/to/file.py")
    if colon and not name and place != text:
        raise TargetError(f"TARGET: got {text!r}, must have a kernel's name after the colon")
    return place, name


def place_of(text: str) -> str:
    """Return the module or file that a TARGET names, without a kernel's name.

    Args:
        text: the TARGET.
    Raises:
        TargetError: it names none.
    """
    return _split(text)[0]


def schedules_hold(device: str) -> bool:
    """Say whether the schedules that our kernels declare are those of this device: NVIDIA, compute capability 9.0."""
    import torch

    if not device.startswith("cuda") or torch.version.hip is not None or not torch.cuda.is_available():
        return False
    index = int(device.partition(":")[2] or torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        return False  # require_device says so
    schedules = importlib.import_module("moeracle.kernels.triton.schedules")
    return bool(torch.cuda.get_device_capability(index) == schedules.CAPABILITY and schedules.fuses())


def _on_amd(device: str) -> bool:
    """Say whether a device is AMD's, whose dot2 and WMMA no schedule describes: unverified on silicon."""
    import torch

    return device.startswith("cuda") and torch.version.hip is not None


def runs_interpreted(kernel: Kernel) -> bool:
    """Say whether a kernel is Triton's and runs on the CPU, where Python runs each of its steps."""
    if hasattr(kernel.fn, "interpreted"):  # it runs in another process, which has said so
        return bool(kernel.fn.interpreted)
    ours = kernel.module.startswith("moeracle.kernels.triton.")
    return kernel.device == "cpu" and (ours or _uses_triton(kernel))


def _uses_triton(kernel: Kernel) -> bool:
    values = getattr(inspect.unwrap(kernel.fn), "__globals__", {}).values()
    modules = (getattr(v, "__name__" if isinstance(v, ModuleType) else "__module__", "") for v in values)
    return any(str(module).startswith("triton") for module in modules)


def _registry(module: str, device: str | None, name: str = "") -> list[Kernel]:
    """Turn the entries of one of our registries into records: a registry knows nothing of this module.

    What runs on no device of this machine is left out, unless it is `name`: then its supports() says why.
    """

    schedules = importlib.import_module("moeracle.kernels.triton.schedules")

    def held(entry: Any) -> bool:
        return isinstance(entry.schedule, str) and schedules_hold(device or entry.device)

    def contract_of(entry: Any) -> str:
        return f"{entry.contract},schedule={entry.schedule}" if held(entry) else entry.contract

    def schedule_of(entry: Any) -> Callable[[Any], str | None] | None:
        if held(entry):
            return partial(schedules.case_schedule, entry.name, device=device or entry.device)
        where = device or entry.device
        holds = not _on_amd(where) if module == OWN["moeracle.kernels.hip"] else schedules_hold(where)
        return entry.schedule if callable(entry.schedule) and holds else None

    try:
        entries = importlib.import_module(module).REGISTRY
        return [
            make_kernel(
                entry.load(),
                contract=contract_of(entry),
                scheduled_zeros=schedules.ZEROS,
                schedule=schedule_of(entry),
                **{field: getattr(entry, field) for field in OF_ENTRY},
            )
            for entry in entries
            if entry.here(device or entry.device) or entry.name == name
        ]
    except (Exception, SystemExit) as error:
        raise TargetError(f"TARGET {module.rpartition('.')[0]}: does not import: {cause(error, None)}") from error
