"""What the tolerances of tests that were only read let pass: python integrations/tolerances.py [NAME …]

Tensors are drawn as each test draws them (sizes, scales, dtype, groups; seed 7), the output is a legal one, simulated
under the page's contract, and every known fault is planted on it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from moeracle import ref, tolerance_report
from moeracle.properties.simulate import simulation_of
from moeracle.ref.contracts.contract import contract
from moeracle.ref.weights.weight import Int4Weight

BLOCK = 16


@dataclass(frozen=True)
class Drawn:
    """One configuration of a test.

    Args:
        sizes: T, E, k, H, I, G.
        dtype: of activations and scales.
        symmetric: whether there are no zero points.
        x, w: what normal values are multiplied by.
        rules: the contract.
        atol, rtol: the test's own.
        share: of the elements that need not be close.
        op: moe_w4a16, or padded_gemm of the first weights.
    """

    sizes: tuple[int, int, int, int, int, int]
    dtype: torch.dtype
    symmetric: bool
    x: float
    w: float
    rules: str
    atol: float
    rtol: float = 0.0
    op: str = "moe_w4a16"
    share: float = 0.0


BF16, FP16 = torch.bfloat16, torch.float16
TESTS = {
    "vllm_test_fused_moe_wn16": (
        Drawn((32, 8, 2, 128, 128, 64), BF16, False, 0.1, 0.1, "vllm@0.33:gptq_awq", 2e-2),
        Drawn((1, 8, 2, 128, 128, 64), BF16, True, 0.1, 0.1, "vllm@0.33:gptq_awq", 2e-2),
    ),
    "vllm_test_fused_marlin_moe": (
        Drawn((33, 5, 2, 256, 128, 128), FP16, True, 0.1, 0.1, "vllm@0.33:marlin", 4e-2),
        Drawn((33, 5, 3, 256, 128, 128), BF16, True, 0.1, 0.1, "vllm@0.33:marlin", 4e-2),
    ),
    "sglang_test_fused_marlin_moe": (Drawn((123, 4, 2, 256, 128, 64), FP16, True, 0.1, 0.05, "marlin", 5e-2),),
    "aiter_test_fused_moe_int4_w4a16": (
        Drawn((8, 16, 2, 256, 48, 32), BF16, False, 1.0, 0.25, "gptq_awq", 2e-1, 2e-1, "padded_gemm"),
        Drawn((8, 16, 2, 256, 48, 32), BF16, True, 1.0, 0.25, "gptq_awq", 2e-1, 2e-1, "padded_gemm"),
    ),
    "flashinfer_mxint4_moe": (
        Drawn(
            (8, 16, 8, 256, 128, 32), BF16, True, 2.0, 1.0, "grouped,router_weight=unpermute", 0.1, 0.85, share=0.075
        ),
    ),
}


def arguments(drawn: Drawn) -> tuple[Any, ...]:
    """Return the op's arguments, in its order."""
    T, E, k, H, I, G = drawn.sizes
    normal = torch.Generator().manual_seed(7)

    def weight(N: int, K: int) -> Int4Weight:
        values = torch.randn(E, N, K, generator=normal).to(drawn.dtype).float() * drawn.w
        codes, scale, zero = ref.quantize_int4(values, G, symmetric=drawn.symmetric, scale_dtype=drawn.dtype)
        return Int4Weight(ref.pack_int4(codes, "nibble_pairs"), scale, zero, "nibble_pairs", G)

    x = (torch.randn(T, H, generator=normal) * drawn.x).to(drawn.dtype)
    w13, w2 = weight(2 * I, H), weight(H, I) if drawn.op == "moe_w4a16" else None
    weights, ids = torch.softmax(torch.randn(T, E, generator=normal), 1).topk(k)
    if drawn.op == "padded_gemm":
        return x, w13, *ref.moe_align_block_size(ids.int(), BLOCK, E), None, k
    return x, w13, w2, weights, ids.int()


def main(names: list[str]) -> None:
    """Print a report of each configuration."""
    for name in names or TESTS:
        for drawn in TESTS[name]:
            args, rules = arguments(drawn), contract(drawn.rules)
            out = getattr(simulation_of(drawn.op, rules), drawn.op)(*args)
            out = out["out"] if isinstance(out, dict) else out
            sizes = {"B": BLOCK} if drawn.op == "padded_gemm" else {}
            tolerance = {"atol": drawn.atol, "rtol": drawn.rtol, "share": drawn.share}
            report = tolerance_report(drawn.op, out, *args, contract=rules, **tolerance, **sizes)
            kind = "no zero points" if drawn.symmetric else "zero points"
            print(
                f"{name}: T, E, k, H, I, G = {drawn.sizes}, {drawn.dtype}, {kind}; largest {float(out.abs().max()):.3g}"
            )
            print(f"{report}\nmissed: {' '.join(report.missed)}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
