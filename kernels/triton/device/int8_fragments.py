"""Device code of the int8 lm_head for 2 to 16 tokens: codes go from memory into the matrix unit's registers.

A matrix instruction wants of each thread, for its row, inputs 2q, 2q+1, 2q+8, 2q+9 of every 16 (q: lane % 4), but a
16-byte load brings 16 neighbours. Which input is called which does not matter to a sum, so the 64 inputs that four
threads load are renamed until each finds its own codes where the instruction wants them, and x is renamed likewise:

    input 16q + 4s + 2h + l   is column 16s + 8h + 2q + l of the product    (s: instruction, h, l: register)

and rows 8w + i of the load (w: warp) are renamed in the same way. Nothing of the weight then passes through shared
memory. With several groups in one product, x stands there once for each of them, zero outside of it: column (g, t) of
the result is group g's partial sum for token t, which its scale multiplies afterwards, in fp32.

On another device the names are as good as any others: the result is the same sum.
"""

from __future__ import annotations

from moeracle.kernels.triton.triton_import import tl, triton

CHUNK = tl.constexpr(64)  # inputs renamed together


@triton.jit
def loaded_row(i, WARPS: tl.constexpr):
    """Return which row the i-th row of a load is, so that `fragments` puts it into place i."""
    return i // (16 * WARPS) * (16 * WARPS) + (i // 8 % WARPS) * 16 + (i // (8 * WARPS) % 2) * 8 + i % 8


@triton.jit
def fragments(codes, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WARPS: tl.constexpr):
    """Turn codes as loaded, [BLOCK_N, BLOCK_K / 64, 64], into the left operand [BLOCK_N, BLOCK_K] of renamed inputs."""
    parts = tl.reshape(codes, (BLOCK_N // (16 * WARPS), 2, WARPS, 8, BLOCK_K // CHUNK, 4, 4, 2, 2))
    return tl.reshape(tl.permute(parts, (0, 2, 1, 3, 4, 6, 7, 5, 8)), (BLOCK_N, BLOCK_K))


@triton.jit
def renamed(x, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Turn x [COLUMNS, BLOCK_K] into the right operand [BLOCK_K, COLUMNS] of renamed inputs."""
    parts = tl.reshape(x, (COLUMNS, BLOCK_K // CHUNK, 4, 4, 2, 2))
    return tl.trans(tl.reshape(tl.permute(parts, (0, 1, 3, 4, 2, 5)), (COLUMNS, BLOCK_K)))


@triton.jit
def add_product(
    acc, codes, x, scale, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Return acc [BLOCK_N, GROUPS * BLOCK_M] plus codes times x [BLOCK_M, BLOCK_K], each group's times its scale."""
    COLUMNS: tl.constexpr = GROUPS * BLOCK_M
    if GROUPS > 1:
        group = tl.arange(0, BLOCK_K) // GROUP
        mine = tl.arange(0, GROUPS)[:, None, None] == group[None, None, :]
        # reshape, where x[None] would ask for another layout first.
        x = tl.reshape(tl.where(mine, tl.reshape(x, (1, BLOCK_M, BLOCK_K)), 0.0), (COLUMNS, BLOCK_K))
    left = fragments(codes, BLOCK_N, BLOCK_K, WARPS).to(x.dtype)  # -128..127 is exact in bf16 and in fp16
    right = renamed(x, COLUMNS, BLOCK_K)
    if GROUP:
        scales = tl.broadcast_to(scale.to(tl.float32)[:, :, None], (BLOCK_N, GROUPS, BLOCK_M))
        acc += tl.dot(left, right) * tl.reshape(scales, (BLOCK_N, COLUMNS))
    else:
        acc = tl.dot(left, right, acc)
    return acc


@triton.jit
def int8_fragments_kernel(
    x_ptr, c_ptr, s_ptr, bias_ptr, y_ptr, T, V, K, stride_xm, stride_xk, stride_cv, stride_ck, stride_sv, stride_sg,
    BIAS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N:
    tl.constexpr, BLOCK_K: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N vocabulary rows times BLOCK_M tokens, two products of BLOCK_K inputs a step.

    GROUP 0: one scale a row. Else BLOCK_K is GROUPS groups, or GROUPS is 1 and BLOCK_K divides GROUP. WHOLE: V and K
    are whole steps, and nothing needs a mask.
    """
    pid = tl.program_id(0)
    num_t = (T + BLOCK_M - 1) // BLOCK_M
    i = tl.arange(0, BLOCK_N)
    v = (pid // num_t).to(tl.int64) * BLOCK_N + i
    v_loaded = (pid // num_t).to(tl.int64) * BLOCK_N + loaded_row(i, WARPS)
    t = (pid % num_t).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    chunk = (tl.arange(0, BLOCK_K // CHUNK) * CHUNK)[None, :, None] + tl.arange(0, CHUNK)[None, None, :]
    v_mask = (v < V) | WHOLE  # constantly true, and the compiler drops it
    c_mask = ((v_loaded < V) | WHOLE)[:, None, None]
    t_mask = (t < T)[:, None]
    acc = tl.zeros((BLOCK_N, GROUPS * BLOCK_M), dtype=tl.float32)
    c_ptrs = c_ptr + v_loaded[:, None, None] * stride_cv + chunk * stride_ck
    x_ptrs = x_ptr + t[:, None] * stride_xm + k[None, :] * stride_xk
    for k0 in range(0, K, 2 * BLOCK_K):
        # All of a step's loads first: what is under way at a time is what counts.
        first = ((k0 + chunk) < K) | WHOLE
        second = ((k0 + BLOCK_K + chunk) < K) | WHOLE
        codes0 = tl.load(c_ptrs, mask=c_mask & first, other=0, eviction_policy="evict_first")
        codes1 = tl.load(c_ptrs + BLOCK_K * stride_ck, mask=c_mask & second, other=0, eviction_policy="evict_first")
        x0 = tl.load(x_ptrs, mask=t_mask & (((k0 + k) < K) | WHOLE)[None, :], other=0.0)
        x_mask = t_mask & (((k0 + BLOCK_K + k) < K) | WHOLE)[None, :]
        x1 = tl.load(x_ptrs + BLOCK_K * stride_xk, mask=x_mask, other=0.0)
        c_ptrs += 2 * BLOCK_K * stride_ck
        x_ptrs += 2 * BLOCK_K * stride_xk
        scale0, scale1 = 1.0, 1.0
        if GROUP:
            half = tl.arange(0, 2 * GROUPS)
            group = (k0 + half // GROUPS * BLOCK_K) // GROUP + half % GROUPS
            s_mask = v_mask[:, None] & ((group * GROUP < K) | WHOLE)[None, :]
            scale = tl.load(s_ptr + v[:, None] * stride_sv + group[None, :] * stride_sg, mask=s_mask, other=0.0)
            scale0, scale1 = tl.split(tl.permute(tl.reshape(scale, (BLOCK_N, 2, GROUPS)), (0, 2, 1)))
        acc = add_product(acc, codes0, x0, scale0, GROUP, GROUPS, BLOCK_M, BLOCK_N, BLOCK_K, WARPS)
        acc = add_product(acc, codes1, x1, scale1, GROUP, GROUPS, BLOCK_M, BLOCK_N, BLOCK_K, WARPS)
    y = tl.sum(tl.reshape(acc, (BLOCK_N, GROUPS, BLOCK_M)), axis=1)
    if not GROUP:
        y = y * tl.load(s_ptr + v * stride_sv, mask=v_mask, other=0.0).to(tl.float32)[:, None]
    if BIAS:
        y = y + tl.load(bias_ptr + v, mask=v_mask, other=0.0).to(tl.float32)[:, None]
    y_mask = v_mask[:, None] & (t < T)[None, :]
    tl.store(y_ptr + t[None, :] * V + v[:, None], y.to(y_ptr.dtype.element_ty), mask=y_mask)
