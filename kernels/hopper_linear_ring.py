"""Dense W4A16 for many rows on compute capability 9.0: hopper_gemm without experts, with a bias or another epilogue.

int4 words and rows of x come through a ring in shared memory (cp.async); words go on into registers, are dequantized
there and multiplied from there. 16 consecutive k an instruction, ascending, chained in fp32: schedule `wgmma.k16.sm90`.
"""

from __future__ import annotations

from moeracle.kernels.gluon_import import copy_async, gl, gluon, hopper
from moeracle.kernels.hopper_tile import (
    count,
    dequantize,
    let_next_launch,
    scale_layout,
    silu_times,
    wait_for_launch,
    word_layout,
)


@gluon.jit(do_not_specialize=["T"])
def hopper_linear_ring_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, bias_ptr, y_ptr, T, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    GROUP: gl.constexpr, ZERO: gl.constexpr, SILU: gl.constexpr, BIAS: gl.constexpr, GATE: gl.constexpr,
    EVEN_K: gl.constexpr, EARLY: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """One program: BM rows of x, BN rows of the weight. bias_ptr is the bias, or with GATE an fp32 sum for each row."""
    WARPS: gl.constexpr = gl.num_warps()
    D: gl.constexpr = y_ptr.dtype.element_ty
    S: gl.constexpr = BN // 16
    SUBS: gl.constexpr = BK // 64
    NG: gl.constexpr = 64 // GROUP if GROUP < 64 else 1
    ONE_SCALE: gl.constexpr = GROUP % BK == 0  # a row has one for the whole step
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BM, 16])
    WORDS: gl.constexpr = word_layout(S, 1, WARPS)
    COPY_W: gl.constexpr = word_layout(S, SUBS, WARPS)
    COPY_X: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BK, BK // 8], [WARPS, 1], [1, 0])
    SCALES: gl.constexpr = scale_layout(S, NG, WARPS)

    if EARLY:
        wait_for_launch()
        let_next_launch()
    num_n = slabs // S
    pid = gl.program_id(0)
    row0 = pid // num_n * BM
    n_tile = pid % num_n
    real = row0 + count(BM, 0, 2, COPY_X) < T
    k8 = count(BK, 1, 2, COPY_X) // 8
    x_ptrs = x_ptr + (row0 + count(BM, 0, 2, COPY_X)).to(gl.int64) * stride_x8 * 8 + count(BK, 1, 2, COPY_X)
    w_ptrs = w_ptr + (n_tile * S).to(gl.int64) * (KP * 2) + (
        count(S, 0, 4, COPY_W) * (KP * 2) + count(SUBS, 1, 4, COPY_W) * 128 + count(32, 2, 4, COPY_W) * 4
        + count(4, 3, 4, COPY_W)
    )  # fmt: skip
    scale_at = (n_tile * S).to(gl.int64) * (groups * 8) + (
        count(S, 0, 3, SCALES) * (groups * 8) + count(8, 1, 3, SCALES) + count(NG, 2, 3, SCALES) * 8
    )
    s_ptrs = s_ptr + scale_at
    z_ptrs = z_ptr + scale_at

    w_ring = gl.allocate_shared_memory(
        gl.int32, [STAGES, S, SUBS, 32, 4], gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0])
    )
    x_ring = gl.allocate_shared_memory(D, [STAGES, BM, BK], gl.NVMMASharedLayout(128, 16, 2))
    steps = KP // BK
    for i in gl.static_range(STAGES - 1):
        copy_async(w_ring.index(i), w_ptrs + i * (SUBS * 128))
        copy_async(x_ring.index(i), x_ptrs + i * BK, mask=real if EVEN_K else real & (k8 + i * (BK // 8) < K8))
        hopper.async_copy.commit_group()
    s0 = gl.load(s_ptrs)
    s1 = s0 if ONE_SCALE else gl.load(s_ptrs + (64 // GROUP) * 8)
    z0 = gl.load(z_ptrs) if ZERO else s0
    z1 = (z0 if ONE_SCALE else gl.load(z_ptrs + (64 // GROUP) * 8)) if ZERO else s1

    acc = gl.zeros([BN, BM], gl.float32, layout=MMA)
    for step in range(steps):
        hopper.async_copy.wait_group(STAGES - 2)
        hopper.fence_async_shared()  # cp.async wrote x, wgmma reads it through the other proxy
        ahead = step + STAGES - 1
        if ahead < steps:
            stage = ahead % STAGES
            copy_async(w_ring.index(stage), w_ptrs + ahead * (SUBS * 128))
            there = real if EVEN_K else real & (k8 + ahead * (BK // 8) < K8)
            copy_async(x_ring.index(stage), x_ptrs + ahead * BK, mask=there)
        hopper.async_copy.commit_group()
        now_s0, now_s1, now_z0, now_z1 = s0, s1, z0, z1
        if step + 1 < steps:  # scales are loaded a step ahead
            k = (step + 1) * BK
            s0 = gl.load(s_ptrs + (k // GROUP) * 8)
            z0 = gl.load(z_ptrs + (k // GROUP) * 8) if ZERO else s0
            s1 = s0 if ONE_SCALE else gl.load(s_ptrs + ((k + 64) // GROUP) * 8)
            z1 = (z0 if ONE_SCALE else gl.load(z_ptrs + ((k + 64) // GROUP) * 8)) if ZERO else s1
        w_now = w_ring.index(step % STAGES)
        x_now = x_ring.index(step % STAGES)
        a0 = dequantize(w_now.slice(0, 1, 1).load(WORDS), now_s0, now_z0, D, S, NG, WARPS, MMA, ZERO)
        acc = hopper.warpgroup_mma(a0, x_now.slice(0, 64, 1).permute([1, 0]), acc, is_async=True)
        if SUBS == 2:  # dequantized while the first half is multiplied
            a1 = dequantize(w_now.slice(1, 1, 1).load(WORDS), now_s1, now_z1, D, S, NG, WARPS, MMA, ZERO)
            acc = hopper.warpgroup_mma(a1, x_now.slice(64, 64, 1).permute([1, 0]), acc, is_async=True)
            acc, a0, a1 = hopper.warpgroup_mma_wait(0, deps=[acc, a0, a1])
        else:
            acc, a0 = hopper.warpgroup_mma_wait(0, deps=[acc, a0])

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
