"""The warps of gemm_duo that copy: rows of x, words and scales into a ring in shared memory, tile after tile.

A step is BK columns of all. `full[stage]` completes when each of the 128 threads' copies have landed, `empty[stage]`
when both warpgroups that multiply have done with them; no other barrier stands between the two kinds of warps.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import count, wait_for_launch, word_layout
from moeracle.kernels.hopper.device.rows import rows_of_block
from moeracle.kernels.hopper.gluon_import import copy_async, gl, gluon, hopper

mbarrier = hopper.mbarrier


@gluon.jit
def advance(stage, phase, STAGES: gl.constexpr):
    """The stage after this one, and the parity that its barrier will have."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase = phase ^ 1
    return stage, phase


@gluon.jit
def make_rings(
    D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
    ZERO: gl.constexpr, COPIERS: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """x, words, scales, zero points, and the barriers of each stage; to be made before the warps part."""
    S: gl.constexpr = BN // 16
    GROUPS: gl.constexpr = BK // GROUP if GROUP < BK else 1
    WORDS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0])
    PAIRS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    x_ring = gl.allocate_shared_memory(D, [STAGES, BM, BK], gl.NVMMASharedLayout(128, 16, 2))
    w_ring = gl.allocate_shared_memory(gl.int32, [STAGES, S, BK // 64, 32, 4], WORDS)
    s_ring = gl.allocate_shared_memory(gl.int32, [STAGES, S, GROUPS, 8], PAIRS)
    z_ring = s_ring
    if ZERO:
        z_ring = gl.allocate_shared_memory(gl.int32, [STAGES, S, GROUPS, 8], PAIRS)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=COPIERS * 32)
        mbarrier.init(empty.index(i), count=PARTS)
    hopper.fence_async_shared()
    return x_ring, w_ring, s_ring, z_ring, full, empty


@gluon.jit
def bring_tiles(
    given, rings, first, tiles, num_n, GROUP: gl.constexpr, ZERO: gl.constexpr, EVEN_K: gl.constexpr,
    LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Copy every step of the tiles first, first + programs, … as soon as its stage is free."""
    x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr = given[:7]
    num_ids, num_rows, block_size, top_k, slabs, _, K8, KP, groups, stride_x8, _ = given[9:]
    x_ring, w_ring, s_ring, z_ring, full, empty = rings
    WARPS: gl.constexpr = gl.num_warps()
    S: gl.constexpr = BN // 16
    GROUPS: gl.constexpr = BK // GROUP if GROUP < BK else 1
    COPY_X: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BK, BK // 8], [WARPS, 1], [1, 0])
    COPY_W: gl.constexpr = word_layout(S, BK // 64, WARPS)
    COPY_S: gl.constexpr = gl.BlockedLayout([1, 1, 4], [16 // GROUPS, GROUPS, 2], [WARPS, 1, 1], [2, 1, 0])
    rows = count(BM, 0, 2, COPY_X)
    k = count(BK, 1, 2, COPY_X)
    w_lane = (
        count(S, 0, 4, COPY_W) * (KP * 2) + count(BK // 64, 1, 4, COPY_W) * 128 + count(32, 2, 4, COPY_W) * 4
        + count(4, 3, 4, COPY_W)
    )  # fmt: skip
    s_lane = count(S, 0, 3, COPY_S) * (groups * 8) + count(GROUPS, 1, 3, COPY_S) * 8 + count(8, 2, 3, COPY_S)
    stage = 0
    phase = 1  # all stages are free to begin with
    if LAUNCH == 1:
        wait_for_launch()
    for tile in range(first, tiles, gl.num_programs(0)):
        expert, slot, real = rows_of_block(
            ids_ptr, experts_ptr, end_ptr, tile // num_n, block_size, num_ids, num_rows, WHOLE, BM, rows
        )
        if expert >= 0:
            x_ptrs = x_ptr + (slot // top_k).to(gl.int64) * stride_x8 * 8 + k
            slab = expert.to(gl.int64) * slabs + tile % num_n * S
            w_ptrs = w_ptr + slab * (KP * 2) + w_lane
            s_ptrs = s_ptr + slab * (groups * 8) + s_lane
            z_ptrs = z_ptr + slab * (groups * 8) + s_lane
            for i in range(KP // BK):
                mbarrier.wait(empty.index(stage), phase)
                there = real if EVEN_K else real & (k // 8 + i * (BK // 8) < K8)
                at = (i * BK) // GROUP * 8
                copy_async(w_ring.index(stage), w_ptrs + i * (BK * 2))
                copy_async(s_ring.index(stage), s_ptrs + at)
                if ZERO:
                    copy_async(z_ring.index(stage), z_ptrs + at)
                copy_async(x_ring.index(stage), x_ptrs + i * BK, mask=there)
                hopper.async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
                stage, phase = advance(stage, phase, STAGES)
