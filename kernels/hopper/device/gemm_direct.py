"""One tile of the Hopper GEMM whose words go from memory into registers, and only x through a ring in shared memory.

Half the traffic of shared memory, and one barrier for every BK columns, which may be 256.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import count, dequantize, scale_layout, wait_for_launch, word_layout
from moeracle.kernels.hopper.device.rows import rows_of_block, store_layout, store_rows
from moeracle.kernels.hopper.gluon_import import barrier, copy_async, gl, gluon, hopper


@gluon.jit
def multiply_direct(
    given, tile, n_tile, GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr,
    WEIGHTED: gl.constexpr, EVEN_K: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr,
    ROWS: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The first ROWS of a tile's BM rows, the others being padding; words are loaded BK columns ahead."""
    x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr = given[:9]
    num_ids, num_rows, block_size, top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y = given[9:]
    WARPS: gl.constexpr = gl.num_warps()
    D: gl.constexpr = y_ptr.dtype.element_ty
    S: gl.constexpr = BN // 16
    SUBS: gl.constexpr = BK // 64
    NG: gl.constexpr = 64 // GROUP if GROUP < 64 else 1
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, ROWS, 16])
    WORDS: gl.constexpr = word_layout(S, 1, WARPS)
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
        count(S, 0, 4, WORDS) * (KP * 2) + count(1, 1, 4, WORDS) + count(32, 2, 4, WORDS) * 4 + count(4, 3, 4, WORDS)
    )  # fmt: skip
    scale_at = slab * (groups * 8) + (
        count(S, 0, 3, SCALES) * (groups * 8) + count(8, 1, 3, SCALES) + count(NG, 2, 3, SCALES) * 8
    )
    s_ptrs = s_ptr + scale_at
    z_ptrs = z_ptr + scale_at
    words = (gl.load(w_ptrs),)
    scales = (gl.load(s_ptrs),)
    zeros = (gl.load(z_ptrs) if ZERO else scales[0],)
    for j in gl.static_range(1, SUBS):
        at = ((j * 64) // GROUP) * 8
        words = words + (gl.load(w_ptrs + j * 128),)  # type: ignore[assignment]  # noqa: RUF005
        scales = scales + (gl.load(s_ptrs + at),)  # type: ignore[assignment]  # noqa: RUF005
        zeros = zeros + (gl.load(z_ptrs + at) if ZERO else scales[j],)  # type: ignore[assignment]  # noqa: RUF005
    x_ring = gl.allocate_shared_memory(D, [STAGES, ROWS, BK], gl.NVMMASharedLayout(128, 16, 2))
    steps = KP // BK
    if LAUNCH == 1:
        wait_for_launch()  # weights are nobody's result, x is
    for i in gl.static_range(STAGES - 1):
        there = real if EVEN_K else real & (k8 + i * (BK // 8) < K8)
        copy_async(x_ring.index(i), x_ptrs + i * BK, mask=there)
        hopper.async_copy.commit_group()

    acc = gl.zeros([BN, ROWS], gl.float32, layout=MMA)
    for i in range(steps):
        hopper.async_copy.wait_group(STAGES - 2)
        hopper.fence_async_shared()  # cp.async wrote x, wgmma reads it through the other proxy
        barrier()
        ahead = i + STAGES - 1
        if ahead < steps:
            there = real if EVEN_K else real & (k8 + ahead * (BK // 8) < K8)
            copy_async(x_ring.index(ahead % STAGES), x_ptrs + ahead * BK, mask=there)
        hopper.async_copy.commit_group()
        x_now = x_ring.index(i % STAGES)
        for j in gl.static_range(SUBS):
            a = dequantize(words[0], scales[0], zeros[0], D, S, NG, WARPS, MMA, ZERO, FOLD)
            w = words[0]
            s = scales[0]
            z = zeros[0]
            if i + 1 < steps:
                at = (((i + 1) * BK + j * 64) // GROUP) * 8
                w = gl.load(w_ptrs + (i + 1) * (BK * 2) + j * 128)
                s = gl.load(s_ptrs + at)
                z = gl.load(z_ptrs + at) if ZERO else s
            words = words[1:] + (w,)  # noqa: RUF005
            scales = scales[1:] + (s,)  # noqa: RUF005
            zeros = zeros[1:] + (z,)  # noqa: RUF005
            acc = hopper.warpgroup_mma(a, x_now.slice(j * 64, 64, 1).permute([1, 0]), acc, is_async=True)
            acc, a = hopper.warpgroup_mma_wait(0, deps=[acc, a])

    OUT: gl.constexpr = BN // 2 if SILU else BN
    y_rows = count(ROWS, 0, 2, store_layout(OUT, WARPS))
    _, slot, real = rows_of_block(ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE, BM, y_rows)
    store_rows(acc, slot, real, n_tile * OUT, n_out, weights_ptr, y_ptr, stride_y, SILU, WEIGHTED, ROWS, S, WARPS)
