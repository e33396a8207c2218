"""Loading a TARGET as a command was asked to: in processes of its own, or in this one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from moeracle.isolate.load import Limits, load_isolated
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.cases.optable import OPS
from moeracle.ref.errors import require, unknown
from moeracle.target.declaration import Kernel, check_device, require_device
from moeracle.target.load import Target, TargetError, load_target

from .console import say

IN_PROCESS = "judged in this process (--in-process): a kernel can patch the judge, or end it"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def limits_of(
    case_timeout: float | None = None,
    max_memory: str | None = None,
    adversarial: bool = False,
    option: str = "--max-memory",
) -> Limits:
    """Return what children may use.

    Args:
        case_timeout: seconds for one call; None: derived.
        max_memory: a size such as 512M or 2G; None: any.
        adversarial: whether network, files and rights are taken from them.
        option: what the size was given by, for the message.
    Raises:
        ValueError: the size is none.
    """
    most = None
    if max_memory is not None:
        size = re.fullmatch(r"(\d{1,12})\s*([KMGT]?)i?B?", max_memory.strip(), re.IGNORECASE)
        wrong = f"{option}: got {max_memory!r}, must be a size such as 512M or 2G"
        require(size is not None and int(size[1]) > 0, wrong)
        assert size is not None
        most = int(size[1]) * _UNITS[size[2].upper()]
    return Limits(case_timeout, most, adversarial)


def load(
    target: str, device: str | None, in_process: bool, limits: Limits | None = None, *, ranks: bool = False
) -> Target:
    """Return the kernels of a TARGET.

    Args:
        target: its text.
        device: where to run them instead of where they declare, or None.
        in_process: import it here, instead of in a process of its own.
        limits: what such a process may use.
        ranks: whether kernels that run over ranks are taken.
    Raises:
        TargetError: it cannot be loaded, or has a kernel over ranks where none is taken.
    """
    loaded = load_target(target, device) if in_process else load_isolated(target, device, limits)
    for kernel in loaded.kernels:
        if kernel.world_size > 1 and (in_process or not ranks):
            runs = f"TARGET {target}: kernel {kernel.name} runs over {kernel.world_size} ranks, each a process"
            why = (
                "here kernels run in this one"
                if in_process
                else "this command takes kernels of one: use moeracle check"
            )
            raise TargetError(f"{runs}; {why}")
    return loaded


def check_asked(op: str | None, device: str | None) -> None:
    """Raise ValueError unless what --op and --device say, where they are given, are an op and a device's name.

    Raises:
        ValueError: an unknown op (the nearest is suggested) or device.
    """
    if op is not None and op not in OPS:
        raise unknown("op", op, OPS)
    if device is not None:
        check_device(device)


def kernels_of(target: Target, ops: Collection[str]) -> list[Kernel]:
    """Return a TARGET's kernels of some ops, all where none is named.

    Raises:
        TargetError: it has none of them.
    """
    kernels = [kernel for kernel in target.kernels if not ops or kernel.op in ops]
    if not kernels:
        held = ", ".join(dict.fromkeys(kernel.op for kernel in target.kernels))
        raise TargetError(f"TARGET {target.name}: no kernel for op {', '.join(sorted(ops))}; it has {held}")
    return kernels


def require_devices(kernels: Iterable[Kernel], device: str | None) -> None:
    """Raise ValueError unless this machine has what each kernel runs on; `device` is what --device said, or None.

    Raises:
        ValueError: it has not.
    """
    for kernel in kernels:
        who = f"kernel {kernel.name}" if device is None else "--device"
        require_device(kernel.device, who, kernel.world_size)


def say_where(in_process: bool) -> None:
    """Print that kernels ran in the judge's process, where they did.

    Args:
        in_process: as the command was asked.
    """
    if in_process:
        say(IN_PROCESS)


def look_ahead(kernel: KernelLike, more: bool) -> None:
    """Let the process that is asked afresh start while a kernel is judged, where kernels have processes of their own.

    Args:
        kernel: which is judged now.
        more: whether another of its TARGET follows.
    """
    if hasattr(kernel.fn, "ahead"):
        kernel.fn.ahead(more)


def release(kernel: KernelLike, spare: bool = True) -> None:
    """End the process that a kernel ran in, if it had one of its own.

    Args:
        kernel: which.
        spare: end one that has loaded the TARGET, and waits to be used, too.
    """
    if hasattr(kernel.fn, "close"):
        kernel.fn.close(spare)


def confined_by(kernel: KernelLike) -> dict[str, bool]:
    """Return what the system keeps a kernel's process from under --adversarial: files, network, signals.

    Args:
        kernel: one that `load` returned.
    """
    return dict(kernel.fn.loader.confined) if hasattr(kernel.fn, "loader") else {}
