"""Tell the block size that moe_align_block_size was called with from what it returned."""

from __future__ import annotations

import torch


def infer_block_size(
    num_ids: int, num_blocks: int, num_rows: int, num_experts: int, num_tokens_post_padded: torch.Tensor
) -> int:
    """Return the one B that fits; the lengths decide nearly always, and only a doubt reads the device.

    num_ids = num_rows + E*(B-1) and num_blocks = ceil(num_ids / B), where E is num_experts unless an expert map makes
    it larger. What remains is narrowed by B dividing num_tokens_post_padded, then to the one whose E is num_experts,
    then to powers of two.

    Args:
        num_ids: length of sorted_token_ids, 1 or more.
        num_blocks: length of expert_ids, 1 or more.
        num_rows: R = T * top_k.
        num_experts: experts of the weight.
        num_tokens_post_padded: int32 [1].
    Returns:
        B >= 1.
    Raises:
        ValueError: nothing fits, or more than one B does; pass block_size.
    """
    extra = num_ids - num_rows
    low = max(-(-num_ids // num_blocks), 1)
    high = num_ids if num_blocks == 1 else (num_ids - 1) // (num_blocks - 1)
    fits = [b for b in range(low, high + 1) if (extra == 0 if b == 1 else extra > 0 and extra % (b - 1) == 0)]
    fits = [b for b in fits if extra >= num_experts * (b - 1)]
    if len(fits) > 1:
        end = int(num_tokens_post_padded)
        fits = [b for b in fits if end % b == 0]
    exact = [b for b in fits if extra == num_experts * (b - 1)]
    if len(fits) > 1:
        fits = exact or [b for b in fits if b & (b - 1) == 0]
    if len(fits) != 1:
        found = f"{fits} all fit" if fits else "no size fits"
        raise ValueError(
            f"block_size: got None, must be given: for {num_ids} sorted ids in {num_blocks} blocks {found}"
        )
    return fits[0]
