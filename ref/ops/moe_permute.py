"""Dispatch by rows: gather each token's row once per chosen expert, grouped by expert, and sum them back.

Slots and rows: slot t*k+j is token t's j-th choice; rows are slots sorted by expert. `moe_permute` makes the rows,
`moe_unpermute` undoes it, `block_table` cuts them into tiles. `moe_align_block_size` (moe_align_block_size.py) is the
other dispatch,
which pads slot *ids* instead of moving rows.

An id of -1 in topk_ids is *ignored* (a padding token, a dropped expert); under an `expert_map` an expert on another
rank is too. Ignored slots get the last rows, from expert_offsets[-1] on: nobody computes them, nobody may read them.

Index maps are named by what they map: `row_to_token`, `row_to_expert`; they check themselves.
Source: https://github.com/vllm-project/vllm, csrc/moe/permute_unpermute_kernels; naming after deepseek-ai/TileKernels.
"""

from __future__ import annotations

import torch

from ..errors import require
from .moe_align_block_size import check_expert_map, check_topk_ids, local_expert_ids, moe_align_block_size

__all__ = [
    "block_table",
    "check_expert_map",
    "check_permutation",
    "check_topk_ids",
    "local_expert_ids",
    "moe_align_block_size",
    "moe_permute",
    "moe_unpermute",
    "row_to_expert",
    "row_to_token",
]


def moe_permute(
    x: torch.Tensor, topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gather the tokens' rows in the order of their experts.

        order = stable argsort of the local expert of each slot, ignored slots last
        x_permuted[r] = x[order[r] // k];  inv[order[r]] = r

    Args:
        x: [T, K], any dtype, any strides; T may be 0.
        topk_ids: [T, k] integer, -1..num_experts-1, repeats allowed; -1 is ignored.
        num_experts: E, the global number of experts.
        expert_map: [E] integer: local id of each expert, or -1 if it is on another rank; None keeps every id.
    Returns:
        x_permuted [T*k, K], x's dtype, exact copies; expert_offsets int64 [E_local+1], local expert e's rows are
        expert_offsets[e]..expert_offsets[e+1]-1; inv int32 [T*k], slot -> row. Slots of one expert stay in slot order
        (so do the ignored ones, though their order and their rows' content mean nothing).
    Raises:
        ValueError: x not [T, K]; topk_ids or expert_map as `check_topk_ids`, `check_expert_map`.
    Source: https://github.com/vllm-project/vllm, csrc/moe/moe_permute_unpermute_op.cu
    """
    require(x.ndim == 2, f"x: got shape {tuple(x.shape)}, must be [T, K]")
    local, E = local_expert_ids(topk_ids, num_experts, expert_map)
    T, k = topk_ids.shape
    require(x.shape[0] == T, f"x: got {x.shape[0]} rows, must have {T}, one for each row of topk_ids")
    key = torch.where(local < 0, E, local).reshape(-1)
    order = torch.argsort(key, stable=True)
    inv = torch.empty_like(order)
    inv[order] = torch.arange(T * k, device=x.device)
    expert_offsets = torch.zeros(E + 1, dtype=torch.int64, device=x.device)
    expert_offsets[1:] = torch.bincount(key, minlength=E + 1)[:E].cumsum(0)
    return x[order // k], expert_offsets, inv.to(torch.int32)


def moe_unpermute(
    y: torch.Tensor,
    topk_weights: torch.Tensor,
    inv: torch.Tensor,
    *,
    expert_offsets: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Sum each token's expert rows, times their router weights, in slot order.

        out[t] = ((0 + w[t,0]*y[inv[t*k]]) + w[t,1]*y[inv[t*k+1]]) + …        product and sum each rounded to `dtype`

    Args:
        y: [T*k, K], bf16, fp16, fp32 or fp64, in row order, as `moe_permute` laid it out.
        topk_weights: [T, k] floating point.
        inv: [T*k] integer, slot -> row, a permutation.
        expert_offsets: [E_local+1] integer from `moe_permute`. Rows from its last entry on belong to ignored slots and
            add nothing, even where they hold NaN. None: every row counts.
        dtype: torch.float32 or torch.float64.
    Returns:
        [T, K] `dtype`, not yet cast to y's dtype; error at most 2k * 2^-24 * sum_j |w y| in fp32 (a kernel that fuses
        multiply and add lies inside it). A token whose slots are all ignored gets zeros.
    Raises:
        ValueError: shapes that do not fit, an inv that is no permutation, or an expert_offsets beyond the rows.
    Source: https://github.com/vllm-project/vllm, csrc/moe/permute_unpermute_kernels (the finalize kernel)
    """
    require(topk_weights.ndim == 2, f"topk_weights: got shape {tuple(topk_weights.shape)}, must be [T, k]")
    T, k = topk_weights.shape
    require(y.ndim == 2 and y.shape[0] == T * k, f"y: got shape {tuple(y.shape)}, must be [T*k = {T * k}, K]")
    require(dtype in (torch.float32, torch.float64), f"dtype: got {dtype}, must be torch.float32 or torch.float64")
    check_permutation(inv, T * k)
    num_valid = T * k if expert_offsets is None else int(expert_offsets[-1])
    require(0 <= num_valid <= T * k, f"expert_offsets: got a last entry of {num_valid}, must be 0..T*k = {T * k}")
    rows = inv.reshape(T, k).to(torch.int64)
    weights = topk_weights.to(dtype)
    out = torch.zeros(T, y.shape[1], dtype=dtype, device=y.device)
    for j in range(k):
        term = weights[:, j, None] * y[rows[:, j]].to(dtype)
        # where, not a multiplication by 0: an ignored row may hold anything, NaN included
        out = out + torch.where((rows[:, j] < num_valid)[:, None], term, 0.0)
    return out


def block_table(expert_offsets: torch.Tensor, block_m: int) -> torch.Tensor:
    """List the row tiles of a grouped GEMM: no tile spans two experts, an empty expert has none.

        expert e's tile j:  (e, offset[e] + j*BM, min(BM, count[e] - j*BM)),   j = 0..ceil(count[e] / BM) - 1

    Args:
        expert_offsets: [E+1] integer, from 0 on, not decreasing.
        block_m: BM, at least 1.
    Returns:
        int32 [B, 3]: expert_id, m_start, m_count; ascending in m_start. No rows: [0, 3], nothing to launch.
    Raises:
        ValueError: expert_offsets of another shape or decreasing; block_m < 1.
    Source: the block table of the grouped path, docs/formats.md section 3.
    """
    _check_offsets(expert_offsets)
    require(block_m >= 1, f"block_m: got {block_m}, must be at least 1")
    offsets = expert_offsets.to(torch.int64)
    counts = offsets.diff()
    tiles = (counts + block_m - 1) // block_m
    expert = torch.repeat_interleave(tiles)
    j = torch.arange(expert.numel(), device=offsets.device) - (tiles.cumsum(0) - tiles)[expert]
    m_count = (counts[expert] - j * block_m).clamp(max=block_m)
    return torch.stack([expert, offsets[expert] + j * block_m, m_count], dim=1).to(torch.int32)


def row_to_token(inv: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return the token each row was gathered from: row_to_token[inv[t*k+j]] = t.

    Args:
        inv: [T*k] integer, slot -> row, a permutation.
        top_k: k, divides inv's length.
    Returns:
        int32 [T*k]; exact. `x_permuted` is x[row_to_token(inv, k)].
    Raises:
        ValueError: inv is no permutation, or its length is no multiple of top_k.
    Source: naming after https://github.com/deepseek-ai/TileKernels.
    """
    require(top_k >= 1 and inv.numel() % top_k == 0, f"top_k: got {top_k}, must divide inv's length {inv.numel()}")
    check_permutation(inv, inv.numel())
    tokens = torch.empty_like(inv, dtype=torch.int32)
    tokens[inv.to(torch.int64)] = torch.arange(inv.numel(), dtype=torch.int32, device=inv.device) // top_k
    return tokens


def row_to_expert(expert_offsets: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return the local expert of each row, -1 for the rows of ignored slots (what vLLM calls m_indices).

    Args:
        expert_offsets: [E_local+1] integer, from 0 on, not decreasing, last entry at most num_rows.
        num_rows: R = T*k.
    Returns:
        int32 [R]; exact.
    Raises:
        ValueError: expert_offsets of another shape, decreasing, or beyond num_rows.
    Source: naming after https://github.com/deepseek-ai/TileKernels.
    """
    _check_offsets(expert_offsets)
    num_valid = int(expert_offsets[-1])
    require(num_valid <= num_rows, f"num_rows: got {num_rows}, must be at least expert_offsets[-1] = {num_valid}")
    experts = torch.full((num_rows,), -1, dtype=torch.int32, device=expert_offsets.device)
    experts[:num_valid] = torch.repeat_interleave(expert_offsets.diff()).to(torch.int32)
    return experts


def check_permutation(inv: torch.Tensor, length: int) -> None:
    """Raise ValueError unless inv is an integer permutation of 0..length-1."""
    require(
        inv.shape == (length,) and not inv.is_floating_point(),
        f"inv: got {inv.dtype} of shape {tuple(inv.shape)}, must be integer ({length},)",
    )
    right = torch.equal(inv.to(torch.int64).sort().values, torch.arange(length, device=inv.device))
    require(right, f"inv: got a repeated or missing row, must be a permutation of 0..{length - 1}")


def _check_offsets(expert_offsets: torch.Tensor) -> None:
    require(
        expert_offsets.ndim == 1 and expert_offsets.numel() >= 1 and not expert_offsets.is_floating_point(),
        f"expert_offsets: got {expert_offsets.dtype} of shape {tuple(expert_offsets.shape)}, must be integer [E+1]",
    )
    rising = int(expert_offsets[0]) == 0 and bool((expert_offsets.diff() >= 0).all())
    require(rising, f"expert_offsets: got {expert_offsets.tolist()[:8]}, must start at 0 and not decrease")
