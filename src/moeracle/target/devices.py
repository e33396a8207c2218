"""Devices by name: whether a name is one, and whether this machine has it."""

from __future__ import annotations

import re

from moeracle.ref.errors import unknown

DEVICES = ("cpu", "cuda")


def check_device(device: str) -> str:
    """Return the device's text if it is well formed; whether the machine has it is `require_device`'s question.

    Raises:
        ValueError: it is not "cpu", "cuda" or "cuda:N".
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(device)):
        raise unknown("device", device, [*DEVICES, "cuda:N"])
    return str(device)


def require_device(device: str, who: str, ranks: int = 1) -> None:
    """Raise ValueError in one line if this machine does not have the device that `who` asks for.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        who: what the message calls the one who asks.
        ranks: how many devices it asks for, one a rank.
    Raises:
        ValueError: there is no such device here.
    """
    if check_device(device) == "cpu":
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        hint = "--device cpu runs on the CPU"
        raise ValueError(f"device: {who} asks for {device!r}, but torch finds no CUDA device here; {hint}")
    if int(device.partition(":")[2] or 0) >= count:
        raise ValueError(f"device: {who} asks for {device!r}, but torch finds {count} CUDA device(s) here")
    if ranks > count:
        raise ValueError(f"device: {who} runs over {ranks} ranks, a device each, but torch finds {count} here")
