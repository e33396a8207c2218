"""moe_align_block_size and moe_permute in Triton: one launch for few slots, two for many, and no host sync.

With more than LAUNCH_ALONE slots a first launch counts each run's keys; with fewer every program counts them itself.
"""

from __future__ import annotations

import torch

from moeracle.kernels.triton.device.place import add_up_counts, count_keys, place_aligned, place_permuted
from moeracle.kernels.triton.tiles import pow2_at_least
from moeracle.kernels.triton.triton_import import tl, triton

LAUNCH_ALONE = 4096  # slots that every program counts by itself
RUN = 256  # slots of a run at least, on a GPU
PROGRAMS = 128  # runs at most: each program reads the counts of all
SLOTS = 128  # slots ranked together
TABLE_BLOCKS = 16  # blocks whose owners are looked up together


@triton.jit
def count_kernel(ids_ptr, map_ptr, counts_ptr, R, per, MAPPED: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr):
    """One program: the counts [BINS] of one run of `per` slots."""
    pid = tl.program_id(0)
    first = pid * per
    counts = count_keys(ids_ptr, map_ptr, first, tl.minimum(first + per, R), MAPPED, BINS, SLOTS)
    tl.store(counts_ptr + pid * BINS + tl.arange(0, BINS), counts)


@triton.jit
def align_kernel(
    ids_ptr, map_ptr, counts_ptr, sorted_ptr, experts_ptr, end_ptr, R, E, per, programs, MAPPED: tl.constexpr,
    COUNTED: tl.constexpr, B: tl.constexpr, B_POW2: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One program: one run of slots, and a share of the padding and of the blocks."""
    pid = tl.program_id(0)
    first = tl.minimum(pid * per, R)
    last = tl.minimum(first + per, R)
    if COUNTED:
        before, total = add_up_counts(counts_ptr, programs, pid, BINS, 16)
    else:
        before = count_keys(ids_ptr, map_ptr, 0, first, False, BINS, SLOTS)
        total = before + count_keys(ids_ptr, map_ptr, first, R, False, BINS, SLOTS)
    place_aligned(
        before, total, first, last, pid, programs, ids_ptr, map_ptr, sorted_ptr, experts_ptr, end_ptr, R, E,
        MAPPED, B, B_POW2, BINS, SLOTS, EXPERTS, BLOCKS,
    )  # fmt: skip


@triton.jit
def permute_kernel(
    ids_ptr, map_ptr, counts_ptr, inv_ptr, order_ptr, offsets_ptr, table_ptr, R, E, per, programs, num_table,
    MAPPED: tl.constexpr, COUNTED: tl.constexpr, BM: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """One program: one run of slots, and a share of the block table. E: of the keys, so local where MAPPED."""
    pid = tl.program_id(0)
    first = tl.minimum(pid * per, R)
    last = tl.minimum(first + per, R)
    if COUNTED:
        before, total = add_up_counts(counts_ptr, programs, pid, BINS, 16)
    else:
        before = count_keys(ids_ptr, map_ptr, 0, first, MAPPED, BINS, SLOTS)
        total = before + count_keys(ids_ptr, map_ptr, first, R, MAPPED, BINS, SLOTS)
    place_permuted(
        before, total, first, last, pid, programs, ids_ptr, map_ptr, inv_ptr, order_ptr, offsets_ptr, table_ptr, R, E,
        num_table, MAPPED, BM, BINS, SLOTS, BLOCKS,
    )  # fmt: skip


@triton.jit
def gather_rows_kernel(
    x_ptr, order_ptr, out_ptr, R, K, top_k, stride_xm, stride_xk, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """One program: BLOCK_M rows, BLOCK_K columns of x[order // k]."""
    pid = tl.program_id(0)
    num_k = (K + BLOCK_K - 1) // BLOCK_K
    row = (pid // num_k).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (pid % num_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (row < R)[:, None] & (column < K)[None, :]
    token = tl.load(order_ptr + row, mask=row < R, other=0).to(tl.int64) // top_k
    value = tl.load(x_ptr + token[:, None] * stride_xm + column[None, :] * stride_xk, mask=mask)
    tl.store(out_ptr + row[:, None] * K + column[None, :], value, mask=mask)


def runs(R: int, device: torch.device, per: int | None = None) -> tuple[int, int]:
    """Return (slots a run, how many runs), at least one run; `per` overrides what suits the device."""
    least = RUN if device.type == "cuda" else 1024
    size = per or max(least, triton.cdiv(R, PROGRAMS))
    return size, max(1, triton.cdiv(R, size))


def counted(
    ids: torch.Tensor, expert_map: torch.Tensor | None, per: int, programs: int, bins: int, alone: int
) -> torch.Tensor | None:
    """Count each run's keys in a launch of their own, int32 [programs, bins]; or None where that does not pay."""
    if ids.numel() <= alone or programs == 1:
        return None
    counts = torch.empty(programs, bins, dtype=torch.int32, device=ids.device)
    mapped = expert_map is not None
    count_kernel[(programs,)](
        ids, expert_map if mapped else ids, counts, ids.numel(), per, MAPPED=mapped, BINS=bins, SLOTS=SLOTS
    )
    return counts


def moe_align_block_size(
    topk_ids: torch.Tensor,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
    *,
    run: int | None = None,
    alone: int = LAUNCH_ALONE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort the slots by expert and pad each expert to whole blocks.

    expert e's ids start at the sum over e' < e of ceil(count[e'] / B) * B

    Args:
        topk_ids: int [T, k], 0..E-1, repeats allowed, or -1 (in no block).
        block_size: B >= 1.
        num_experts: E, of all ranks.
        expert_map: int [E] to local ids, -1 for an expert that is not on this rank (its blocks stay, with expert -1).
        run: slots a program, or None for what suits the device.
        alone: slots up to which one launch does.
    Returns:
        sorted_token_ids int32 [R + E*(B-1)], filled with R; expert_ids int32 [ceil(that / B)], -1 past the end;
        num_tokens_post_padded int32 [1]. Exact; stable within an expert.
    Raises:
        ValueError: block_size below 1.
    Source: docs/formats.md section 3; the -1 past the end is github.com/vllm-project/vllm/pull/35161.
    """
    R, E, B, device = topk_ids.numel(), num_experts, block_size, topk_ids.device
    if B < 1:
        raise ValueError(f"block_size: got {B}, must be at least 1")
    ids, bins = topk_ids.reshape(-1).contiguous(), pow2_at_least(E)
    length = R + E * (B - 1)
    sorted_ids = torch.empty(length, dtype=torch.int32, device=device)
    experts = torch.empty(-(-length // B), dtype=torch.int32, device=device)
    end = torch.empty(1, dtype=torch.int32, device=device)
    per, programs = runs(R, device, run)
    counts = counted(ids, None, per, programs, bins, alone)
    if counts is None and device.type == "cuda":
        programs = max(programs, min(64, triton.cdiv(length, 1024)))  # more of them, for the padding
    align_kernel[(programs,)](
        ids,
        ids if expert_map is None else expert_map.contiguous(),
        ids if counts is None else counts,
        sorted_ids,
        experts,
        end,
        R,
        E,
        per,
        programs,
        MAPPED=expert_map is not None,
        COUNTED=counts is not None,
        B=B,
        B_POW2=pow2_at_least(B),
        BINS=bins,
        SLOTS=SLOTS,
        EXPERTS=pow2_at_least(triton.cdiv(E, programs)),
        BLOCKS=TABLE_BLOCKS,
        num_warps=4 if bins <= 256 else 8,  # a count of each slot and expert is in registers: 512 of them spill
    )
    return sorted_ids, experts, end


def moe_permute(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
    *,
    num_local_experts: int | None = None,
    run: int | None = None,
    alone: int = LAUNCH_ALONE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay the routed rows out expert by expert.

    x_permuted[inv[t*k + j]] = x[t]

    Args:
        x: [T, K], any strides.
        topk_ids: int [T, k], 0..E-1, repeats allowed, or -1 (ignored).
        num_experts: E.
        expert_map: int [E] to local ids 0..E_local-1, or -1 for an expert that is not on this rank; None keeps all.
        num_local_experts: E_local, which sizes the result; None reads it off an expert_map, waiting for the device.
        run, alone: as moe_align_block_size.
    Returns:
        x_permuted [T*k, K] (rows of ignored slots and other ranks last), expert_offsets int64 [E_local+1],
        inv int32 [T*k]. Exact; stable within an expert.
    Raises:
        ValueError: x and topk_ids disagree about T.
    Source: docs/formats.md section 3.
    """
    T, top_k = topk_ids.shape
    if x.shape[0] != T:
        raise ValueError(f"x: got {x.shape[0]} rows, must be T = {T} as in topk_ids")
    R, device = T * top_k, x.device
    local = local_experts(num_experts, expert_map, num_local_experts)
    ids, bins = topk_ids.reshape(-1).contiguous(), pow2_at_least(local)
    inv, order = (torch.empty(R, dtype=torch.int32, device=device) for _ in range(2))
    offsets = torch.empty(local + 1, dtype=torch.int64, device=device)
    per, programs = runs(R, device, run)
    counts = counted(ids, expert_map, per, programs, bins, alone)
    permute_kernel[(programs,)](
        ids,
        ids if expert_map is None else expert_map.contiguous(),
        ids if counts is None else counts,
        inv,
        order,
        offsets,
        offsets,  # no table
        R,
        local,
        per,
        programs,
        0,
        MAPPED=expert_map is not None,
        COUNTED=counts is not None,
        BM=0,
        BINS=bins,
        SLOTS=SLOTS,
        BLOCKS=TABLE_BLOCKS,
    )
    return gather_rows(x, order, top_k), offsets, inv


def gather_rows(x: torch.Tensor, row_to_slot: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return x[row_to_slot // top_k], [T*k, K].

    Args:
        x: [T, K], any strides.
        row_to_slot: int [T*k], values 0..T*k-1.
        top_k: slots a token.
    """
    R, K, device = row_to_slot.numel(), x.shape[1], x.device
    permuted = torch.empty(R, K, dtype=x.dtype, device=device)
    if permuted.numel():
        rows, columns = (1, min(2048, pow2_at_least(K))) if device.type == "cuda" else (128, min(256, pow2_at_least(K)))
        grid = (triton.cdiv(R, rows) * triton.cdiv(K, columns),)
        gather_rows_kernel[grid](x, row_to_slot, permuted, R, K, top_k, *x.stride(), BLOCK_M=rows, BLOCK_K=columns)
    return permuted


def local_experts(num_experts: int, expert_map: torch.Tensor | None, given: int | None) -> int:
    """Return E_local; without `given`, an expert_map is read, which is the one place that waits for the device."""
    if expert_map is None:
        return num_experts
    return int(expert_map.max()) + 1 if given is None else given
