"""aiter (main of 2026-08-22): ops/triton/moe/moe_op.py: fused_moe, vLLM's GEMM with its older argument order.

It needs an AMD GPU and aiter installed, and was read, not run: a kernel is declared, so that `moeracle check
moeracle.clients.aiter` says why it skips. PyPI's amd-aiter is older.
"""

from __future__ import annotations

from typing import Any

import torch

from moeracle.kernels.common.block_size import infer_block_size

from .packages import client_kernel, needs

MOE_OP = "ops/triton/moe/moe_op.py"


def on_amd(case: Any) -> bool | str:
    """Say whether torch sees an AMD GPU."""
    return bool(torch.version.hip and torch.cuda.is_available()) or "needs an AMD GPU"


@client_kernel("aiter.fused_moe", zeros=("sym", "asym"), device="cpu", supports=needs("aiter", MOE_OP, on_amd))
def fused_moe(
    x: Any, w: Any, sorted_token_ids: Any, expert_ids: Any, num_tokens_post_padded: Any, topk_weights: Any, top_k: int
) -> Any:
    """Call fused_moe with vLLM's old argument order."""
    from aiter.ops.triton.moe.moe_op import fused_moe as theirs  # type: ignore[import-not-found]

    args = len(sorted_token_ids), len(expert_ids), x.shape[0] * top_k, w.E, num_tokens_post_padded
    blocks = {"BLOCK_SIZE_M": infer_block_size(*args), "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}
    out = torch.zeros(x.shape[0], top_k, w.N, dtype=x.dtype, device=x.device)
    weights = torch.ones(x.shape[0], top_k, device=x.device) if topk_weights is None else topk_weights
    import triton.language as tl

    theirs(
        x, w.packed, out, None, w.scale, w.zero, weights, None, sorted_token_ids, expert_ids, num_tokens_post_padded,
        topk_weights is not None, top_k, tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16,
        False, False, True, block_shape=[0, w.G], config=blocks,
    )  # fmt: skip
    return out.reshape(-1, w.N)
