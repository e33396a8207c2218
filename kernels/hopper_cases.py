"""Which cases the Hopper kernels take, and the schedule that each keeps; imports neither kernels nor triton."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.kernels.prepared_weight import COLUMN_TILE, why_not_prepared
from moeracle.kernels.schedules import CAPABILITY, WGMMA


def on_hopper() -> bool:
    """Say whether this process's GPU is of compute capability 9.0."""
    here = torch.cuda.is_available() and torch.version.hip is None
    return bool(here and torch.cuda.get_device_capability(torch.cuda.current_device()) == CAPABILITY)


def hopper_device(device: str) -> bool:
    """Say whether `device` is this process's GPU of compute capability 9.0."""
    return device.startswith("cuda") and on_hopper()


def hopper_case(case: Any) -> bool | str:
    """Support compute capability 9.0 and the sizes that have a prepared order."""
    if not on_hopper():
        return "needs a GPU of compute capability 9.0"
    group = lambda K: K if case.G == -1 else case.G
    if case.op == "moe_w4a16":
        reason = why_not_prepared(2 * case.I, case.H, group(case.H), True)
        return reason or why_not_prepared(case.H, case.I, group(case.I), False) or True
    return why_not_prepared(case.N, case.K, group(case.K), False) or True


def hopper_schedule(case: Any) -> str:
    """Return the schedule of hopper_gemm and of hopper_few in one part."""
    return WGMMA


def split_schedule(case: Any) -> str:
    """Return the schedule of hopper_few in as many parts as K has: 4, 2 or 1."""
    parts = 1 if case.K % COLUMN_TILE else 4 if case.K % 256 == 0 else 2
    return WGMMA if parts == 1 else f"{WGMMA}/s{parts}/join=pairwise"
