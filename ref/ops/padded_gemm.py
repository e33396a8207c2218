"""Virtually gathered rows times int4 matrices, in blocks of one expert; each is dequantized only while it is used."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..errors import require
from ..weights.weight import Int4Weight
from .int4_linear import check_columns


def padded_rows(
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    num_rows: int,
    block_size: int,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (expert, its output rows) from moe_align_block_size's three tensors, merged over an expert's blocks.

    Blocks from num_tokens_post_padded on and blocks of expert -1 are skipped; ids >= num_rows are padding.

    Args:
        sorted_token_ids: int32 [S].
        expert_ids: int32, one for each block of block_size ids.
        num_tokens_post_padded: int32 [1].
        num_rows: T * top_k.
        block_size: ids a block.
    """
    S = sorted_token_ids.shape[0]
    of_slot = expert_ids.repeat_interleave(block_size)[:S].clone()
    sorted_token_ids = sorted_token_ids[: len(of_slot)]  # what lies behind the last block is no row
    of_slot[int(num_tokens_post_padded) :] = -1
    of_slot[sorted_token_ids >= num_rows] = -1
    for e in torch.unique(of_slot).tolist():
        if e >= 0:
            yield e, sorted_token_ids[of_slot == e].long()


def infer_block_size(num_slots: int, num_blocks: int, num_rows: int, num_experts: int, end: int) -> int:
    """Return the block size that moe_align_block_size was given, from what it returned.

    It makes num_slots = num_rows + num_experts*(B-1) ids and num_blocks = ceil(num_slots / B) blocks, and `end` (ids
    after padding) is a multiple of B. Under an expert_map its num_experts is not the number of local experts; then the
    one power of two that fits is taken.

    Raises:
        ValueError: nothing, or more than one size, fits; pass block_size.
    """
    if num_slots == 0 or num_blocks == 0:
        return 1
    high = num_slots if num_blocks == 1 else (num_slots - 1) // (num_blocks - 1)
    fits = [b for b in range(-(-num_slots // num_blocks), high + 1) if end % b == 0]
    if num_slots - num_rows == num_experts * ((num_slots - num_rows) // num_experts):
        exact = (num_slots - num_rows) // num_experts + 1
        fits = [exact] if exact in fits else fits
    fits = [b for b in fits if b & (b - 1) == 0] if len(fits) > 1 else fits
    require(
        len(fits) == 1,
        f"block_size: got None, must be given, "
        f"since {num_slots} sorted ids in {num_blocks} blocks fit {fits or 'no size'}",
    )
    return fits[0]


def padded_gemm(
    x: torch.Tensor,
    w: Int4Weight,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    topk_weights: torch.Tensor | None,
    top_k: int,
    *,
    block_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Multiply virtually gathered rows by their block's expert; nothing is permuted in memory.

    For each id < T*top_k in a block of expert e >= 0:
    y[id] = (W[e] x[id // top_k] (+ bias[e])) (* topk_weights.flatten()[id])

    Args:
        x: [T, K].
        w: Int4Weight of shape [E, N, K].
        sorted_token_ids, expert_ids, num_tokens_post_padded: from moe_align_block_size.
        topk_weights: fp32 [T, top_k] to multiply in, or None.
        top_k: how many consecutive ids share a row of x; 1 for GEMM2, whose x has T*k rows already.
        block_size: ids a block; inferred from the three tensors if None.
        dtype: what to compute and return in, torch.float32 or torch.float64.
    Returns:
        [T*top_k, N] in `dtype`; rows that no local expert owns are zero. Error as int4_linear's.
    Raises:
        ValueError: x's columns are not w's K, or the block size cannot be determined.
    Source: docs/formats.md section 3, the kernel's row rule.
    """
    R, N = x.shape[0] * top_k, w.N
    check_columns(x, w)
    y = torch.zeros(R, N, dtype=dtype, device=x.device)
    S, blocks, end = sorted_token_ids.shape[0], expert_ids.shape[0], int(num_tokens_post_padded)
    block_size = block_size or infer_block_size(S, blocks, R, w.E or 1, end)
    of_experts = list(padded_rows(sorted_token_ids, expert_ids, num_tokens_post_padded, R, block_size))
    matrix = w.matrices([e for e, _ in of_experts], dtype)
    for e, rows in of_experts:
        y[rows] = x[rows // top_k].to(dtype) @ matrix(e).T
        if w.bias is not None:
            y[rows] += w.bias[e].to(dtype)
    if topk_weights is not None:
        y *= topk_weights.reshape(-1, 1).to(dtype)
    return y
