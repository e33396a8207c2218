"""W4A16 MoE GEMM for compute capability 9.0: the dequantized weight is the register operand of wgmma.

    y^T [BN, BM] = D((u - z) * s) [BN, K]  x^T [K, BM]

int4 words come through a ring in shared memory (gemm_ring) or straight from memory (gemm_direct), rows of x through
a ring; words are dequantized in registers and multiplied from there, so no weight returns to shared memory. 16
consecutive k an instruction, ascending, chained in fp32: the bits are those of the portable GEMMs. Where the last rows
of a block are padding, LEAST or 2 * LEAST columns are multiplied instead of BM.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import let_next_launch, wait_for_launch
from moeracle.kernels.hopper.device.gemm_direct import multiply_direct
from moeracle.kernels.hopper.device.gemm_ring import multiply_ring
from moeracle.kernels.hopper.device.rows import last_real
from moeracle.kernels.hopper.gluon_import import gl, gluon


@gluon.jit
def multiply(
    given, tile, n_tile, GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr,
    WEIGHTED: gl.constexpr, EVEN_K: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr,
    ROWS: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, DIRECT: gl.constexpr,
):  # fmt: skip
    """The first ROWS of a tile's BM rows, the others being padding."""
    if DIRECT:
        multiply_direct(
            given, tile, n_tile, GROUP, ZERO, FOLD, SILU, WEIGHTED, EVEN_K, LAUNCH, WHOLE, BM, ROWS, BN, BK, STAGES
        )
    else:
        multiply_ring(
            given, tile, n_tile, GROUP, ZERO, FOLD, SILU, WEIGHTED, EVEN_K, LAUNCH, WHOLE, BM, ROWS, BN, BK, STAGES
        )


@gluon.jit(do_not_specialize=["num_ids", "num_rows", "block_size"])
def hopper_gemm_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr,
    num_ids, num_rows, block_size, top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr, WEIGHTED: gl.constexpr,
    EVEN_K: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, LEAST: gl.constexpr, DIRECT: gl.constexpr,
):  # fmt: skip
    """One program: BM rows of one alignment block, BN rows of its expert's weight; neighbours share the block."""
    num_n = slabs // (BN // 16)
    pid = gl.program_id(0)
    tile = pid // num_n
    n_tile = pid % num_n
    if LAUNCH == 2:  # nothing was promised about the kernel before
        wait_for_launch()
    expert, filled = last_real(
        ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE, BM, gl.num_warps()
    )
    if LAUNCH > 0:
        let_next_launch()
    if expert < 0:
        if LAUNCH == 1:
            wait_for_launch()  # or this kernel could be done before the one before it
        return
    given = (
        x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr, num_ids, num_rows, block_size,
        top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    )  # fmt: skip
    if LEAST == BM:
        multiply(
            given, tile, n_tile, GROUP, ZERO, FOLD, SILU, WEIGHTED, EVEN_K, LAUNCH, WHOLE, BM, BM, BN, BK, STAGES,
            DIRECT,
        )  # fmt: skip
    elif filled <= LEAST:
        multiply(
            given, tile, n_tile, GROUP, ZERO, FOLD, SILU, WEIGHTED, EVEN_K, LAUNCH, WHOLE, BM, LEAST, BN, BK, STAGES,
            DIRECT,
        )  # fmt: skip
    elif (2 * LEAST < BM) and (filled <= 2 * LEAST):
        multiply(
            given, tile, n_tile, GROUP, ZERO, FOLD, SILU, WEIGHTED, EVEN_K, LAUNCH, WHOLE, BM, LEAST * 2, BN, BK,
            STAGES, DIRECT,
        )  # fmt: skip
    else:
        multiply(
            given, tile, n_tile, GROUP, ZERO, FOLD, SILU, WEIGHTED, EVEN_K, LAUNCH, WHOLE, BM, BM, BN, BK, STAGES,
            DIRECT,
        )  # fmt: skip
