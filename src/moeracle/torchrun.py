"""Under torchrun: one process judges, and starts every kernel's ranks by itself, as it does without torchrun."""

from __future__ import annotations

import os

__all__ = ["only_waits"]


def only_waits() -> bool:
    """Say whether this process is one of torchrun's that leaves the judging to its rank 0.

    Raises:
        ValueError: torchrun runs on several machines.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    everyone, here = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if everyone != here:
        must = "must run on one machine: moeracle starts a kernel's ranks where it judges"
        raise ValueError(f"torchrun: got {everyone} processes, {here} of them here, {must}")
    return os.environ.get("RANK", "0") != "0"
