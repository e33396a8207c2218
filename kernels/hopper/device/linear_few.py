"""Dense W4A16 for few rows on compute capability 9.0: gemm_few without experts, and cut finer, with a bias.

    y^T [BN, BM] = D((u - z) * s) [BN, K]  x^T [K, BM]

One matrix has few programs, so BN may be as small as a slab, 16 rows: the four warps of a warpgroup then multiply four
parts of K. Parts are the diagonal blocks of one product (see gemm_few.py) and are added pairwise in fp32: schedule
`wgmma.k16.sm90/sSPLIT/join=pairwise`. The epilogue is one of three: a bias; silu·mul; or a gate, y * D(sigmoid(dot)).
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
from moeracle.kernels.hopper.device.prefetch import ask_for_slabs
from moeracle.kernels.hopper.gluon_import import barrier, copy_async, gl, gluon, hopper


@gluon.jit
def paired(sums, ROWS: gl.constexpr, HALVES: gl.constexpr, PARTS: gl.constexpr):
    """Add the parts of [ROWS, HALVES * PARTS], neighbours first: [ROWS, HALVES]."""
    if PARTS == 1:
        out = sums.reshape([ROWS, HALVES])
    else:
        even, odd = gl.split(sums.reshape([ROWS, HALVES, PARTS // 2, 2]))
        out = paired((even + odd).reshape([ROWS, HALVES * (PARTS // 2)]), ROWS, HALVES, PARTS // 2)
    return out


@gluon.jit(do_not_specialize=["T"])
def hopper_linear_few_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, bias_ptr, y_ptr, T, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr, BIAS: gl.constexpr,
    GATE: gl.constexpr, EVEN_K: gl.constexpr, EARLY: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    KX: gl.constexpr, SPLIT: gl.constexpr, DEPTH: gl.constexpr,
):  # fmt: skip
    """One program: BM rows of x, BN rows of the weight; KX = KP / SPLIT columns a part.

    bias_ptr is the bias, or with GATE an fp32 sum for each row of x.
    """
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

    num_n = slabs // SN
    pid = gl.program_id(0)
    row0 = pid // num_n * BM
    n_tile = pid % num_n
    if row0 == 0:  # the others have the same weights
        ask_for_slabs(w_ptr, s_ptr, z_ptr, n_tile * SN, KP, groups, ZERO, SN)
    if EARLY:
        wait_for_launch()
        let_next_launch()
    part = count(S, 0, 4, WORDS) // SN
    w_ptrs = w_ptr + (n_tile * SN).to(gl.int64) * (KP * 2) + (
        (count(S, 0, 4, WORDS) % SN) * (KP * 2) + part * (KX * 2) + count(1, 1, 4, WORDS)
        + count(32, 2, 4, WORDS) * 4 + count(4, 3, 4, WORDS)
    )  # fmt: skip
    scale_at = (n_tile * SN).to(gl.int64) * (groups * 8) + (
        (count(S, 0, 3, SCALES) % SN) * (groups * 8) + count(8, 1, 3, SCALES) + count(NG, 2, 3, SCALES) * 8
    )
    s_ptrs = s_ptr + scale_at
    z_ptrs = z_ptr + scale_at
    k_part = (count(S, 0, 3, SCALES) // SN) * KX
    words = ()
    scales = ()
    zeros = ()
    for first in gl.static_range(DEPTH):
        at = ((k_part + first * 64) // GROUP) * 8
        words = words + (gl.load(w_ptrs + first * 128),)  # type: ignore[assignment]  # noqa: RUF005
        scales = scales + (gl.load(s_ptrs + at),)  # type: ignore[assignment]  # noqa: RUF005
        zeros = zeros + (gl.load(z_ptrs + at) if ZERO else scales[first],)  # type: ignore[assignment]  # noqa: RUF005

    x_all = gl.allocate_shared_memory(D, [STEPS, XM, 64], gl.NVMMASharedLayout(128, 16, 2))
    x_row = count(XM, 0, 2, COPY_X)  # row part * BM + i holds row i's columns of that part
    k_in = (x_row // BM) * KX + count(64, 1, 2, COPY_X)
    k8 = (x_row // BM) * (KX // 8) + count(64, 1, 2, COPY_X) // 8
    real = row0 + x_row % BM < T
    x_ptrs = x_ptr + (row0 + x_row % BM).to(gl.int64) * stride_x8 * 8 + k_in
    for i in gl.static_range(STEPS):
        copy_async(x_all.index(i), x_ptrs + i * 64, mask=real if EVEN_K else real & (k8 + i * 8 < K8))
    hopper.async_copy.commit_group()
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()  # cp.async wrote x, wgmma reads it through the other proxy
    barrier()

    acc = gl.zeros([S * 16, XM], gl.float32, layout=MMA)
    for step in range(0, STEPS, DEPTH):
        for j in gl.static_range(DEPTH):
            a = dequantize(words[0], scales[0], zeros[0], D, S, NG, WARPS, MMA, ZERO, FOLD)  # type: ignore[misc]
            w = words[0]  # type: ignore[misc]
            s = scales[0]  # type: ignore[misc]
            z = zeros[0]  # type: ignore[misc]
            ahead = step + j + DEPTH
            if ahead < STEPS:
                at = ((k_part + ahead * 64) // GROUP) * 8
                w = gl.load(w_ptrs + ahead * 128)
                s = gl.load(s_ptrs + at)
                z = gl.load(z_ptrs + at) if ZERO else s
            words = words[1:] + (w,)  # type: ignore[assignment]  # noqa: RUF005
            scales = scales[1:] + (s,)  # type: ignore[assignment]  # noqa: RUF005
            zeros = zeros[1:] + (z,)  # type: ignore[assignment]  # noqa: RUF005
            acc = hopper.warpgroup_mma(a, x_all.index(step + j).permute([1, 0]), acc, is_async=True)
            acc, a = hopper.warpgroup_mma_wait(0, deps=[acc, a])

    own = count(S * 16, 0, 2, MMA) // BN == count(XM, 1, 2, MMA) // BM
    sums = gl.where(own, acc, 0.0).reshape([SPLIT, BN, SPLIT, BM])
    sums = gl.sum(sums, 2) if SPLIT > 1 else sums.reshape([SPLIT, BN, BM])  # a part and zeros: exact
    OUT: gl.constexpr = BN // 2 if SILU else BN
    HALVES: gl.constexpr = 2 if SILU else 1  # rows come eight of gate, eight of up
    ONE_THREAD: gl.constexpr = gl.BlockedLayout([1, HALVES * SPLIT], [32, 1], [WARPS, 1], [1, 0])
    STORE: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [WARPS, 1], [1, 0])
    sums = sums.reshape([SPLIT, OUT // 8, HALVES, 8, BM]).permute([4, 1, 3, 2, 0]).reshape([BM * OUT, HALVES * SPLIT])
    sums = paired(gl.convert_layout(sums, ONE_THREAD), BM * OUT, HALVES, SPLIT)
    if SILU:
        gate, up = gl.split(sums.reshape([BM * OUT, 2]))
        y = silu_times(gate, up, D).reshape([BM, OUT])
    else:
        y = sums.reshape([BM, OUT])
    y = gl.convert_layout(y, STORE)
    row = row0 + count(BM, 0, 2, STORE)
    n = n_tile * OUT + count(OUT, 1, 2, STORE)
    if BIAS:
        y = y + gl.load(bias_ptr + n, mask=n < n_out, other=0.0).to(gl.float32)
    if GATE:
        gate = 1.0 / (1.0 + gl.exp(-gl.load(bias_ptr + row, mask=row < T, other=0.0)))
        y = y.to(D).to(gl.float32) * gate.to(D).to(gl.float32)
    gl.store(y_ptr + row.to(gl.int64) * stride_y + n, y.to(D), mask=(row < T) & (n < n_out))
