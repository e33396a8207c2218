"""W4A16 MoE GEMM for many rows an expert on compute capability 9.0: two warpgroups multiply, a third copies for them.

One program a multiprocessor stays and walks over tiles of BM rows of x by BN rows of the weight. Warps that multiply
take words, scales and x from a ring in shared memory (gemm_duo_copy), half of the weight's rows each; they know no
addresses, wait for memory at one barrier a step and for each other nowhere, and while one stores its result the ring
fills with the next tile. The registers that copying does not need are theirs, so BN is 256 with 128 rows of x: half
of what x would take from L2 otherwise. Products are added as in gemm: schedule `wgmma.k16.sm90`.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import (
    count,
    dequantize,
    let_next_launch,
    scale_layout,
    wait_for_launch,
    word_layout,
)
from moeracle.kernels.hopper.device.gemm_duo_copy import advance, bring_tiles, make_rings
from moeracle.kernels.hopper.device.rows import last_real, rows_of_block, store_layout, store_rows
from moeracle.kernels.hopper.gluon_import import gl, gluon, hopper

mbarrier = hopper.mbarrier


@gluon.jit
def operand(
    w_ring, s_ring, z_ring, stage, j: gl.constexpr, D: gl.constexpr, S: gl.constexpr, PART: gl.constexpr,
    BK: gl.constexpr, GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, MMA: gl.constexpr,
):  # fmt: skip
    """The j-th 64 columns of a step, a part's S slabs, dequantized."""
    WARPS: gl.constexpr = gl.num_warps()
    NG: gl.constexpr = 64 // GROUP if GROUP < 64 else 1
    AT: gl.constexpr = (j * 64) // GROUP if GROUP < BK else 0
    SCALES: gl.constexpr = scale_layout(S, NG, WARPS)
    words = w_ring.index(stage).slice(PART * S, S, 0).slice(j, 1, 1).load(word_layout(S, 1, WARPS))
    scales = s_ring.index(stage).slice(PART * S, S, 0).slice(AT, NG, 1).permute([0, 2, 1]).load(SCALES)
    zeros = scales
    if ZERO:
        zeros = z_ring.index(stage).slice(PART * S, S, 0).slice(AT, NG, 1).permute([0, 2, 1]).load(SCALES)
    return dequantize(words, scales, zeros, D, S, NG, WARPS, MMA, ZERO, FOLD)


@gluon.jit
def multiply_tile(
    given, rings, tile, num_n, stage, phase, GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr,
    SILU: gl.constexpr, WEIGHTED: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr, ROWS: gl.constexpr,
    BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, PART: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """A part of the weight's rows by the first ROWS of a tile's BM rows of x, the others being padding."""
    ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr = given[4:9]
    num_ids, num_rows, block_size, _, _, n_out, _, KP, _, _, stride_y = given[9:]
    x_ring, w_ring, s_ring, z_ring, full, empty = rings
    WARPS: gl.constexpr = gl.num_warps()
    D: gl.constexpr = y_ptr.dtype.element_ty
    S: gl.constexpr = BN // 16 // PARTS
    OUT: gl.constexpr = S * 8 if SILU else S * 16
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, ROWS, 16])
    y_rows = count(ROWS, 0, 2, store_layout(OUT, WARPS))
    _, slot, real = rows_of_block(
        ids_ptr, experts_ptr, end_ptr, tile // num_n, block_size, num_ids, num_rows, WHOLE, BM, y_rows
    )
    acc = gl.zeros([S * 16, ROWS], gl.float32, layout=MMA)
    for _ in range(KP // BK):
        mbarrier.wait(full.index(stage), phase)
        hopper.fence_async_shared()  # cp.async wrote x, wgmma reads it through the other proxy
        x_now = x_ring.index(stage).slice(0, ROWS, 0)
        a0 = operand(w_ring, s_ring, z_ring, stage, 0, D, S, PART, BK, GROUP, ZERO, FOLD, MMA)
        acc = hopper.warpgroup_mma(a0, x_now.slice(0, 64, 1).permute([1, 0]), acc, is_async=True)
        if BK == 128:  # dequantized while the first half is multiplied
            a1 = operand(w_ring, s_ring, z_ring, stage, 1, D, S, PART, BK, GROUP, ZERO, FOLD, MMA)
            acc = hopper.warpgroup_mma(a1, x_now.slice(64, 64, 1).permute([1, 0]), acc, is_async=True)
            acc, a0, a1 = hopper.warpgroup_mma_wait(0, deps=[acc, a0, a1])
        else:
            acc, a0 = hopper.warpgroup_mma_wait(0, deps=[acc, a0])
        mbarrier.arrive(empty.index(stage), count=1)
        stage, phase = advance(stage, phase, STAGES)
    if WEIGHTED and not SILU:  # here, as the ring leaves no room to turn fp32 around in
        LINE: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
        line = gl.arange(0, ROWS, layout=LINE)
        _, at, there = rows_of_block(
            ids_ptr, experts_ptr, end_ptr, tile // num_n, block_size, num_ids, num_rows, WHOLE, BM, line
        )
        weights = gl.load(weights_ptr + at, mask=there, other=0.0)
        acc = acc * gl.convert_layout(weights, gl.SliceLayout(0, MMA)).expand_dims(0)
    n = tile % num_n * (OUT * PARTS) + PART * OUT
    store_rows(acc, slot, real, n, n_out, weights_ptr, y_ptr, stride_y, SILU, False, ROWS, S, WARPS)
    return stage, phase


@gluon.jit
def multiply_tiles(
    given, rings, first, tiles, num_n, GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr,
    SILU: gl.constexpr, WEIGHTED: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr,
    LEAST: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, PART: gl.constexpr,
    PARTS: gl.constexpr,
):  # fmt: skip
    """Multiply one part of the tiles first, first + programs, …: fewer columns where the rest is padding."""
    ids_ptr, experts_ptr, end_ptr = given[4:7]
    num_ids, num_rows, block_size = given[9:12]
    stage = 0
    phase = 0
    if LAUNCH == 1:
        wait_for_launch()  # the kernel before may still read what this one overwrites
    for tile in range(first, tiles, gl.num_programs(0)):
        expert, filled = last_real(
            ids_ptr, experts_ptr, end_ptr, tile // num_n, block_size, num_ids, num_rows, WHOLE, BM, gl.num_warps()
        )
        if expert >= 0:
            if (LEAST < BM) and (filled <= LEAST):
                stage, phase = multiply_tile(
                    given, rings, tile, num_n, stage, phase, GROUP, ZERO, FOLD, SILU, WEIGHTED, WHOLE, BM, LEAST, BN,
                    BK, STAGES, PART, PARTS,
                )  # fmt: skip
            elif (2 * LEAST < BM) and (filled <= 2 * LEAST):
                stage, phase = multiply_tile(
                    given, rings, tile, num_n, stage, phase, GROUP, ZERO, FOLD, SILU, WEIGHTED, WHOLE, BM, LEAST * 2,
                    BN, BK, STAGES, PART, PARTS,
                )  # fmt: skip
            else:
                stage, phase = multiply_tile(
                    given, rings, tile, num_n, stage, phase, GROUP, ZERO, FOLD, SILU, WEIGHTED, WHOLE, BM, BM, BN, BK,
                    STAGES, PART, PARTS,
                )  # fmt: skip


@gluon.jit(do_not_specialize=["num_ids", "num_rows", "block_size"])
def hopper_duo_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr,
    num_ids, num_rows, block_size, top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr, WEIGHTED: gl.constexpr,
    EVEN_K: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, LEAST: gl.constexpr, COPY_REGISTERS: gl.constexpr,
):  # fmt: skip
    """One program: its share of all tiles, every num_programs-th; neighbours share the block."""
    D: gl.constexpr = y_ptr.dtype.element_ty
    PARTS: gl.constexpr = 2
    COPIERS: gl.constexpr = 4
    REGISTERS: gl.constexpr = (504 - COPY_REGISTERS) // 2  # 168 a thread at launch, of three warpgroups
    if LAUNCH == 2:  # nothing was promised about the kernel before
        wait_for_launch()
    end = gl.minimum(gl.load(end_ptr), num_ids)
    if LAUNCH > 0:
        let_next_launch()
    num_n = slabs // (BN // 16)
    num_m = 1 if WHOLE else (block_size + BM - 1) // BM
    tiles = (end + block_size - 1) // block_size * num_m * num_n
    first = gl.program_id(0)
    if first >= tiles:
        if LAUNCH == 1:
            wait_for_launch()  # or this kernel could be done before the one before it
        return
    rings = make_rings(D, BM, BN, BK, STAGES, GROUP, ZERO, COPIERS, PARTS)
    given = (
        x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr, num_ids, num_rows, block_size,
        top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (multiply_tiles, (
                given, rings, first, tiles, num_n, GROUP, ZERO, FOLD, SILU, WEIGHTED, LAUNCH, WHOLE, BM, LEAST, BN, BK,
                STAGES, 0, PARTS,
            )),
            (multiply_tiles, (
                given, rings, first, tiles, num_n, GROUP, ZERO, FOLD, SILU, WEIGHTED, LAUNCH, WHOLE, BM, LEAST, BN, BK,
                STAGES, 1, PARTS,
            )),
            (bring_tiles, (
                given, rings, first, tiles, num_n, GROUP, ZERO, EVEN_K, LAUNCH, WHOLE, BM, BN, BK, STAGES,
            )),
        ],
        [4, COPIERS],
        [REGISTERS, COPY_REGISTERS],
    )  # fmt: skip
