"""An adapter of a call like vLLM's `fused_experts`: its arguments in, a verdict out, beside the call in your test.

out = fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, …)
assert_fused_experts_legal(out, hidden_states, w1, w2, topk_weights, topk_ids, w1_scale=…, w2_scale=…)
"""

import torch

from moeracle import assert_legal


def assert_fused_experts_legal(
    out: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w1_zp: torch.Tensor | None = None,
    w2_zp: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    client: str = "vllm.fused_moe_wna16",
) -> None:
    """Raise AssertionError unless a legal kernel could have returned `out`.

    Args:
        out: [T, H], what the call returned.
        hidden_states: [T, H], bf16 or fp16.
        w1, w2: uint8 [E, 2I, H/2] and [E, H, I/2], two codes a byte, even k in the low half.
        topk_weights, topk_ids: [T, k]; ids of all ranks where there is an expert_map.
        w1_scale, w2_scale: [E, 2I, H/G] and [E, H, I/G].
        w1_zp, w2_zp: uint8 [E, I, H/G] and [E, H/2, I/G], or None for the zero point 8.
        expert_map: [E of all ranks] to this rank's experts, -1 for elsewhere, or None.
        client: whose kernel it was: its contract and its layout.
    """
    weights = (w1, w1_scale, w1_zp), (w2, w2_scale, w2_zp)
    assert_legal(
        "moe_w4a16", out, hidden_states, *weights, topk_weights, topk_ids, client=client, expert_map=expert_map
    )
