"""hopper_few in one part of K by programs that stay: each takes a run of neighbouring tiles, one after another.

Rows of x are loaded once for all of a block's tiles that a program has, and the first words of the next tile are on
their way while the last ones of this tile are multiplied.
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
from moeracle.kernels.hopper.device.rows import rows_of_block, store_layout, store_rows
from moeracle.kernels.hopper.gluon_import import barrier, copy_async, gl, gluon, hopper


@gluon.jit
def load_rows(
    x_all, x_ptr, slot, real, top_k, stride_x8, K8, STEPS: gl.constexpr, EVEN_K: gl.constexpr, COPY_X: gl.constexpr,
):  # fmt: skip
    """Bring rows of x into shared memory, and wait for them."""
    k8 = count(64, 1, 2, COPY_X) // 8
    x_ptrs = x_ptr + (slot // top_k).to(gl.int64) * stride_x8 * 8 + count(64, 1, 2, COPY_X)
    for i in gl.static_range(STEPS):
        there = real if EVEN_K else real & (k8 + i * 8 < K8)
        copy_async(x_all.index(i), x_ptrs + i * 64, mask=there)
    hopper.async_copy.commit_group()
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()  # cp.async wrote x, wgmma reads it through the other proxy
    barrier()


@gluon.jit(do_not_specialize=["num_ids", "num_rows", "block_size"])
def hopper_stream_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, ids_ptr, experts_ptr, end_ptr, weights_ptr, y_ptr,
    num_ids, num_rows, block_size, top_k, slabs, n_out, K8, KP, groups, stride_x8, stride_y,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, SILU: gl.constexpr, WEIGHTED: gl.constexpr,
    EVEN_K: gl.constexpr, LAUNCH: gl.constexpr, WHOLE: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STEPS: gl.constexpr, DEPTH: gl.constexpr,
):  # fmt: skip
    """One program: its share of all tiles, BM rows of an alignment block by BN rows of the weight each."""
    D: gl.constexpr = y_ptr.dtype.element_ty
    S: gl.constexpr = BN // 16
    NG: gl.constexpr = 64 // GROUP if GROUP < 64 else 1
    OUT: gl.constexpr = BN // 2 if SILU else BN
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [S, 1], [16, BM, 16])
    WORDS: gl.constexpr = word_layout(S, 1, S)
    COPY_X: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [S, 1], [1, 0])
    SCALES: gl.constexpr = scale_layout(S, NG, S)
    x_row = count(BM, 0, 2, COPY_X)
    y_row = count(BM, 0, 2, store_layout(OUT, S))

    if LAUNCH == 2:  # nothing was promised about the kernel before
        wait_for_launch()
    end = gl.minimum(gl.load(end_ptr), num_ids)
    if LAUNCH > 0:
        let_next_launch()
    num_n = slabs // S
    num_m = 1 if WHOLE else (block_size + BM - 1) // BM
    tiles = (end + block_size - 1) // block_size * num_m * num_n
    programs = gl.num_programs(0)
    pid = gl.program_id(0)
    first = pid * (tiles // programs) + gl.minimum(pid, tiles % programs)
    last = first + tiles // programs + gl.where(pid < tiles % programs, 1, 0)
    if first >= last:
        if LAUNCH == 1:
            wait_for_launch()  # or this kernel could be done before the one before it
        return

    w_lane = w_ptr + (
        count(S, 0, 4, WORDS) * (KP * 2) + count(1, 1, 4, WORDS) + count(32, 2, 4, WORDS) * 4 + count(4, 3, 4, WORDS)
    )
    s_lane = count(S, 0, 3, SCALES) * (groups * 8) + count(8, 1, 3, SCALES) + count(NG, 2, 3, SCALES) * 8
    rows = first // num_n  # which BM rows
    n_tile = first % num_n
    expert, slot, real = rows_of_block(
        ids_ptr, experts_ptr, end_ptr, rows, block_size, num_ids, num_rows, WHOLE, BM, x_row
    )
    _, y_slot, y_real = rows_of_block(
        ids_ptr, experts_ptr, end_ptr, rows, block_size, num_ids, num_rows, WHOLE, BM, y_row
    )
    slab = expert.to(gl.int64) * slabs + n_tile * S
    w_ptrs = w_lane + slab * (KP * 2)
    s_ptrs = s_ptr + slab * (groups * 8) + s_lane
    z_ptrs = z_ptr + slab * (groups * 8) + s_lane
    some = expert >= 0
    words = (gl.load(w_ptrs, mask=some, other=0),)
    scales = (gl.load(s_ptrs, mask=some, other=0),)
    zeros = (gl.load(z_ptrs, mask=some, other=0) if ZERO else scales[0],)
    for j in gl.static_range(1, DEPTH):
        at = ((j * 64) // GROUP) * 8
        words = words + (gl.load(w_ptrs + j * 128, mask=some, other=0),)  # type: ignore[assignment]  # noqa: RUF005
        scales = scales + (gl.load(s_ptrs + at, mask=some, other=0),)  # type: ignore[assignment]  # noqa: RUF005
        z = gl.load(z_ptrs + at, mask=some, other=0) if ZERO else scales[j]
        zeros = zeros + (z,)  # type: ignore[assignment]  # noqa: RUF005
    if LAUNCH == 1:
        wait_for_launch()  # weights are nobody's result, x is
    x_all = gl.allocate_shared_memory(D, [STEPS, BM, 64], gl.NVMMASharedLayout(128, 16, 2))
    load_rows(x_all, x_ptr, slot, real, top_k, stride_x8, K8, STEPS, EVEN_K, COPY_X)

    for tile in range(first, last):
        go = tile + 1 < last
        next_n = n_tile + 1
        next_rows = rows
        if next_n == num_n:
            next_n = 0
            next_rows = rows + 1
        next_expert = gl.load(experts_ptr + next_rows // num_m, mask=go, other=-1)
        acc = gl.zeros([S * 16, BM], gl.float32, layout=MMA)
        for i in range(0, STEPS - DEPTH, DEPTH):
            for j in gl.static_range(DEPTH):
                a = dequantize(words[0], scales[0], zeros[0], D, S, NG, S, MMA, ZERO, FOLD)
                at = (((i + j + DEPTH) * 64) // GROUP) * 8
                w = gl.load(w_ptrs + (i + j + DEPTH) * 128, mask=some, other=0)
                s = gl.load(s_ptrs + at, mask=some, other=0)
                z = gl.load(z_ptrs + at, mask=some, other=0) if ZERO else s
                words = words[1:] + (w,)  # noqa: RUF005
                scales = scales[1:] + (s,)  # noqa: RUF005
                zeros = zeros[1:] + (z,)  # noqa: RUF005
                acc = hopper.warpgroup_mma(a, x_all.index(i + j).permute([1, 0]), acc, is_async=True)
                acc, a = hopper.warpgroup_mma_wait(0, deps=[acc, a])
        slab = next_expert.to(gl.int64) * slabs + next_n * S
        w_ptrs = w_lane + slab * (KP * 2)
        s_ptrs = s_ptr + slab * (groups * 8) + s_lane
        z_ptrs = z_ptr + slab * (groups * 8) + s_lane
        some = next_expert >= 0
        for j in gl.static_range(DEPTH):
            a = dequantize(words[0], scales[0], zeros[0], D, S, NG, S, MMA, ZERO, FOLD)
            at = ((j * 64) // GROUP) * 8
            w = gl.load(w_ptrs + j * 128, mask=some, other=0)
            s = gl.load(s_ptrs + at, mask=some, other=0)
            z = gl.load(z_ptrs + at, mask=some, other=0) if ZERO else s
            words = words[1:] + (w,)  # noqa: RUF005
            scales = scales[1:] + (s,)  # noqa: RUF005
            zeros = zeros[1:] + (z,)  # noqa: RUF005
            acc = hopper.warpgroup_mma(a, x_all.index(STEPS - DEPTH + j).permute([1, 0]), acc, is_async=True)
            acc, a = hopper.warpgroup_mma_wait(0, deps=[acc, a])

        store_rows(
            acc, y_slot, y_real & (expert >= 0), n_tile * OUT, n_out, weights_ptr, y_ptr, stride_y, SILU, WEIGHTED, BM,
            S, S,
        )  # fmt: skip
        if (next_rows != rows) & go:
            _, slot, real = rows_of_block(
                ids_ptr, experts_ptr, end_ptr, next_rows, block_size, num_ids, num_rows, WHOLE, BM, x_row
            )
            _, y_slot, y_real = rows_of_block(
                ids_ptr, experts_ptr, end_ptr, next_rows, block_size, num_ids, num_rows, WHOLE, BM, y_row
            )
            barrier()  # every warp has done with the rows before
            load_rows(x_all, x_ptr, slot, real, top_k, stride_x8, K8, STEPS, EVEN_K, COPY_X)
        rows = next_rows
        n_tile = next_n
        expert = next_expert
