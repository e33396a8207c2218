"""Finding the kernels that a TARGET text names; every bad TARGET is one clear line."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from moeracle.ref.errors import unknown

from .declaration import Kernel, check_device, declared_in, forget, kernel, make_kernel, require_device

__all__ = ["Kernel", "Target", "TargetError", "kernel", "load_target", "require_device"]


class TargetError(ValueError):
    """A TARGET that cannot be judged as it stands; its message is one line."""


# The TARGETs that are registries of ours, and where they are.
OWN = {"moeracle.kernels": "moeracle.kernels.registry", "moeracle.kernels.hip": "moeracle.kernels.registry_hip"}


@dataclass(frozen=True)
class Target:
    """What a TARGET text named: the text itself, and its kernels in the order they were declared."""

    name: str
    kernels: tuple[Kernel, ...]


def load_target(text: str, device: str | None = None) -> Target:
    """Return the kernels of `module`, `module:name`, `path/to/file.py` or `path/to/file.py:name`.

    Args:
        text: the TARGET; `moeracle.kernels` is this library's own registry, `moeracle.kernels.hip` its HIP kernels.
        device: where to run them instead of where they declare, or None.
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
        kernels = declared_in(_load_file(place) if _is_file(place) else _load_module(place))
    if not kernels:
        raise TargetError(f"TARGET {place}: holds no kernels; put @moeracle.kernel(OP, …) above a function")
    if name:
        chosen = [k for k in kernels if name in (k.name, getattr(k.fn, "__name__", ""))]
        if not chosen:
            raise TargetError(str(unknown(f"kernel of {place}", name, dict.fromkeys(k.name for k in kernels))))
        kernels = chosen
    if cannot_interpret and any(_uses_triton(k) for k in kernels):
        raise TargetError(f"TARGET {place}: {cannot_interpret}")
    if device is not None:
        kernels = [replace(k, device=device) for k in kernels]
    return Target(text, tuple(kernels))


def _split(text: str) -> tuple[str, str]:
    place, colon, name = text.rpartition(":")
    # A colon that belongs to the path (a drive letter) is followed by a separator, a name never holds one.
    if not colon or any(c in name for c in "/\\"):
        place, name = text, ""
    if not place:
        raise TargetError(f"TARGET: got {text!r}, must be a module, module:name or path/to/file.py")
    if colon and not name and place != text:
        raise TargetError(f"TARGET: got {text!r}, must have a kernel's name after the colon")
    return place, name


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or "/" in place


def prepare_triton(device: str | None) -> str | None:
    """Where no GPU will run them, let Triton kernels run in the corrected interpreter; harmless without Triton.

    Args:
        device: where kernels are asked to run, or None: where they declare.
    Returns:
        None, or why Triton kernels cannot run on the CPU in this process.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    interpreter = importlib.import_module("moeracle.kernels.interpreter")
    try:
        # Before the target's own `import triton`: afterwards @triton.jit has already chosen to compile.
        interpreter.enable_if_no_gpu()
        if device == "cpu" and not interpreter.is_interpreting():
            interpreter.enable()
            interpreter.correct()
    except RuntimeError as error:
        return str(error)
    return None


def interpreter_is_wrong() -> bool:
    """Say whether Triton kernels here run in an interpreter whose bf16 is not corrected."""
    return "triton" in sys.modules and not _bf16_is_correct()


@lru_cache(maxsize=1)
def _bf16_is_correct() -> bool:
    return bool(importlib.import_module("moeracle.kernels.interpreter").bf16_is_correct())


def schedules_hold(device: str) -> bool:
    """Say whether the schedules that our kernels declare are those of this device: NVIDIA, compute capability 9.0."""
    import torch

    if not device.startswith("cuda") or torch.version.hip is not None or not torch.cuda.is_available():
        return False
    index = int(device.partition(":")[2] or torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        return False  # require_device says so
    schedules = importlib.import_module("moeracle.kernels.schedules")
    return bool(torch.cuda.get_device_capability(index) == schedules.CAPABILITY and schedules.fuses())


def _on_amd(device: str) -> bool:
    """Say whether a device is AMD's, whose dot2 and WMMA no schedule describes: unverified on silicon."""
    import torch

    return device.startswith("cuda") and torch.version.hip is not None


def runs_interpreted(kernel: Kernel) -> bool:
    """Say whether a kernel is Triton's and runs on the CPU, where Python runs each of its steps."""
    ours = kernel.module.startswith("moeracle.kernels.") and kernel.module.endswith("_triton")
    return kernel.device == "cpu" and (ours or _uses_triton(kernel))


def _uses_triton(kernel: Kernel) -> bool:
    values = getattr(kernel.fn, "__globals__", {}).values()
    homes = (getattr(v, "__name__" if isinstance(v, ModuleType) else "__module__", "") for v in values)
    return any(str(home).startswith("triton") for home in homes)


def _load_file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise TargetError(f"TARGET {place}: no such file")
    whole = str(path.resolve())
    # A name no import can collide with, but the same in every process: xdist workers compare test ids.
    name = f"moeracle_target_{path.stem}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise TargetError(f"TARGET {place}: not a Python file, must end in .py")
    forget(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # As `python file.py` does, so that the file may import its neighbours.
    if str(path.resolve().parent) not in sys.path:
        sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TargetError(f"TARGET {place}: does not import: {_cause(error, whole)}") from error
    return module


def _load_module(place: str) -> ModuleType:
    # Last, not first: the current directory must not shadow an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            hint = f"; a file is named with its ending: {place}.py" if Path(f"{place}.py").is_file() else ""
            raise TargetError(f"TARGET {place}: no module named {error.name!r}{hint}") from error
        raise TargetError(f"TARGET {place}: does not import: {_cause(error, None)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"TARGET {place}: does not import: {_cause(error, None)}") from error


def _cause(error: BaseException, path: str | None) -> str:
    """Put an exception in one line with the user's file and line: the place to look, without our frames."""
    lines = str(error.msg if isinstance(error, SyntaxError) else error).strip().splitlines()
    # A ValueError of ours already names the argument; its type would only be noise.
    what = lines[0] if lines else ""
    if type(error) is not ValueError or not what:
        what = f"{type(error).__name__}: {what}" if what else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{what} ({_short(error.filename)}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    theirs = [f for f in frames if f.filename == path] or [
        f
        for f in frames
        if not f.filename.startswith((ours, "<frozen importlib")) and not f.filename.endswith("importlib/__init__.py")
    ]
    return f"{what} ({_short(theirs[-1].filename)}:{theirs[-1].lineno})" if theirs else what


def _short(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _registry(home: str, device: str | None, name: str = "") -> list[Kernel]:
    """Turn the entries of one of our registries into records: that room knows nothing of this module.

    What runs on no device of this machine is left out, unless it is `name`: then its supports() says why.
    """

    schedules = importlib.import_module("moeracle.kernels.schedules")

    def held(entry: Any) -> bool:
        return isinstance(entry.schedule, str) and schedules_hold(device or entry.device)

    def contract_of(entry: Any) -> str:
        return f"{entry.contract},schedule={entry.schedule}" if held(entry) else entry.contract

    def schedule_of(entry: Any) -> Callable[[Any], str | None] | None:
        if held(entry):
            return partial(schedules.case_schedule, entry.name, device=device or entry.device)
        where = device or entry.device
        holds = not _on_amd(where) if home == OWN["moeracle.kernels.hip"] else schedules_hold(where)
        return entry.schedule if callable(entry.schedule) and holds else None

    try:
        entries = importlib.import_module(home).REGISTRY
        return [
            make_kernel(
                entry.load(),
                entry.op,
                layout=entry.layout,
                contract=contract_of(entry),
                device=entry.device,
                supports=entry.supports,
                name=entry.name,
                zeros=entry.zeros,
                dtypes=entry.dtypes,
                scheduled_zeros=schedules.ZEROS,
                schedule=schedule_of(entry),
            )
            for entry in entries
            if entry.here(device or entry.device) or entry.name == name
        ]
    except (Exception, SystemExit) as error:
        raise TargetError(f"TARGET {home.rpartition('.')[0]}: does not import: {_cause(error, None)}") from error
