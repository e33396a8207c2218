"""The order in which each GEMM here adds its products on compute capability 9.0, as data: the text of a Schedule.

Read off the compiled kernels (sm_90; triton 3.6.0 and 3.9.0) and checked against recordings of an NVIDIA H200 with
triton 3.6.0 (fixtures/h200/recordings, docs/bit-models.md):

* tl.dot with BM < 64 is mma.sync m16n8k16, both operands in registers with kWidth = 2, so each instruction takes 16
  consecutive k; with BM >= 64 it is wgmma, K = 16 each, from shared memory: the same k, and the same bits.
* uint8 zero points ("unpacked") are loaded as bytes and give the mma operands another k order (kWidth = 4): seen on the
  H200 as bits that no schedule here predicts. Their cases are judged by interval.
* tl.sum over BLOCK_K inputs belongs to the compiler: triton 3.6 adds a thread's registers one after another (fused
  multiply-add), then lanes, then warps by butterflies; 3.9 pairs registers and gives threads other k. Which k a thread
  holds also depends on how the scales are loaded. So decode's order is declared for triton 3.6 only.
"""

from __future__ import annotations

from moeracle.kernels.tiles import Tile

CAPABILITY = (9, 0)  # where these hold
MMA, WGMMA = "mma.m16n8k16.sm90", "wgmma.k16.sm90"
WGMMA_ROWS = 64  # the BM from which tl.dot becomes wgmma
DECODE_TRITON = (3, 6)  # whose order DECODE_... are
ZEROS = ("sym", "rdna")  # the zero-point forms that were recorded
GEMM = WGMMA  # for a kernel whose tile depends on the case: mma of the same k leaves the same bits
# decode: BLOCK_K = 256 on 4 warps. bits: which k each bit of (register, lane, warp) stands for, innermost first.
DECODE_ONE_SCALE = "fma/t256/tree2-sequential.32-halves.4-halves/combine=sequential/bits128.1.2.4.8.16.32.64"
DECODE_MANY_SCALES = "fma/t256/tree32-sequential.2-halves.4-halves/combine=sequential/bits64.128.1.2.4.8.16.32"


def gemm_schedule(tile: Tile) -> str:
    """Return the schedule of int4_linear, grouped_gemm and padded_gemm with this tile."""
    return f"{MMA if tile.block_m < WGMMA_ROWS else WGMMA}/t{tile.block_k}"


def decode_schedule(group: int) -> str:
    """Return triton 3.6's schedule of decode_gemm with its GPU tile and this group size (resolved, 1..K)."""
    return DECODE_MANY_SCALES if group % 256 else DECODE_ONE_SCALE
