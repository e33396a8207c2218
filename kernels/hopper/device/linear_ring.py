"""Dense W4A16 for many rows on compute capability 9.0: x by the copy engine through a ring, words into registers.

    y^T [BN, BM] = D((u - z) * s) [BN, K]  x^T [K, BM]

16 consecutive k an instruction, ascending, chained in fp32: schedule `wgmma.k16.sm90`. A program is alone on its
multiprocessor or nearly so, and four warps' instructions follow one another with gaps; SPLIT = 2 puts four more beside
them, which take the second half of K. The halves are added in fp32: `wgmma.k16.sm90/s2/join=pairwise`.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import count, let_next_launch, silu_times, wait_for_launch
from moeracle.kernels.hopper.device.linear_part import sum_of_part
from moeracle.kernels.hopper.device.prefetch import ask_for_slabs
from moeracle.kernels.hopper.gluon_import import barrier, gl, gluon, hopper


@gluon.jit
def first_half(
    kept, x_tiles, x_ring, full, w_ptr, s_ptr, z_ptr, KP, groups, slab, row0, k0, columns,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, DEPTH: gl.constexpr,
):  # fmt: skip
    """Return the sum of the program's own warps, in a tuple."""
    acc = sum_of_part(
        x_tiles, x_ring, full, w_ptr, s_ptr, z_ptr, KP, groups, slab, row0, k0, columns, GROUP, ZERO, FOLD, BM, BN, BK,
        STAGES, DEPTH,
    )  # fmt: skip
    return (acc,)


@gluon.jit
def second_half(
    kept, x_tiles, x_ring, full, w_ptr, s_ptr, z_ptr, KP, groups, slab, row0, k0, columns,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, DEPTH: gl.constexpr,
):  # fmt: skip
    """Leave the sum of the other warps in shared memory."""
    acc = sum_of_part(
        x_tiles, x_ring, full, w_ptr, s_ptr, z_ptr, KP, groups, slab, row0, k0, columns, GROUP, ZERO, FOLD, BM, BN, BK,
        STAGES, DEPTH,
    )  # fmt: skip
    kept.store(acc)


@gluon.jit(do_not_specialize=["T"])
def hopper_linear_ring_kernel(
    x_tiles, w_ptr, s_ptr, z_ptr, bias_ptr, y_ptr, T, slabs, n_out, KP, groups, stride_y,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr, BIAS: gl.constexpr,
    GATE: gl.constexpr, EARLY: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, DEPTH: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """One program: BM rows of x, BN rows of the weight; BK columns of x a step, DEPTH * 64 a turn of the loop.

    bias_ptr is the bias, or with GATE an fp32 sum for each row of x.
    """
    WARPS: gl.constexpr = gl.num_warps()
    D: gl.constexpr = y_ptr.dtype.element_ty
    S: gl.constexpr = BN // 16
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BM, 16])
    num_n = slabs // S
    pid = gl.program_id(0)
    n_tile = pid % num_n
    row0 = pid // num_n * BM
    if row0 == 0:  # the others have the same weights
        ask_for_slabs(w_ptr, s_ptr, z_ptr, n_tile * S, KP, groups, ZERO, S)
    if T > BM:
        row0 = gl.minimum(row0, T - BM)  # some rows again, with equal results, rather than rows that are none
    x_ring = gl.allocate_shared_memory(D, [STAGES, BM, BK], x_tiles.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    full2 = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        hopper.mbarrier.init(full.index(stage), count=1)
        if SPLIT > 1:
            hopper.mbarrier.init(full2.index(stage), count=1)
    hopper.fence_async_shared()
    barrier()
    if EARLY:
        wait_for_launch()
        let_next_launch()
    if SPLIT == 1:
        acc = sum_of_part(
            x_tiles, x_ring, full, w_ptr, s_ptr, z_ptr, KP, groups, n_tile * S, row0, 0 * KP, KP, GROUP, ZERO, FOLD, BM,
            BN, BK, STAGES, DEPTH,
        )  # fmt: skip
    else:
        x_ring2 = gl.allocate_shared_memory(D, [STAGES, BM, BK], x_tiles.layout)
        kept = gl.allocate_shared_memory(gl.float32, [BN, BM], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        # Tuples are written where they are arguments: constants would stop being constants in a variable.
        sums = gl.warp_specialize(
            [
                (first_half, (
                    kept, x_tiles, x_ring, full, w_ptr, s_ptr, z_ptr, KP, groups, n_tile * S, row0, 0 * KP, KP // 2,
                    GROUP, ZERO, FOLD, BM, BN, BK, STAGES, DEPTH,
                )),
                (second_half, (
                    kept, x_tiles, x_ring2, full2, w_ptr, s_ptr, z_ptr, KP, groups, n_tile * S, row0, KP // 2, KP // 2,
                    GROUP, ZERO, FOLD, BM, BN, BK, STAGES, DEPTH,
                )),
            ],
            [WARPS],
            [240],
        )  # fmt: skip
        acc = sums[0] + kept.load(MMA)

    OUT: gl.constexpr = BN // 2 if SILU else BN
    LANES: gl.constexpr = OUT // 8 if OUT < 256 else 32
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [WARPS, 1], [1, 0])
    if SILU:  # rows come eight of gate, eight of up: one thread holds both
        gate, up = gl.split(acc.reshape([S, 2, 8, BM]).permute([0, 2, 3, 1]))
        y = silu_times(gate, up, D).reshape([OUT, BM])
    else:
        if BIAS:
            at = n_tile * BN + count(BN, 0, 2, MMA)
            acc = acc + gl.load(bias_ptr + at, mask=at < n_out, other=0.0).to(gl.float32)
        if GATE:
            at = row0 + count(BM, 1, 2, MMA)
            gate = 1.0 / (1.0 + gl.exp(-gl.load(bias_ptr + at, mask=at < T, other=0.0)))
            acc = acc.to(D).to(gl.float32) * gate.to(D).to(gl.float32)
        y = acc.to(D)
    y = gl.convert_layout(y.permute([1, 0]), STORE)
    row = row0 + count(BM, 0, 2, STORE)
    n = n_tile * OUT + count(OUT, 1, 2, STORE)
    gl.store(y_ptr + row.to(gl.int64) * stride_y + n, y, mask=(row < T) & (n < n_out))
