"""sglang 0.5.23: its Triton wna16 GEMM, whose text is read out of its file; MOERACLE_SGLANG for an unpacked wheel."""

from __future__ import annotations

from typing import Any

import torch

from .packages import client_kernel, file_of, needs, triton_functions
from .vllm import GPTQ_AWQ, gptq_awq_supports, launch_gptq_awq

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS_FILE = "kernels/ops/moe/fused_moe_triton_kernels.py"
NOT_HERE = ("block_k_diviable", "SPLIT_K")


class Launched:
    """sglang's kernel as vLLM's is launched: two constants less, and one more."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __getitem__(self, grid: Any) -> Any:
        """Return the function that launches on this grid."""

        def launch(*args: Any, **named: Any) -> None:
            constants = {name: value for name, value in named.items() if name not in NOT_HERE}
            self.function[grid](*args, **constants, even_Ks=named["block_k_diviable"])

        return launch


@client_kernel(
    "sglang.fused_moe_kernel_gptq_awq", zeros=("sym", "asym"), device=DEVICE,
    supports=needs("sglang", KERNELS_FILE, gptq_awq_supports),
)  # fmt: skip
def gptq_awq(
    x: Any, w: Any, sorted_token_ids: Any, expert_ids: Any, num_tokens_post_padded: Any, topk_weights: Any, top_k: int
) -> Any:
    """Launch fused_moe_kernel_gptq_awq as invoke_fused_moe_kernel does."""
    path = file_of("sglang", KERNELS_FILE)
    assert path is not None
    function = Launched(triton_functions(path, GPTQ_AWQ).fused_moe_kernel_gptq_awq)
    blocks = (sorted_token_ids, expert_ids, num_tokens_post_padded)
    return launch_gptq_awq(function, x, w, *blocks, topk_weights, top_k)
