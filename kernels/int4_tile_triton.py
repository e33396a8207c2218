"""The inner loop that every W4A16 GEMM here shares: one BM x BN tile of x @ dequantize(w).T.

Because grouped, padded and dense kernels call the same function, equal tiles give equal bits, whatever gathers rows.
Per element: u = nibble of the exllama word; w = (u - z) * s in fp32, rounded once to D (to nearest even); products and
sums in fp32 by tl.dot. This is the contract `cast`.
"""

from __future__ import annotations

from moeracle.kernels.triton_import import tl, triton


@triton.jit
def int4_weight_tile(
    w_ptr,
    s_ptr,
    z_ptr,
    offs_n,
    k0,
    N,
    K,
    stride_wn,
    stride_wk,
    stride_sn,
    stride_sg,
    stride_zn,
    stride_zg,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Dequantize w[offs_n, k0 : k0+BLOCK_K] to the scale's dtype, [BLOCK_N, BLOCK_K]; 0 beyond N and K.

    offs_n is int64, so that no offset wraps. One scale a tile if the tile lies in one group, else one a word if groups
    are made of whole words, else one a code: a tile may be wider than a group, and a group need be no power of two.
    """
    word = k0 // 8 + tl.arange(0, BLOCK_K // 8)
    n_mask = offs_n < N
    words = tl.load(
        w_ptr + offs_n[:, None] * stride_wn + word[None, :] * stride_wk,
        mask=n_mask[:, None] & (word * 8 < K)[None, :],
        other=0,
    )
    r = tl.arange(0, 8)
    # Code r of a word sits at bit 0, 16, 4, 20, 8, 24, 12, 28; the sign bit that >> drags along is masked away.
    shift = 4 * (r // 2) + 16 * (r % 2)
    u = (words[:, :, None] >> shift[None, None, :]) & 0xF

    n3 = offs_n[:, None, None]
    n3_mask = n_mask[:, None, None]
    if GROUP % BLOCK_K == 0:
        group = k0 // GROUP + tl.zeros((1, 1, 1), dtype=tl.int32)
        mask = n3_mask
    elif GROUP % 8 == 0:
        group = ((word * 8) // GROUP)[None, :, None]
        mask = n3_mask & (word * 8 < K)[None, :, None]
    else:
        k3 = word[None, :, None] * 8 + r[None, None, :]
        group = k3 // GROUP
        mask = n3_mask & (k3 < K)
    # A masked scale is 0, so that columns beyond K are 0 and never NaN.
    s = tl.load(s_ptr + n3 * stride_sn + group * stride_sg, mask=mask, other=0.0)
    if ZERO == 0:
        q = u - 8
    elif ZERO == 1:
        q = u - tl.load(z_ptr + n3 * stride_zn + group * stride_zg, mask=mask, other=0).to(tl.int32)
    else:
        packed = tl.load(z_ptr + (n3 // 8) * stride_zn + group * stride_zg, mask=mask, other=0)
        q = u - ((packed >> (4 * (n3 % 8)).to(tl.int32)) & 0xF)
    w = (q.to(tl.float32) * s.to(tl.float32)).to(s_ptr.dtype.element_ty)
    return tl.reshape(w, (BLOCK_N, BLOCK_K))


@triton.jit
def int4_tile(
    x_ptr,
    x_offs,
    x_mask,
    stride_xk,
    w_ptr,
    s_ptr,
    z_ptr,
    offs_n,
    N,
    K,
    stride_wn,
    stride_wk,
    stride_sn,
    stride_sg,
    stride_zn,
    stride_zg,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return sum_k x[rows, k] * D(w[offs_n, k]) in fp32, [BLOCK_M, BLOCK_N]; rows outside x_mask are 0.

    x_offs is int64 [BLOCK_M], each row's offset in x; w_ptr, s_ptr and z_ptr point at one expert.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + x_offs[:, None] + k[None, :] * stride_xk, mask=x_mask[:, None] & (k < K)[None, :], other=0.0
        )
        w = int4_weight_tile(
            w_ptr,
            s_ptr,
            z_ptr,
            offs_n,
            k0,
            N,
            K,
            stride_wn,
            stride_wk,
            stride_sn,
            stride_sg,
            stride_zn,
            stride_zg,
            GROUP,
            ZERO,
            BLOCK_N,
            BLOCK_K,
        )
        acc = tl.dot(x, tl.trans(w), acc)
    return acc
