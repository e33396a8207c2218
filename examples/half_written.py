"""A real bug, replanted: half of the output is never written (FAULTS F01, https://github.com/ROCm/vllm/pull/980).

To save launches for small batches, the host caps the grid: with every row in a block of its own, rows * BLOCK_M slots
are enough. That held while the alignment of sorted_token_ids was BLOCK_M. A new tuning aligned to 128 for GEMM1's tile
while GEMM2 kept a tile of 64, and from then on the cap cut the second half of the slots off. The tests went red by
0.027; atol was raised from 2e-2 to 3e-2 "because of reduction order". The true error, once fixed, was 1.5e-5.

The launch below is that one, block by block, in PyTorch. Judge it:  moeracle check examples/half_written.py
"""

import torch

import moeracle
from moeracle.ref import moe_align_block_size

BLOCK_M = 64
ALIGNMENT = 128  # was BLOCK_M when the cap below was written


def dot(rows, weight):
    return (rows.float() @ weight.to(rows.dtype).float().T).to(rows.dtype)


def launch(x, w, topk_ids, top_k):
    """One GEMM over padded blocks: grid (blocks of BLOCK_M slots), each with its expert."""
    R = x.shape[0] * top_k
    sorted_ids, expert_ids, end = moe_align_block_size(topk_ids, ALIGNMENT, w.E)
    slots = min(len(sorted_ids), R * BLOCK_M)  # the bug: rows * ALIGNMENT was meant
    y = torch.empty(R, w.N, dtype=x.dtype)
    weights = w.dequantize()
    for m in range(0, min(slots, int(end)), BLOCK_M):
        ids = sorted_ids[m : m + BLOCK_M]
        ids = ids[ids < R].long()
        y[ids] = dot(x[ids // top_k], weights[expert_ids[m // ALIGNMENT]])
    return y


@moeracle.kernel(
    "moe_w4a16",
    layout="exllama",
    contract="grouped",
    device="cpu",
    supports=lambda case: case.routing != "ignored" or "every slot must have an expert",
)
def half_written(x, w13, w2, topk_weights, topk_ids):
    T, k = topk_ids.shape
    h = launch(x, w13, topk_ids, k)
    gate, up = h.float().chunk(2, dim=1)
    a = (torch.nn.functional.silu(gate).to(x.dtype).float() * up).to(x.dtype)
    y = launch(a, w2, topk_ids.reshape(-1, 1), 1)
    out = (y.float() * topk_weights.reshape(-1, 1)).reshape(T, k, w2.N).sum(1)
    return {"h": h, "a": a, "y": y, "out": out.to(x.dtype)}
