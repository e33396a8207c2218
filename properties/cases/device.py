"""Devices: what torch calls them, and whether they are here."""

from __future__ import annotations

import torch

from moeracle.ref.errors import require


def check_device(device: str | torch.device) -> torch.device:
    """Return the torch device, or raise ValueError in one line if torch does not know it or it is absent here."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        first = str(error).splitlines()[0].partition(" but got:")[0]
        raise ValueError(f"device: got {str(device)!r}, must be a torch device like cpu or cuda ({first})") from None
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(count > 0, f"device: got {str(device)!r}, but torch sees no CUDA device here; must be cpu")
        index = 0 if target.index is None else target.index
        require(
            index < count,
            f"device: got {str(device)!r}, must be one of the {count} CUDA devices, cuda:0 to cuda:{count - 1}",
        )
        return torch.device("cuda", index)
    if target.type not in ("cpu", "meta"):
        try:
            torch.empty(0, device=target)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            message = f"device: got {str(device)!r}, which is not here: {str(error).splitlines()[0]}"
            raise ValueError(message) from None
    return target
