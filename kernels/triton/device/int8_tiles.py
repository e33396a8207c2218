"""Device code of the int8 lm_head for one token, and for many.

One token is bound by reading the codes: each thread takes 16 codes of a row with one 16-byte load, and the arithmetic
is the plain one, an fp32 dot of 16, times the scale, then the sum. Many tokens are an ordinary tile of the matrix unit,
one group a dot, so that the scale stays outside of it and in fp32.
"""

from __future__ import annotations

from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def int8_row_kernel(
    x_ptr, c_ptr, s_ptr, bias_ptr, y_ptr, T, V, K, stride_xm, stride_xk, stride_cv, stride_ck, stride_sv, stride_sg,
    BIAS: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_V vocabulary rows times one token. GROUP 0: one scale a row."""
    pid = tl.program_id(0)
    t = (pid % T).to(tl.int64)  # fastest, so that the tokens of one block of codes find it in the cache
    v = (pid // T).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    v_mask = v < V
    acc = tl.zeros((BLOCK_V, BLOCK_K // CHUNK), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        codes = tl.load(
            c_ptr + v[:, None] * stride_cv + k[None, :] * stride_ck,
            mask=v_mask[:, None] & (k < K)[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        # One-dimensional, so that x takes the layout of the codes and the codes stay where they are.
        x = tl.load(x_ptr + t * stride_xm + k * stride_xk, mask=k < K, other=0.0)
        products = codes.to(tl.float32) * x.to(tl.float32)[None, :]
        part = tl.sum(tl.reshape(products, (BLOCK_V, BLOCK_K // CHUNK, CHUNK)), axis=2)
        if GROUP:
            start = k0 + tl.arange(0, BLOCK_K // CHUNK) * CHUNK
            scale = tl.load(
                s_ptr + v[:, None] * stride_sv + (start // GROUP)[None, :] * stride_sg,
                mask=v_mask[:, None] & (start < K)[None, :],
                other=0.0,
            )
            part = part * scale.to(tl.float32)
        acc += part
    y = tl.sum(acc, axis=1)
    if not GROUP:
        y = y * tl.load(s_ptr + v * stride_sv, mask=v_mask, other=0.0).to(tl.float32)
    if BIAS:
        y = y + tl.load(bias_ptr + v, mask=v_mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + t * V + v, y.to(y_ptr.dtype.element_ty), mask=v_mask)


@triton.jit
def int8_rows_kernel(
    x_ptr, c_ptr, s_ptr, bias_ptr, y_ptr, T, V, K, stride_xm, stride_xk, stride_cv, stride_ck, stride_sv, stride_sg,
    BIAS: tl.constexpr, GROUP: tl.constexpr, DOTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K:
    tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N vocabulary rows times BLOCK_M tokens, transposed. BLOCK_K divides GROUP, or GROUP is 0."""
    pid = tl.program_id(0)
    num_t = (T + BLOCK_M - 1) // BLOCK_M
    v = (pid // num_t).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = (pid % num_t).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    v_mask = v < V
    t_mask = t < T
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for step in range(0, K, BLOCK_K * DOTS):
        for d in tl.static_range(DOTS):
            k0 = step + d * BLOCK_K
            k = k0 + tl.arange(0, BLOCK_K)
            codes_mask = v_mask[:, None] & (k < K)[None, :]
            codes = tl.load(c_ptr + v[:, None] * stride_cv + k[None, :] * stride_ck, mask=codes_mask, other=0)
            x_mask = t_mask[None, :] & (k < K)[:, None]
            x = tl.load(x_ptr + t[None, :] * stride_xm + k[:, None] * stride_xk, mask=x_mask, other=0.0)
            # -128..127 is exact in bf16 and in fp16.
            if GROUP:
                scale = tl.load(s_ptr + v * stride_sv + (k0 // GROUP) * stride_sg, mask=v_mask, other=0.0)
                acc += tl.dot(codes.to(x.dtype), x) * scale.to(tl.float32)[:, None]
            else:
                acc = tl.dot(codes.to(x.dtype), x, acc)
    if not GROUP:
        acc = acc * tl.load(s_ptr + v * stride_sv, mask=v_mask, other=0.0).to(tl.float32)[:, None]
    if BIAS:
        acc = acc + tl.load(bias_ptr + v, mask=v_mask, other=0.0).to(tl.float32)[:, None]
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + t[None, :] * V + v[:, None], y, mask=v_mask[:, None] & t_mask[None, :])
