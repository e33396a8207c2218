"""How fast the CPU emulation is: multiply-adds a second on one core, with every access checked.

    python -m moeracle.kernels.hip.speed [--seconds 1]

The figures are one machine's; nothing asserts them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from moeracle.kernels.hip import int4_linear, int8_lm_head, moe_w4a16, padded_gemm
from moeracle.ref.weights.weight import Int4Weight


def weight(*shape: int, G: int = 128, dtype: torch.dtype = torch.bfloat16) -> Int4Weight:
    """Return random codes and scales [..., N, K] in the exllama layout."""
    *lead, K = shape
    packed = torch.randint(-(2**31), 2**31 - 1, (*lead, K // 8), dtype=torch.int32)
    return Int4Weight(packed, torch.rand(*lead, K // G).to(dtype) * 0.02 + 0.01, None, "exllama", G)


def jobs() -> dict[str, tuple[int, Callable[[], object]]]:
    """Return {name: (multiply-adds, what to run)}."""
    x = torch.randn(5, 2048).bfloat16()
    dense = weight(2048, 2048)
    experts, down = weight(8, 1024, 2048), weight(8, 2048, 512)
    ids, router = torch.arange(8).view(1, 8).int(), torch.full((1, 8), 0.125)
    codes, scale = torch.randint(-127, 128, (4096, 2048), dtype=torch.int8), torch.rand(4096)
    block = torch.arange(16).int(), torch.zeros(1, dtype=torch.int32), torch.tensor([16], dtype=torch.int32)
    tile = weight(1, 256, 2048)
    x16 = torch.randn(16, 2048).bfloat16()
    wmma = lambda: padded_gemm.padded_gemm(x16, tile, *block, None, 1, block_size=16)
    return {
        "int4_gemv, 1 row": (2048 * 2048, lambda: int4_linear.int4_linear(x[:1], dense)),
        "int4_gemv, 5 rows": (5 * 2048 * 2048, lambda: int4_linear.int4_linear(x, dense)),
        "MoE layer, 8 experts": (
            8 * 3 * 512 * 2048,
            lambda: moe_w4a16.fused_silu_stages(x[:1], experts, down, router, ids),
        ),
        "int8 lm_head": (4096 * 2048, lambda: int8_lm_head.int8_lm_head(x[:1], codes, scale)),
        "WMMA tiles": (16 * 256 * 2048, wmma),
    }


def main() -> None:
    """Print one line a job: the best of as many runs as fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each job, after one run that builds")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, (work, run) in jobs().items():
        run()
        best, until = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
        print(f"{name:24} {work / best / 1e6:8.1f} M multiply-adds a second")


if __name__ == "__main__":
    main()
