"""The main loop of linear_ring: one tile over some columns, x through a ring, words straight into registers.

L2 has been asked for the words (prefetch), they are loaded DEPTH * 64 columns ahead, and each 64 columns are
dequantized while those before are multiplied; TURN steps of the ring are written out, so that nothing moves between
registers.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import count, dequantize, scale_layout, word_layout
from moeracle.kernels.hopper.gluon_import import barrier, gl, gluon, hopper

load_tile = getattr(hopper.tma, "async_load", None) or hopper.tma.async_copy_global_to_shared  # triton 3.6


@gluon.jit
def sum_of_part(
    x_tiles, x_ring, full, w_ptr, s_ptr, z_ptr, KP, groups, slab, row0, k0, columns,
    GROUP: gl.constexpr, ZERO: gl.constexpr, FOLD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, DEPTH: gl.constexpr,
):  # fmt: skip
    """Return [BN, BM] fp32, rows of the weight from `slab` on by rows of x from row0 on, over `columns` from k0 on."""
    WARPS: gl.constexpr = BN // 16
    D: gl.constexpr = x_tiles.dtype
    S: gl.constexpr = BN // 16
    SUBS: gl.constexpr = BK // 64
    TURN: gl.constexpr = DEPTH // SUBS  # steps
    NG: gl.constexpr = 64 // GROUP if GROUP < 64 else 1
    REGULAR: gl.constexpr = (DEPTH * 64) % GROUP == 0  # scales of a turn are as many after those of the turn before
    SHARED: gl.constexpr = GROUP % 128 == 0  # by two neighbouring products: a scale
    BYTES: gl.constexpr = BM * BK * 2
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BM, 16])
    WORDS: gl.constexpr = word_layout(S, 1, WARPS)
    SCALES: gl.constexpr = scale_layout(S, NG, WARPS)

    steps = columns // BK
    for stage in gl.static_range(STAGES):
        hopper.mbarrier.expect(full.index(stage), BYTES, pred=stage < steps)
        load_tile(x_tiles, [row0, k0 + stage * BK], full.index(stage), x_ring.index(stage), pred=stage < steps)

    w_ptrs = w_ptr + slab.to(gl.int64) * (KP * 2) + k0 * 2 + (
        count(S, 0, 4, WORDS) * (KP * 2) + count(1, 1, 4, WORDS) + count(32, 2, 4, WORDS) * 4 + count(4, 3, 4, WORDS)
    )  # fmt: skip
    scale_at = slab.to(gl.int64) * (groups * 8) + (
        count(S, 0, 3, SCALES) * (groups * 8) + count(8, 1, 3, SCALES) + count(NG, 2, 3, SCALES) * 8
    )
    if REGULAR:
        scale_at += (k0 // GROUP) * 8
    s_ptrs = s_ptr + scale_at
    z_ptrs = z_ptr + scale_at
    words = ()
    scales = ()
    zeros = ()
    for j in gl.static_range(DEPTH):
        words = words + (gl.load(w_ptrs + j * 128),)  # type: ignore[assignment]  # noqa: RUF005
        if SHARED and j % 2 == 1:
            scales = scales + (scales[j - 1],)  # type: ignore  # noqa: RUF005
            zeros = zeros + (zeros[j - 1],)  # type: ignore  # noqa: RUF005
        else:
            at = (j * 64 // GROUP) * 8 if REGULAR else ((k0 + j * 64) // GROUP) * 8
            scales = scales + (gl.load(s_ptrs + at),)  # type: ignore[assignment]  # noqa: RUF005
            zeros = zeros + (gl.load(z_ptrs + at) if ZERO else scales[j],)  # type: ignore[assignment]  # noqa: RUF005

    acc = gl.zeros([BN, BM], gl.float32, layout=MMA)
    a = dequantize(words[0], scales[0], zeros[0], D, S, NG, WARPS, MMA, ZERO, FOLD)  # type: ignore[misc]
    before = a  # the operand that is being multiplied
    slot = 0
    phase = 0
    free = STAGES - 1  # the slot of the step before
    for first in range(0, steps, TURN):
        more = first + TURN < steps
        w_ptrs += DEPTH * 128
        if REGULAR:
            s_ptrs += DEPTH * 64 // GROUP * 8
            z_ptrs += DEPTH * 64 // GROUP * 8
        for u in gl.static_range(TURN):
            hopper.mbarrier.wait(full.index(slot), phase)
            x_now = x_ring.index(slot)
            for j in gl.static_range(SUBS):
                w = gl.load(w_ptrs + (u * SUBS + j) * 128, mask=more, other=0)
                if SHARED and (u * SUBS + j) % 2 == 1:
                    s = scales[DEPTH - 1]  # type: ignore[var-annotated]
                    z = zeros[DEPTH - 1]  # type: ignore[var-annotated]
                else:
                    if REGULAR:
                        at = ((u * SUBS + j) * 64 // GROUP) * 8
                    else:
                        at = ((k0 + (first * SUBS + DEPTH + u * SUBS + j) * 64) // GROUP) * 8
                    s = gl.load(s_ptrs + at, mask=more, other=0)
                    z = gl.load(z_ptrs + at, mask=more, other=0) if ZERO else s
                words = words[1:] + (w,)  # type: ignore[assignment]  # noqa: RUF005
                scales = scales[1:] + (s,)  # type: ignore[assignment]  # noqa: RUF005
                zeros = zeros[1:] + (z,)  # type: ignore[assignment]  # noqa: RUF005
                acc = hopper.warpgroup_mma(a, x_now.slice(j * 64, 64, 1).permute([1, 0]), acc, is_async=True)
                acc, before = hopper.warpgroup_mma_wait(1, deps=[acc, before])
                if j == 0:
                    barrier()  # all have multiplied the step before, so its slot is free
                    ahead = first + u - 1 + STAGES
                    go = (first + u > 0) & (ahead < steps)
                    hopper.mbarrier.expect(full.index(free), BYTES, pred=go)
                    load_tile(x_tiles, [row0, k0 + ahead * BK], full.index(free), x_ring.index(free), pred=go)
                before = a
                a = dequantize(words[0], scales[0], zeros[0], D, S, NG, WARPS, MMA, ZERO, FOLD)  # type: ignore[misc]
            free = slot
            slot += 1
            phase = gl.where(slot == STAGES, phase ^ 1, phase)
            slot = gl.where(slot == STAGES, 0, slot)
    acc, before, a = hopper.warpgroup_mma_wait(0, deps=[acc, before, a])
    return acc
