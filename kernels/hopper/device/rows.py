"""Which rows a program of the Hopper MoE kernels has, how many of them are real, and how its result is stored."""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import count, silu_times
from moeracle.kernels.hopper.gluon_import import gl, gluon


@gluon.jit
def rows_of_block(
    ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE: gl.constexpr, BM: gl.constexpr,
    ROWS: gl.constexpr,
):  # fmt: skip
    """The `tile`-th BM rows: their expert (-1: nothing to do), their slots, and which are real.

    WHOLE: tiles are the alignment's blocks; else a block takes ceil(block_size / BM) tiles.
    """
    if WHOLE:
        block = tile
        at = tile * BM + ROWS
        inside = at < num_ids
    else:
        num_m = (block_size + BM - 1) // BM
        block = tile // num_m
        within = tile % num_m * BM + ROWS
        at = block * block_size + within
        inside = (within < block_size) & (at < num_ids)
    end = gl.load(end_ptr)
    expert = gl.load(experts_ptr + block)
    slot = gl.load(ids_ptr + at, mask=inside, other=num_rows)
    return gl.where(block * block_size < end, expert, -1), slot, (slot >= 0) & (slot < num_rows)


@gluon.jit
def last_real(
    ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE: gl.constexpr, BM: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """The tile's expert (-1: nothing to do), and how many of its rows are not padding at their end."""
    EACH: gl.constexpr = BM // 32 if BM > 32 else 1
    rows = gl.arange(0, BM, layout=gl.BlockedLayout([EACH], [32], [WARPS], [0]))  # every warp has all of them
    expert, _, real = rows_of_block(ids_ptr, experts_ptr, end_ptr, tile, block_size, num_ids, num_rows, WHOLE, BM, rows)
    return expert, gl.max(gl.where(real, rows + 1, 0), 0)


@gluon.constexpr_function
def store_layout(OUT, WARPS):
    """[rows, OUT] with eight consecutive columns a thread."""
    lanes = min(32, OUT // 8)
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])


@gluon.jit
def store_rows(
    acc, slot, real, n, n_out, weights_ptr, y_ptr, stride_y, SILU: gl.constexpr, WEIGHTED: gl.constexpr,
    ROWS: gl.constexpr, S: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Store acc [16*S, ROWS] as rows `slot` of y from column n on, after silu·mul or the router weight."""
    D: gl.constexpr = y_ptr.dtype.element_ty
    OUT: gl.constexpr = S * 8 if SILU else S * 16
    STORE: gl.constexpr = store_layout(OUT, WARPS)
    if SILU:  # rows come eight of gate, eight of up: one thread holds both
        gate, up = gl.split(acc.reshape([S, 2, 8, ROWS]).permute([0, 2, 3, 1]))
        y = gl.convert_layout(silu_times(gate, up, D).reshape([OUT, ROWS]).permute([1, 0]), STORE)
    elif WEIGHTED:
        weights = gl.load(weights_ptr + slot, mask=real, other=0.0)
        y = (gl.convert_layout(acc.permute([1, 0]), STORE) * weights).to(D)
    else:
        y = gl.convert_layout(acc.to(D).permute([1, 0]), STORE)
    n = n + count(OUT, 1, 2, STORE)
    gl.store(y_ptr + slot.to(gl.int64) * stride_y + n, y, mask=real & (n < n_out))
