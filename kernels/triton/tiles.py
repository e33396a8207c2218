"""Tile sizes: one small record for each launch, and a default for each kind of device.

Nothing here depends on a model's name; a caller passes `config=Tile(...)` to any GEMM to choose for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from moeracle.kernels import tuned
from moeracle.kernels.common.weight_args import UNPACKED
from moeracle.kernels.tuned.gfx_tiles import gfx_tile

if TYPE_CHECKING:
    from moeracle.kernels.common.weight_args import WeightArgs


@dataclass(frozen=True)
class Tile:
    """One launch's tile: BM rows, BN outputs, BK inputs a step, and how many warps and pipeline stages run it.

    Args:
        block_m, block_n, block_k: powers of two, at least 16; block_k a multiple of 8 codes (one int32 word).
        num_warps: 1, 2, 4 or 8.
        num_stages: 1 or more; ignored by the interpreter.
    Raises:
        ValueError: a block is not a power of two, or below 16.
    """

    block_m: int = 16
    block_n: int = 64
    block_k: int = 64
    num_warps: int = 4
    num_stages: int = 2

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"config: got {name}={value}, must be a power of two, at least 16")


# At most 181 VGPRs and no spill for bf16 on gfx1151 (triton 3.6 to 3.9), where 64 x 128 on one warp spills thousands.
GFX11 = Tile(16, 64, 64, num_warps=4, num_stages=1)
HOPPER = {16: Tile(16, 128, 64, 4, 4), 64: Tile(64, 128, 64, 4, 3), 128: Tile(128, 128, 64, 8, 3)}


def pow2_at_least(n: int) -> int:
    """Return the smallest power of two that is >= n, for n >= 1."""
    return 1 << max(n - 1, 0).bit_length()


def interpreter_tile(N: int, K: int) -> Tile:
    """Choose a tile for the interpreter, where Python runs each step: few large steps, but no larger than [N, K]."""
    return Tile(16, max(16, min(256, pow2_at_least(N))), max(16, min(256, pow2_at_least(K))))


def default_tile(rows: int, experts: int, N: int, K: int, device: torch.device, zero_kind: int = 0) -> Tile:
    """Choose a tile for `rows` routed rows over `experts` experts of [N, K].

    Wide enough for an average expert; the same for the grouped and the padded path, whose results are then equal bit
    for bit.

    Args:
        rows: R = T * top_k, 0 or more.
        experts: E, 1 or more.
        N, K: sizes of one expert's weight.
        device: where the tensors are.
        zero_kind: of the weight, see weight_args.
    """
    if device.type != "cuda":
        return interpreter_tile(N, K)
    if torch.version.hip is not None:
        return GFX11
    per_expert = rows / max(experts, 1)
    return cuda_tile(16 if per_expert <= 24 else 64 if per_expert <= 96 else 128, device, zero_kind)


def cuda_tile(block_m: int, device: torch.device, zero_kind: int = 0) -> Tile:
    """Return the default tile of 16, 64 or 128 rows on an NVIDIA GPU; 128 only where that does not spill.

    Args:
        block_m: a key of HOPPER.
        device: where; 128 rows spill on sm_80 and sm_100 (`moeracle kernels compile`) and become 64.
        zero_kind: of the weight; with zero points in bytes, 128 rows spill everywhere, with any, 64 rows and 64 inputs
            on sm_80 and sm_100.
    """
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    if block_m == 128 and (zero_kind == UNPACKED or not hopper):
        block_m = 64
    tile = HOPPER[block_m]
    return replace(tile, block_k=32) if zero_kind and block_m == 64 and not hopper else tile


def tile_for(op: str, rows: int, weight: WeightArgs, dtype: torch.dtype, device: torch.device) -> Tile:
    """Return the tuned tile of an op for `rows` routed rows; of a shape that no table holds the model's or the default.

    Args:
        op: as tuning tables call it, e.g. "grouped_gemm".
        rows: R = T * top_k, 0 or more.
        weight: the weight's sizes.
        dtype: of the activations.
        device: where the tensors are.
    """
    E, N, K = weight.E, weight.N, weight.K
    found = tuned.lookup(op, N, K, E, weight.G, dtype, rows, device) or gfx_tile(rows, weight, device)
    return tuned.made(Tile, found, op) if found else default_tile(rows, E, N, K, device, weight.zero_kind)


def elements_per_program(t: torch.Tensor) -> int:
    """Return how many elements of `t` one program of an elementwise kernel takes: few on a GPU, many in Python."""
    return 1024 if t.device.type == "cuda" else 16384
