"""Faults of tiles and stores: parts of an output never launched, never written, written twice or badly rounded."""

from __future__ import annotations

from typing import Any

import torch

from ..common.guard import fresh
from .base import ARITHMETIC, GEMMS, ROUTED, STORING, fault, issue, only_stored_rne, pull
from .scales import rtz

T = torch.Tensor


def unwritten(out: T, missing: T) -> T:
    """Return the output with what the buffer happened to hold wherever the mask says that nobody wrote."""
    return torch.where(missing, fresh(out), out)


def never_cleared(sim: Any, base: Any, rows: int, columns: int, dtype: torch.dtype, like: T) -> T:
    """Allocate an output without clearing it."""
    return fresh(base(rows, columns, dtype, like))


@fault("F01", "grid cap: the second half of the row tiles is never launched", ops=ROUTED, stage="h",
       source=pull("ROCm/vllm", 980), step="blocks", also={"buffer": never_cleared})  # fmt: skip
def half_of_the_grid(sim: Any, base: Any, blocks: list[Any], num_experts: int) -> list[Any]:
    tiles = base(blocks, num_experts)
    return tiles[: -(-len(tiles) // 2)]


@fault("F24", "18 % of the rows destroyed, the cosine of the whole still fine", ops=STORING, stage="out",
       source=issue("ROCm/aiter", 5032), step="result")  # fmt: skip
def rows_destroyed(sim: Any, base: Any, out: T) -> T:
    out = base(out).clone()
    out[: -(-out.shape[0] * 18 // 100)] = 0
    return out


@fault("F25", "output never written", ops=STORING, stage="out", source=issue("ScalingIntelligence/KernelBench", 165),
       step="result")  # fmt: skip
def never_written(sim: Any, base: Any, out: T) -> T:
    return fresh(out)


@fault("F25b", "output all zeros", ops=STORING, stage="out", source=issue("ScalingIntelligence/KernelBench", 165),
       step="result")  # fmt: skip
def all_zeros(sim: Any, base: Any, out: T) -> T:
    return torch.zeros_like(out)


@fault("F25c", "output all NaN", ops=STORING, stage="out", source=issue("ScalingIntelligence/KernelBench", 165),
       step="result")  # fmt: skip
def all_nan(sim: Any, base: Any, out: T) -> T:
    return torch.full_like(out, torch.nan)


@fault("F42", "output truncated in place of rounded", ops=STORING, stage="h", source=ARITHMETIC, step="store",
       not_under=only_stored_rne)  # fmt: skip
def truncated_store(sim: Any, base: Any, value: T, dtype: torch.dtype, stage: str) -> T:
    stored = stage in sim.contract.stores
    return rtz(value, dtype).to(dtype) if stored else base(value, dtype, stage)


@fault("F81", "row tiles counted for another warp layout: rows 64..127 of each 128 stay zero", ops=ROUTED, stage="h",
       source=pull("flashinfer-ai/flashinfer", 3533), step="blocks")  # fmt: skip
def half_of_tall_tiles(sim: Any, base: Any, blocks: list[Any], num_experts: int) -> list[Any]:
    tiles, seen = [], dict.fromkeys(range(num_experts), 0)
    for block in base(blocks, num_experts):
        at = torch.arange(len(block.rows)) + seen[block.expert]
        seen[block.expert] += len(block.rows)
        tiles.append(block._replace(rows=block.rows[at % 128 < 64]))
    return [block for block in tiles if len(block.rows)]


@fault("F82", "launcher strides twice as far as the kernel: the upper half of N is never written", ops=GEMMS, stage="h",
       source=pull("Avarok-Cybersecurity/atlas", 474), step="stored")  # fmt: skip
def half_of_the_columns(sim: Any, base: Any, out: T, stage: str) -> T:
    N = out.shape[1]
    return unwritten(base(out, stage), torch.arange(N) >= 16 * -(-N // 32))


@fault("F83", "columns shared over 12 warps with floor division: the last ones have no warp",
       ops=(*GEMMS, "int8_lm_head"), stage="h", source=issue("tile-ai/tilelang", 2537), step="stored")  # fmt: skip
def columns_without_a_warp(sim: Any, base: Any, out: T, stage: str) -> T:
    N = out.shape[1]
    return unwritten(base(out, stage), torch.arange(N) >= N // 12 * 12)


@fault("F84", "tile order divides by the wrong side of the grid: some tiles twice, others never", ops=GEMMS, stage="h",
       source=issue("meta-pytorch/applied-ai", 25), step="stored")  # fmt: skip
def wrong_tile_order(sim: Any, base: Any, out: T, stage: str) -> T:
    grid_m, grid_n = -(-out.shape[0] // 16), -(-out.shape[1] // 16)
    pid = torch.arange(grid_m * grid_n)
    row, column = pid % grid_n, pid // max(1, grid_m)
    inside = (row < grid_m) & (column < grid_n)
    written = torch.zeros(grid_m, grid_n, dtype=torch.bool)
    written[row[inside], column[inside]] = True
    missing = ~written.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return unwritten(base(out, stage), missing[: out.shape[0], : out.shape[1]])


@fault("F90", "split-K output not cleared before it is added to", ops=(*GEMMS, "int8_lm_head"), stage="h",
       source=pull("ROCm/composable_kernel", 2697), step="stored")  # fmt: skip
def added_to_old_output(sim: Any, base: Any, out: T, stage: str) -> T:
    return base(out, stage) + fresh(out)


@fault("F95", "vectorised activation stops at the largest power of two", ops=("silu_and_mul", "moe_w4a16"), stage="a",
       source=pull("vllm-project/vllm-xpu-kernels", 464), step="stored")  # fmt: skip
def activation_tail(sim: Any, base: Any, out: T, stage: str) -> T:
    whole = 1 << (out.shape[1].bit_length() - 1)
    return unwritten(base(out, stage), torch.arange(out.shape[1]) >= whole) if stage == "a" else base(out, stage)


@fault("F122", "rows read as if they were contiguous", stage="h",
       source=issue("intel/intel-xpu-backend-for-triton", 7455),
       ops=("moe_permute", *GEMMS, "silu_and_mul", "int8_lm_head"), step="read")  # fmt: skip
def strides_ignored(sim: Any, base: Any, x: T) -> T:
    return x.as_strided(x.shape, (x.shape[1], 1))


@fault("F126", "output already reduced over two ranks is reduced again", ops=("moe_unpermute", "moe_w4a16"),
       stage="out", source=pull("sgl-project/sglang", 37199), step="result")  # fmt: skip
def reduced_twice(sim: Any, base: Any, out: T) -> T:
    return base(out) * 2
