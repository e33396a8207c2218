"""executorch 1.5.1: the MoE kernels of backends/cuda/triton/kernels/fused_moe.py, its host code included.

From an installed executorch or an unpacked wheel (MOERACLE_EXECUTORCH=FOLDER). The file is loaded by its path, which
needs torch and triton only. Without a GPU its kernels run interpreted with fixed blocks: autotuning needs a driver.
"""

from __future__ import annotations

from typing import Any

import torch

from .packages import absent, client_kernel, file_of, module_of_file, needs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED_MOE = "backends/cuda/triton/kernels/fused_moe.py"
BLOCKS = {"BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 32}


def supports(case: Any) -> bool | str:
    """Say whether the kernels take a case: an expert for every slot, groups of whole tiles."""
    if case.routing == "ignored":
        return "it reads an expert for every slot, so ids of -1 cannot be given"
    if case.T == 0:
        return "it cannot launch an empty grid"
    return all(size % BLOCKS["BLOCK_SIZE_K"] == 0 for size in (case.H, case.I)) or "H and I must be multiples of 32"


class Fixed:
    """A launch of an autotuned kernel with BLOCKS in place of what the tuner would choose, as `kernel[grid](…)`."""

    def __init__(self, tuned: Any) -> None:
        self.tuned = tuned

    def __getitem__(self, grid: Any) -> Any:
        """Return the function that launches on this grid, a function of the blocks."""

        def launch(*args: Any, **named: Any) -> None:
            blocks = {**BLOCKS, **named}
            self.tuned.fn[grid(blocks)](*args, **blocks)

        return launch


def host_module() -> Any:
    """Return executorch's module, whose ops without a GPU are plain functions that launch interpreted kernels.

    Raises:
        ValueError: executorch is not here.
    """
    path = file_of("executorch", FUSED_MOE)
    if path is None:
        raise ValueError(absent("executorch", FUSED_MOE))
    module = module_of_file(path)
    if DEVICE != "cuda":
        module.wrap_triton = Fixed  # type: ignore[attr-defined]
        for name in ("fused_moe", "fused_moe_batched_gemm"):
            op = getattr(module, name)
            setattr(module, name, getattr(op, "_init_fn", op))
    return module


def _called(name: str, x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
    codes = [w.packed.view(torch.int8) for w in (w13, w2)]
    k = topk_ids.shape[1]
    ids = topk_ids.long().contiguous()
    return getattr(host_module(), name)(
        x, codes[0], w13.scale, codes[1], w2.scale, topk_weights.contiguous(), ids, k, w13.E, w13.G
    )


@client_kernel(
    "executorch.fused_moe", dtypes=("bf16",), device=DEVICE, supports=needs("executorch", FUSED_MOE, supports),
)  # fmt: skip
def fused_moe(x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
    """Call triton::fused_moe, the decode path: fp32 weights and fp32 silu straight into GEMM2."""
    return _called("fused_moe", x, w13, w2, topk_weights, topk_ids)


@client_kernel(
    "executorch.fused_moe_batched_gemm", dtypes=("bf16",), device=DEVICE,
    supports=needs("executorch", FUSED_MOE, supports),
)  # fmt: skip
def fused_moe_batched_gemm(x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
    """Call triton::fused_moe_batched_gemm, the prefill path: sorted tokens, weights rounded to D."""
    return _called("fused_moe_batched_gemm", x, w13, w2, topk_weights, topk_ids)
