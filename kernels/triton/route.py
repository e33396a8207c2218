"""From router logits to everything that either MoE path launches from: one launch for few tokens, two for many.

    one     each program chooses all tokens' experts, so that none has to wait for another; the first places the slots,
            all share the padding and the table
    two     the first launch chooses, and counts each run's experts on the way; the second places

No host sync, no atomics, no workspace to clear: the same bits every time, and a CUDA graph can hold it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moeracle.kernels.triton.device.place import add_up_counts, count_keys, place_aligned, place_permuted
from moeracle.kernels.triton.moe_permute import PROGRAMS, TABLE_BLOCKS, local_experts
from moeracle.kernels.triton.tiles import pow2_at_least
from moeracle.kernels.triton.topk_softmax import choose, store_choice
from moeracle.kernels.triton.triton_import import tl, triton

ONE_LAUNCH = 8  # tokens up to which one launch does it all, by default; at most MOST
MOST = 16
# Tokens that a program chooses for at a time (a row of scores stays inside a warp) and slots that it ranks at a time.
# Few tokens wait for one program's chain of instructions, so it does little; many keep every program busy.
LITTLE, MUCH = (4, 32), (16, 128)
MANY = 512  # tokens from which there is much to do


@triton.jit
def choose_kernel(
    logits_ptr, weights_ptr, ids_ptr, counts_ptr, T, E, top_k, per, stride_t, stride_e, RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_TOPK: tl.constexpr,
):  # fmt: skip
    """One program: `per` tokens' experts, and how often each was chosen."""
    pid = tl.program_id(0)
    counts = tl.zeros((BLOCK_E,), dtype=tl.int32)
    last = tl.minimum((pid + 1) * per, T)
    for start in range(pid * per, last, BLOCK_T):
        t = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        weights, ids, taken = choose(
            logits_ptr, t, last, E, top_k, stride_t, stride_e, RENORMALIZE, BLOCK_T, BLOCK_E, BLOCK_TOPK
        )
        store_choice(weights_ptr, ids_ptr, weights, ids, t, last, top_k, BLOCK_TOPK)
        counts += tl.sum((taken & (t < last)[:, None]).to(tl.int32), axis=0)
    tl.store(counts_ptr + pid * BLOCK_E + tl.arange(0, BLOCK_E), counts)


@triton.jit
def place_both(
    ids_ptr, map_ptr, counts_ptr, sorted_ptr, experts_ptr, end_ptr, inv_ptr, order_ptr, offsets_ptr, table_ptr,
    R, E, local, per, programs, num_table, MAPPED: tl.constexpr, COUNTED: tl.constexpr, B: tl.constexpr,
    B_POW2: tl.constexpr, BM: tl.constexpr, BINS: tl.constexpr, LOCAL_BINS: tl.constexpr, SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One program: a run of `per` slots for either path; B = 0 leaves out the aligned one."""
    pid = tl.program_id(0)
    first = tl.minimum(pid * per, R)
    last = tl.minimum(first + per, R)
    if COUNTED:
        before, total = add_up_counts(counts_ptr, programs, pid, BINS, 16 if SLOTS > 32 else 8)
    else:
        before = count_keys(ids_ptr, map_ptr, 0, first, False, BINS, SLOTS)
        total = before + count_keys(ids_ptr, map_ptr, first, R, False, BINS, SLOTS)
    if MAPPED:  # rows go by local experts
        local_before = count_keys(ids_ptr, map_ptr, 0, first, True, LOCAL_BINS, SLOTS)
        local_total = local_before + count_keys(ids_ptr, map_ptr, first, R, True, LOCAL_BINS, SLOTS)
        place_permuted(
            local_before, local_total, first, last, pid, programs, ids_ptr, map_ptr, inv_ptr, order_ptr, offsets_ptr,
            table_ptr, R, local, num_table, True, BM, LOCAL_BINS, SLOTS, BLOCKS,
        )  # fmt: skip
    else:
        place_permuted(
            before, total, first, last, pid, programs, ids_ptr, map_ptr, inv_ptr, order_ptr, offsets_ptr,
            table_ptr, R, local, num_table, False, BM, BINS, SLOTS, BLOCKS,
        )  # fmt: skip
    if B > 0:
        place_aligned(
            before, total, first, last, pid, programs, ids_ptr, map_ptr, sorted_ptr, experts_ptr, end_ptr, R, E,
            MAPPED, B, B_POW2, BINS, SLOTS, EXPERTS, BLOCKS,
        )  # fmt: skip


@triton.jit
def place_kernel(
    ids_ptr, map_ptr, counts_ptr, sorted_ptr, experts_ptr, end_ptr, inv_ptr, order_ptr, offsets_ptr, table_ptr,
    R, E, local, per, programs, num_table, MAPPED: tl.constexpr, B: tl.constexpr, B_POW2: tl.constexpr,
    BM: tl.constexpr, BINS: tl.constexpr, LOCAL_BINS: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """The second of two launches."""
    place_both(
        ids_ptr, map_ptr, counts_ptr, sorted_ptr, experts_ptr, end_ptr, inv_ptr, order_ptr, offsets_ptr, table_ptr,
        R, E, local, per, programs, num_table, MAPPED, True, B, B_POW2, BM, BINS, LOCAL_BINS, SLOTS, EXPERTS, BLOCKS,
    )  # fmt: skip


@triton.jit
def route_kernel(
    logits_ptr, weights_ptr, ids_ptr, map_ptr, sorted_ptr, experts_ptr, end_ptr, inv_ptr, order_ptr, offsets_ptr,
    table_ptr, T, E, top_k, local, programs, num_table, stride_t, stride_e, RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_TOPK: tl.constexpr, MAPPED: tl.constexpr, B: tl.constexpr, B_POW2: tl.constexpr,
    BM: tl.constexpr, BINS: tl.constexpr, LOCAL_BINS: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """The only launch for T <= BLOCK_T tokens."""
    t = tl.arange(0, BLOCK_T).to(tl.int64)
    weights, ids, _ = choose(logits_ptr, t, T, E, top_k, stride_t, stride_e, RENORMALIZE, BLOCK_T, BINS, BLOCK_TOPK)
    # Every program writes all ids, the same ones, and reads back only what it wrote itself.
    store_choice(weights_ptr, ids_ptr, weights, ids, t, T, top_k, BLOCK_TOPK)
    tl.debug_barrier()
    R = T * top_k
    place_both(
        ids_ptr, map_ptr, ids_ptr, sorted_ptr, experts_ptr, end_ptr, inv_ptr, order_ptr, offsets_ptr, table_ptr,
        R, E, local, R, programs, num_table, MAPPED, False, B, B_POW2, BM, BINS, LOCAL_BINS, SLOTS, EXPERTS, BLOCKS,
    )  # fmt: skip


class Routing(NamedTuple):
    """What `route` returns; R = T*k, slot t*k+j.

    Args:
        weights, ids: fp32 and int32 [T, k], as topk_softmax.
        sorted_token_ids, expert_ids, num_tokens_post_padded: int32, as moe_align_block_size; None without a block_size.
        row_to_slot: int32 [R]: row r of the permuted activations is token row_to_slot[r] // k.
        expert_offsets: int64 [E_local+1].  inv: int32 [R], slot to row.  Both as moe_permute.
        block_table: int64 [R//BM + min(E_local+1, R), 3] of (expert, m_start, m_count), rows of no expert here as
            expert -1 and unused entries with m_count 0; None without a block_m.
    """

    weights: torch.Tensor
    ids: torch.Tensor
    sorted_token_ids: torch.Tensor | None
    expert_ids: torch.Tensor | None
    num_tokens_post_padded: torch.Tensor | None
    row_to_slot: torch.Tensor
    expert_offsets: torch.Tensor
    inv: torch.Tensor
    block_table: torch.Tensor | None


def route(
    logits: torch.Tensor,
    top_k: int,
    renormalize: bool = True,
    *,
    block_size: int | None = 16,
    block_m: int | None = 16,
    expert_map: torch.Tensor | None = None,
    num_local_experts: int | None = None,
    tokens: int | None = None,
    one_launch: int = ONE_LAUNCH,
) -> Routing:
    """Choose each token's experts and lay out both MoE paths, in one launch (T <= 8) or two.

    topk_softmax, then moe_align_block_size and moe_permute's order, offsets and block table of its ids

    Args:
        logits: [T, E], bf16, fp16 or fp32, any strides; T may be 0.
        top_k: 1..E.
        renormalize: divide each token's weights by their sum.
        block_size: B of the aligned path, or None to leave it out.
        block_m: BM of the block table, or None to leave it out.
        expert_map: int [E] to local ids, or -1 for an expert that is not on this rank; None keeps all.
        num_local_experts: E_local, needed with an expert_map for not waiting for the device.
        tokens: tokens a program of the first of two launches takes; None: what suits the device.
        one_launch: tokens up to which one launch is used, at most 16.
    Returns:
        Routing; every integer exact, weights as topk_softmax's.
    Raises:
        ValueError: logits is not [T, E]; top_k, block_size or block_m out of range.
    Source: docs/formats.md section 3.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, must be [T, E]")
    T, E = logits.shape
    if not 1 <= top_k <= E:
        raise ValueError(f"top_k: got {top_k}, must be in 1..{E}")
    for name, size in (("block_size", block_size), ("block_m", block_m)):
        if size is not None and size < 1:
            raise ValueError(f"{name}: got {size}, must be at least 1, or None")
    R, device, local = T * top_k, logits.device, local_experts(E, expert_map, num_local_experts)
    B, BM = block_size or 0, block_m or 0
    length = R + E * (B - 1) if B else 0
    table = R // BM + min(local + 1, R) if BM else 0
    empty = lambda *shape, dtype=torch.int32: torch.empty(*shape, dtype=dtype, device=device)
    weights, ids = empty(T, top_k, dtype=torch.float32), empty(T, top_k)
    sorted_ids, experts, end = empty(length), empty(-(-length // B) if B else 0), empty(1)
    inv, order, offsets = empty(R), empty(R), empty(local + 1, dtype=torch.int64)
    blocks = empty(table, 3, dtype=torch.int64)
    written = (sorted_ids, experts, end, inv, order, offsets, blocks)
    mapping = ids if expert_map is None else expert_map.contiguous()
    bins = pow2_at_least(E)
    on_gpu = device.type == "cuda"
    of_choice = {"RENORMALIZE": bool(renormalize), "BLOCK_TOPK": pow2_at_least(top_k)}
    of_place = {
        "MAPPED": expert_map is not None, "B": B, "B_POW2": pow2_at_least(max(B, 1)), "BM": BM, "BINS": bins,
        "LOCAL_BINS": pow2_at_least(local), "BLOCKS": TABLE_BLOCKS, "num_warps": 4,
    }  # fmt: skip
    block_t, of_place["SLOTS"] = LITTLE if on_gpu and T < MANY else MUCH
    if min(one_launch, MOST) >= T:
        programs = max(1, min(64, triton.cdiv(length, 512))) if on_gpu else 1
        route_kernel[(programs,)](
            logits, weights, ids, mapping, *written, T, E, top_k, local, programs, table, *logits.stride(),
            BLOCK_T=max(block_t, pow2_at_least(T)), EXPERTS=pow2_at_least(triton.cdiv(E, programs)), **of_choice,
            **of_place,
        )  # fmt: skip
    else:
        per = tokens or max(block_t if on_gpu else 64, triton.cdiv(T, PROGRAMS))
        programs = triton.cdiv(T, per)
        counts = empty(programs, bins)
        choose_kernel[(programs,)](
            logits, weights, ids, counts, T, E, top_k, per, *logits.stride(),
            BLOCK_T=block_t if on_gpu else 64, BLOCK_E=bins, num_warps=4, **of_choice,
        )  # fmt: skip
        place_kernel[(programs,)](
            ids, mapping, counts, *written, R, E, local, per * top_k, programs, table,
            EXPERTS=pow2_at_least(triton.cdiv(E, programs)), **of_place,
        )  # fmt: skip
    routing = Routing(weights, ids, sorted_ids, experts, end, order, offsets, inv, blocks if BM else None)
    return routing if B else routing._replace(sorted_token_ids=None, expert_ids=None, num_tokens_post_padded=None)
