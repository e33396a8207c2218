"""W4A16 MoE GEMM for few rows an expert on compute capability 9.0, where reading the weights is all the work.

As gemm.py, but all of x lies in shared memory from the start, weights are loaded straight into registers DEPTH
steps ahead, and no barrier stands in the loop. K can be cut into SPLIT parts, each multiplied by warpgroups of its own:

    [W_0; W_1] [x_0 | x_1]^T   has   W_0 x_0^T and W_1 x_1^T   on its diagonal

so that parts are more rows and more columns of one product; what lies off the diagonal is thrown away. Parts are added
pairwise in fp32 in shared order: schedule `wgmma.k16.sm90/sSPLIT/join=pairwise`.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import (
    count,
    dequantize,
    let_next_launch,
    scale_layout,
    silu_times,
    wait_for_launch,
    word_layout,
)
from moeracle.kernels.hopper.device.rows import rows_of_block, store_layout, store_rows
from moeracle.kernels.hopper.gluon_import import barrier, copy_async, gl, gluon, hopper


@gluon.jit(do_not_specialize=["num_ids", "num_rows", "block_size"])
def hopper_few_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr,
    num_ids, num_rows, block_size, top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr, WEIGHTED: gl.constexpr,
    EVEN_K: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    KX: gl.constexpr, SPLIT: gl.constexpr, DEPTH: gl.constexpr,
):  # fmt: skip
    """One program: BM rows of one alignment block, BN rows of its expert's weight; KX = KP / SPLIT columns a part."""
    WARPS: gl.constexpr = SPLIT * BN // 16
    D: gl.constexpr = y_ptr.dtype.element_ty
    SN: gl.constexpr = BN // 16  # slabs of one part
    S: gl.constexpr = SN * SPLIT
    NG: gl.constexpr = 64 // GROUP if GROUP < 64 else 1
    XM: gl.constexpr = BM * SPLIT
    STEPS: gl.constexpr = KX // 64
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, XM, 16])
    WORDS: gl.constexpr = word_layout(S, 1, WARPS)
    COPY_X: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    SCALES: gl.constexpr = scale_layout(S, NG, WARPS)

    OUT: gl.constexpr = BN // 2 if SILU else BN
    ONE_BY_ONE: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [WARPS, 1], [1, 0])
    STORE: gl.constexpr = store_layout(OUT, WARPS) if SPLIT == 1 else ONE_BY_ONE

    num_n = slabs // SN
    pid = gl.program_id(0)
    tile = pid // num_n
    n_tile = pid % num_n
    if LAUNCH == 2:  # nothing was promised about the kernel before
        wait_for_launch()
    x_row = count(XM, 0, 2, COPY_X)
    expert, slot, real = rows_of_block(
        ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE, BM, x_row % BM
    )
    if LAUNCH > 0:
        let_next_launch()
    if expert < 0:
        if LAUNCH == 1:
            wait_for_launch()  # or this kernel could be done before the one before it
        return
    slab = expert.to(gl.int64) * slabs + n_tile * SN
    part = count(S, 0, 4, WORDS) // SN
    w_ptrs = w_ptr + slab * (KP * 2) + (
        (count(S, 0, 4, WORDS) % SN) * (KP * 2) + part * (KX * 2) + count(1, 1, 4, WORDS)
        + count(32, 2, 4, WORDS) * 4 + count(4, 3, 4, WORDS)
    )  # fmt: skip
    scale_at = slab * (groups * 8) + (
        (count(S, 0, 3, SCALES) % SN) * (groups * 8) + count(8, 1, 3, SCALES) + count(NG, 2, 3, SCALES) * 8
    )
    s_ptrs = s_ptr + scale_at
    z_ptrs = z_ptr + scale_at
    k_part = (count(S, 0, 3, SCALES) // SN) * KX
    words = (gl.load(w_ptrs),)
    scales = (gl.load(s_ptrs + (k_part // GROUP) * 8),)
    zeros = (gl.load(z_ptrs + (k_part // GROUP) * 8) if ZERO else scales[0],)
    for j in gl.static_range(1, DEPTH):
        at = ((k_part + j * 64) // GROUP) * 8
        words = words + (gl.load(w_ptrs + j * 128),)  # type: ignore[assignment]  # noqa: RUF005
        scales = scales + (gl.load(s_ptrs + at),)  # type: ignore[assignment]  # noqa: RUF005
        zeros = zeros + (gl.load(z_ptrs + at) if ZERO else scales[j],)  # type: ignore[assignment]  # noqa: RUF005

    if LAUNCH == 1:
        wait_for_launch()  # weights are nobody's result, x is
    x_all = gl.allocate_shared_memory(D, [STEPS, XM, 64], gl.NVMMASharedLayout(128, 16, 2))
    k_in = (x_row // BM) * KX + count(64, 1, 2, COPY_X)  # row part * BM + i holds row i's columns of that part
    k8 = (x_row // BM) * (KX // 8) + count(64, 1, 2, COPY_X) // 8
    x_ptrs = x_ptr + (slot // top_k).to(gl.int64) * stride_x8 * 8 + k_in
    for i in gl.static_range(STEPS):
        there = real if EVEN_K else real & (k8 + i * 8 < K8)
        copy_async(x_all.index(i), x_ptrs + i * 64, mask=there)
    hopper.async_copy.commit_group()
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()  # cp.async wrote x, wgmma reads it through the other proxy
    barrier()
    _, y_slot, y_real = rows_of_block(
        ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE, BM, count(BM, 0, 2, STORE)
    )  # on its way while we multiply

    acc = gl.zeros([S * 16, XM], gl.float32, layout=MMA)
    for i in range(0, STEPS, DEPTH):
        for j in gl.static_range(DEPTH):
            a = dequantize(words[0], scales[0], zeros[0], D, S, NG, WARPS, MMA, ZERO, FOLD)
            w = words[0]
            s = scales[0]
            z = zeros[0]
            ahead = i + j + DEPTH
            if ahead < STEPS:
                at = ((k_part + ahead * 64) // GROUP) * 8
                w = gl.load(w_ptrs + ahead * 128)
                s = gl.load(s_ptrs + at)
                z = gl.load(z_ptrs + at) if ZERO else s
            words = words[1:] + (w,)  # noqa: RUF005
            scales = scales[1:] + (s,)  # noqa: RUF005
            zeros = zeros[1:] + (z,)  # noqa: RUF005
            acc = hopper.warpgroup_mma(a, x_all.index(i + j).permute([1, 0]), acc, is_async=True)
            acc, a = hopper.warpgroup_mma_wait(0, deps=[acc, a])

    if SPLIT == 1:
        store_rows(acc, y_slot, y_real, n_tile * OUT, n_out, weights_ptr, y_ptr, stride_y, SILU, WEIGHTED, BM, S, WARPS)
    else:
        own = count(S * 16, 0, 2, MMA) // BN == count(XM, 1, 2, MMA) // BM
        sums = gl.sum(gl.where(own, acc, 0.0).reshape([SPLIT, BN, SPLIT, BM]), 2)  # a part and zeros: exact
        HALVES: gl.constexpr = 2 if SILU else 1  # rows come eight of gate, eight of up
        ONE_THREAD: gl.constexpr = gl.BlockedLayout([1, HALVES * SPLIT], [32, 1], [WARPS, 1], [1, 0])
        sums = sums.reshape([SPLIT, OUT // 8, HALVES, 8, BM]).permute([4, 1, 3, 2, 0])
        sums = gl.convert_layout(sums.reshape([BM * OUT, HALVES * SPLIT]), ONE_THREAD)
        if SPLIT == 4:
            p0, p1 = gl.split(sums.reshape([BM * OUT, HALVES, 2, 2]))
            sums = (p0 + p1).reshape([BM * OUT, HALVES * 2])
        p0, p1 = gl.split(sums.reshape([BM * OUT, HALVES, 2]))
        sums = p0 + p1
        if SILU:
            gate, up = gl.split(sums.reshape([BM * OUT, 2]))
            y = silu_times(gate, up, D).reshape([BM, OUT])
        else:
            y = sums.reshape([BM, OUT])
        y = gl.convert_layout(y, STORE)
        if WEIGHTED:
            y = y * gl.load(weights_ptr + y_slot, mask=y_real, other=0.0)
        n = n_tile * OUT + count(OUT, 1, 2, STORE)
        gl.store(y_ptr + y_slot.to(gl.int64) * stride_y + n, y.to(D), mask=y_real & (n < n_out))
