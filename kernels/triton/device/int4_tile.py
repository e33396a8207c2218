"""The inner loop that every W4A16 GEMM here shares: one BM x BN tile of x @ dequantize(w).T.

Because grouped, padded and dense kernels call the same function, equal tiles give equal bits, whatever gathers rows.
Per element: u = nibble of the exllama word; w = (u - z) * s in fp32, rounded once to D (to nearest even); products and
sums in fp32 by tl.dot. This is the contract `cast`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from moeracle.kernels.common.weight_args import WeightArgs
from moeracle.kernels.triton.triton_import import tl, triton


class Form(NamedTuple):
    """How a weight lies in memory, as one argument of a kernel; WeightArgs.pointers() say where.

    Args:
        packed_e, packed_n, packed_k, scale_e, scale_n, scale_g, zero_e, zero_n, zero_g: elements from one expert, row,
            and word or group to the next; None for experts in a kernel of one matrix.
        GROUP, ZERO: the group size and how zero points are read, both compile-time. They stay so while the tuple is
            passed on as it came; one that a kernel builds and keeps in a variable has no compile-time members.
    """

    packed_e: Any
    packed_n: Any
    packed_k: Any
    scale_e: Any
    scale_n: Any
    scale_g: Any
    zero_e: Any
    zero_n: Any
    zero_g: Any
    GROUP: Any
    ZERO: Any


def form_of(w: WeightArgs, *, experts: bool = True) -> Form:
    """Return how a weight lies in memory, for a kernel that looks at its experts or for one of a single matrix."""
    strides: list[Any] = list(w.strides)
    if not experts:
        strides[0::3] = None, None, None
    return Form._make([*strides, tl.constexpr(w.G), tl.constexpr(w.zero_kind)])


@triton.jit
def of_expert(w, form, expert):
    """Return one expert's pointers; expert is int64, so that no offset wraps."""
    w_ptr, s_ptr, z_ptr = w
    return w_ptr + expert * form.packed_e, s_ptr + expert * form.scale_e, z_ptr + expert * form.zero_e


@triton.jit
def int4_weight_tile(w, form, offs_n, k0, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Dequantize w[offs_n, k0 : k0+BLOCK_K] to the scale's dtype, [BLOCK_N, BLOCK_K]; 0 beyond N and K.

    w is one matrix's pointers; offs_n is int64, so that no offset wraps. One scale a tile if the tile lies in one
    group, else one a word if groups are made of whole words, else one a code: a tile may be wider than a group, and a
    group need be no power of two.
    """
    w_ptr, s_ptr, z_ptr = w
    word = k0 // 8 + tl.arange(0, BLOCK_K // 8)
    n_mask = offs_n < N
    words = tl.load(
        w_ptr + offs_n[:, None] * form.packed_n + word[None, :] * form.packed_k,
        mask=n_mask[:, None] & (word * 8 < K)[None, :],
        other=0,
    )
    r = tl.arange(0, 8)
    # Code r of a word sits at bit 0, 16, 4, 20, 8, 24, 12, 28; the sign bit that >> drags along is masked away.
    shift = 4 * (r // 2) + 16 * (r % 2)
    u = (words[:, :, None] >> shift[None, None, :]) & 0xF

    n3 = offs_n[:, None, None]
    n3_mask = n_mask[:, None, None]
    if form.GROUP % BLOCK_K == 0:
        group = k0 // form.GROUP + tl.zeros((1, 1, 1), dtype=tl.int32)
        mask = n3_mask
    elif form.GROUP % 8 == 0:
        group = ((word * 8) // form.GROUP)[None, :, None]
        mask = n3_mask & (word * 8 < K)[None, :, None]
    else:
        k3 = word[None, :, None] * 8 + r[None, None, :]
        group = k3 // form.GROUP
        mask = n3_mask & (k3 < K)
    # A masked scale is 0, so that columns beyond K are 0 and never NaN.
    s = tl.load(s_ptr + n3 * form.scale_n + group * form.scale_g, mask=mask, other=0.0)
    if form.ZERO == 0:
        q = u - 8
    elif form.ZERO == 1:
        q = u - tl.load(z_ptr + n3 * form.zero_n + group * form.zero_g, mask=mask, other=0).to(tl.int32)
    else:
        packed = tl.load(z_ptr + (n3 // 8) * form.zero_n + group * form.zero_g, mask=mask, other=0)
        q = u - ((packed >> (4 * (n3 % 8)).to(tl.int32)) & 0xF)
    values = (q.to(tl.float32) * s.to(tl.float32)).to(s_ptr.dtype.element_ty)
    return tl.reshape(values, (BLOCK_N, BLOCK_K))


@triton.jit
def int4_tile(
    x_ptr, x_offs, x_mask, stride_xk, w, form, offs_n, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return sum_k x[rows, k] * D(w[offs_n, k]) in fp32, [BLOCK_M, BLOCK_N]; rows outside x_mask are 0.

    x_offs is int64 [BLOCK_M], each row's offset in x; w and what follows are as int4_weight_tile's.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + x_offs[:, None] + k[None, :] * stride_xk, mask=x_mask[:, None] & (k < K)[None, :], other=0.0
        )
        tile = int4_weight_tile(w, form, offs_n, k0, N, K, BLOCK_N, BLOCK_K)
        acc = tl.dot(x, tl.trans(tile), acc)
    return acc
