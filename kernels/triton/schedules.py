"""The order in which each GEMM here adds its products on compute capability 9.0, as data: the text of a Schedule.

Read off the compiled kernels (sm_90; triton 3.6.0 and 3.9.0) and checked against recordings of an NVIDIA H200 with
triton 3.6.0 (fixtures/hardware/h200/recordings, docs/bit-models.md):

* tl.dot with BM < 64 is mma.sync m16n8k16, both operands in registers with kWidth = 2, so each instruction takes 16
  consecutive k; with BM >= 64 it is wgmma, K = 16 each, from shared memory: the same k, and the same bits.
* uint8 zero points ("unpacked") are loaded as bytes and give the mma operands another k order (kWidth = 4): of each 32
  inputs, 0 1 4 5 8 9 … 28 29 first. `moeracle infer` found it from outputs alone (h200/infer); wgmma, whose
  operands come from shared memory, keeps consecutive k.
* tl.sum over BLOCK_K inputs belongs to the compiler: triton 3.6 adds a thread's registers one after another (fused
  multiply-add), then lanes, then warps by butterflies; 3.9 pairs registers and gives threads other k. Which k a thread
  holds depends on much more. So those orders are read off the kernel that a case compiles to: case_schedules.py.
* the top-k sum adds slot after slot by fused multiply-add: a loop that no compiler may reorder.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from moeracle.kernels.common.weight_args import ZERO_KINDS
from moeracle.kernels.triton.tiles import Tile, pow2_at_least, tile_for

CAPABILITY = (9, 0)  # where these hold
MMA, WGMMA = "mma.m16n8k16.sm90", "wgmma.k16.sm90"
WGMMA_ROWS = 64  # the BM from which tl.dot becomes wgmma
SLOTS = "fma"  # the top-k sum: slot after slot, weight times row and sum rounded once
LAYER = f"{WGMMA},sum_schedule={SLOTS}"  # of a layer whose GEMMs take one order
SUM_ALONE = f"none,sum_schedule={SLOTS}"
ZEROS = ("sym", "rdna")  # the zero-point forms that were recorded
UNPACKED = "unpacked"
UNPACKED_MMA = f"{MMA}/t32/bits1.4.8.16.2"  # whatever BK, which is a multiple of 32 there
GEMM = WGMMA  # for a kernel whose tile depends on the case: mma of the same k leaves the same bits
# decode: BLOCK_K = 256 on 4 warps. bits: which k each bit of (register, lane, warp) stands for, innermost first.
DECODE_ONE_SCALE = "fma/t256/tree2-sequential.32-halves.4-halves/combine=sequential/bits128.1.2.4.8.16.32.64"
DECODE_MANY_SCALES = "fma/t256/tree32-sequential.2-halves.4-halves/combine=sequential/bits64.128.1.2.4.8.16.32"


def gemm_schedule(tile: Tile, zero: str = "sym") -> str:
    """Return the schedule of int4_linear, grouped_gemm and padded_gemm with this tile and form of zero points."""
    if zero == UNPACKED and tile.block_m < WGMMA_ROWS:
        return UNPACKED_MMA
    return f"{MMA if tile.block_m < WGMMA_ROWS else WGMMA}/t{tile.block_k}"


def decode_schedule(group: int) -> str:
    """Return triton 3.6's schedule of decode_gemm with its GPU tile and this group size (resolved, 1..K)."""
    return DECODE_MANY_SCALES if group % 256 else DECODE_ONE_SCALE


def fuses() -> bool:
    """Say whether triton contracts products and sums here, as all of these orders have it."""
    import triton

    return bool(triton.knobs.language.default_fp_fusion)


def case_schedule(name: str, case: Any, device: str) -> str | None:
    """Return the schedule of a registered kernel for a case with uint8 zero points, or None: its usual one holds.

    Args:
        name: the kernel's, in the registry.
        case: a Case of its op.
        device: where it runs; the tile depends on the GPU.
    Returns:
        A contract's schedules as text: "none" where nobody looked.
    """
    if case.zero != UNPACKED:
        return None
    texts = [UNPACKED_MMA if rows < WGMMA_ROWS else GEMM for rows in _block_rows(name, case, torch.device(device))]
    if set(texts) == {GEMM}:
        return None
    if not texts:
        return "none"
    second = f",gemm2_schedule={texts[-1]}" if texts[-1] != texts[0] else ""
    return texts[0] + second + (f",sum_schedule={SLOTS}" if name.startswith("moe_w4a16") else "")


def _block_rows(name: str, case: Any, device: torch.device) -> list[int]:
    """Return BM of each GEMM that the kernel launches for this case."""
    sizes = case.sizes
    E = case.local_experts if "E" in sizes else 1

    def chosen(op: str, N: int, K: int) -> int:
        G = sizes["G"] if sizes["G"] > 0 else K
        weight: Any = SimpleNamespace(E=E, N=N, K=K, G=G, zero_kind=ZERO_KINDS[UNPACKED])
        return tile_for(op, case.R, weight, case.torch_dtype, device).block_m

    if name.startswith("int4_linear"):
        from moeracle.kernels.triton.int4_linear import dense_tile  # which imports triton

        return [dense_tile(case.T, case.N, case.K, device).block_m]
    if name == "padded_gemm":
        return [_of_blocks(case.B)]
    if name == "moe_w4a16.padded":
        return [_of_blocks(chosen("padded_gemm", 2 * case.I, case.H))] * 2
    if name == "moe_w4a16.fused":
        rows = chosen("padded_gemm", 2 * case.I, case.H)
        return [rows, _of_blocks(rows)]
    if name == "moe_w4a16.grouped":
        return [chosen("grouped_gemm", 2 * case.I, case.H), chosen("grouped_gemm", case.H, case.I)]
    return [chosen("grouped_gemm", case.N, case.K)] if name == "grouped_gemm" else []


def _of_blocks(block_size: int) -> int:
    """Return the BM that padded_gemm takes for blocks of this size."""
    return max(16, min(128, pow2_at_least(block_size)))
