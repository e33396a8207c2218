"""One tile of the Hopper GEMM whose words and rows of x both come through a ring in shared memory."""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import count, dequantize, scale_layout, wait_for_launch, word_layout
from moeracle.kernels.hopper.device.rows import rows_of_block, store_layout, store_rows
from moeracle.kernels.hopper.gluon_import import copy_async, gl, gluon, hopper


@gluon.jit
def multiply_ring(
    given, tile, n_tile, GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr,
    WEIGHTED: gl.constexpr, EVEN_K: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr,
    ROWS: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The first ROWS of a tile's BM rows, the others being padding; BK columns of both a step."""
    x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr = given[:9]
    num_ids, num_rows, block_size, top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y = given[9:]
    WARPS: gl.constexpr = gl.num_warps()
    D: gl.constexpr = y_ptr.dtype.element_ty
    S: gl.constexpr = BN // 16
    SUBS: gl.constexpr = BK // 64
    NG: gl.constexpr = 64 // GROUP if GROUP < 64 else 1
    ONE_SCALE: gl.constexpr = GROUP % BK == 0  # a row has one for the whole step
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, ROWS, 16])
    WORDS: gl.constexpr = word_layout(S, 1, WARPS)
    COPY_W: gl.constexpr = word_layout(S, SUBS, WARPS)
    COPY_X: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BK, BK // 8], [WARPS, 1], [1, 0])
    SCALES: gl.constexpr = scale_layout(S, NG, WARPS)

    rows = count(ROWS, 0, 2, COPY_X)
    expert, slot, real = rows_of_block(
        ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE, BM, rows
    )
    k8 = count(BK, 1, 2, COPY_X) // 8
    x_ptrs = x_ptr + (slot // top_k).to(gl.int64) * stride_x8 * 8 + count(BK, 1, 2, COPY_X)
    slab = expert.to(gl.int64) * slabs + n_tile * S
    w_ptrs = w_ptr + slab * (KP * 2) + (
        count(S, 0, 4, COPY_W) * (KP * 2) + count(SUBS, 1, 4, COPY_W) * 128 + count(32, 2, 4, COPY_W) * 4
        + count(4, 3, 4, COPY_W)
    )  # fmt: skip
    scale_at = slab * (groups * 8) + (
        count(S, 0, 3, SCALES) * (groups * 8) + count(8, 1, 3, SCALES) + count(NG, 2, 3, SCALES) * 8
    )
    s_ptrs = s_ptr + scale_at
    z_ptrs = z_ptr + scale_at

    w_ring = gl.allocate_shared_memory(
        gl.int32, [STAGES, S, SUBS, 32, 4], gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0])
    )
    x_ring = gl.allocate_shared_memory(D, [STAGES, ROWS, BK], gl.NVMMASharedLayout(128, 16, 2))
    steps = KP // BK
    for i in gl.static_range(STAGES - 1):
        copy_async(w_ring.index(i), w_ptrs + i * (SUBS * 128))
    if LAUNCH == 1:
        wait_for_launch()  # weights are nobody's result, x is
    for i in gl.static_range(STAGES - 1):
        there = real if EVEN_K else real & (k8 + i * (BK // 8) < K8)
        copy_async(x_ring.index(i), x_ptrs + i * BK, mask=there)
        hopper.async_copy.commit_group()
    s0 = gl.load(s_ptrs)
    s1 = s0 if ONE_SCALE else gl.load(s_ptrs + (64 // GROUP) * 8)
    z0 = gl.load(z_ptrs) if ZERO else s0
    z1 = (z0 if ONE_SCALE else gl.load(z_ptrs + (64 // GROUP) * 8)) if ZERO else s1

    acc = gl.zeros([BN, ROWS], gl.float32, layout=MMA)
    for i in range(steps):
        hopper.async_copy.wait_group(STAGES - 2)
        hopper.fence_async_shared()  # cp.async wrote x, wgmma reads it through the other proxy
        ahead = i + STAGES - 1
        if ahead < steps:
            stage = ahead % STAGES
            copy_async(w_ring.index(stage), w_ptrs + ahead * (SUBS * 128))
            there = real if EVEN_K else real & (k8 + ahead * (BK // 8) < K8)
            copy_async(x_ring.index(stage), x_ptrs + ahead * BK, mask=there)
        hopper.async_copy.commit_group()
        now_s0, now_s1, now_z0, now_z1 = s0, s1, z0, z1
        if i + 1 < steps:  # scales are loaded a step ahead
            k = (i + 1) * BK
            s0 = gl.load(s_ptrs + (k // GROUP) * 8)
            z0 = gl.load(z_ptrs + (k // GROUP) * 8) if ZERO else s0
            s1 = s0 if ONE_SCALE else gl.load(s_ptrs + ((k + 64) // GROUP) * 8)
            z1 = (z0 if ONE_SCALE else gl.load(z_ptrs + ((k + 64) // GROUP) * 8)) if ZERO else s1
        w_now = w_ring.index(i % STAGES)
        x_now = x_ring.index(i % STAGES)
        a0 = dequantize(w_now.slice(0, 1, 1).load(WORDS), now_s0, now_z0, D, S, NG, WARPS, MMA, ZERO, FOLD)
        acc = hopper.warpgroup_mma(a0, x_now.slice(0, 64, 1).permute([1, 0]), acc, is_async=True)
        if SUBS == 2:  # dequantized while the first half is multiplied
            a1 = dequantize(w_now.slice(1, 1, 1).load(WORDS), now_s1, now_z1, D, S, NG, WARPS, MMA, ZERO, FOLD)
            acc = hopper.warpgroup_mma(a1, x_now.slice(64, 64, 1).permute([1, 0]), acc, is_async=True)
            acc, a0, a1 = hopper.warpgroup_mma_wait(0, deps=[acc, a0, a1])
        else:
            acc, a0 = hopper.warpgroup_mma_wait(0, deps=[acc, a0])

    OUT: gl.constexpr = BN // 2 if SILU else BN
    y_rows = count(ROWS, 0, 2, store_layout(OUT, WARPS))
    _, slot, real = rows_of_block(ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE, BM, y_rows)
    store_rows(acc, slot, real, n_tile * OUT, n_out, weights_ptr, y_ptr, stride_y, SILU, WEIGHTED, ROWS, S, WARPS)
