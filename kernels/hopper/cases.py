"""Which cases the Hopper kernels take, and the schedule that each keeps; imports neither kernels nor triton."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.kernels.hopper.prepared_weight import COLUMN_TILE, kind_of, why_not_prepared
from moeracle.kernels.hopper.tiles.kinds import in_parts, sizes_of
from moeracle.kernels.triton.schedules import CAPABILITY, SLOTS, WGMMA


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

    def group(K: int) -> int:
        return K if case.G == -1 else case.G

    if case.op in ("moe_w4a16", "shared_expert"):
        reason = why_not_prepared(2 * case.I, case.H, group(case.H), True)
        return reason or why_not_prepared(case.H, case.I, group(case.I), False) or True
    return why_not_prepared(case.N, case.K, group(case.K), False) or True


def hopper_schedule(case: Any) -> str:
    """Return the schedule of gemm and of gemm_few in one part."""
    return WGMMA


def split_schedule(case: Any) -> str:
    """Return the schedule of gemm_few in as many parts as K has: 4, 2 or 1."""
    parts = 1 if case.K % COLUMN_TILE else 4 if case.K % 256 == 0 else 2
    return in_parts(parts)


def layer_schedule(case: Any) -> str:
    """Return the schedules of a layer: each GEMM's tuned tile may cut K in another number of parts."""
    from moeracle.kernels.hopper.tiles.layers import layer_for  # which reads tables

    up, down = (
        sizes_of(N, K, case.G, kind_of(case.dtype, case.zero == "sym"))
        for N, K in ((2 * case.I, case.H), (case.H, case.I))
    )
    layer = layer_for(case.R, case.E, up, torch.device("cuda"))
    first, second = layer.gemm1.fit(up).schedule(), layer.gemm2.fit(down).schedule()
    return first + ("" if second == first else f",gemm2_schedule={second}") + f",sum_schedule={SLOTS}"
