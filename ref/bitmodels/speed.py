"""How fast the bit models are: `python -m moeracle.ref.bitmodels.speed [--device cuda] [--threads 2]`.

Prints million products a second of one schedule of each kind, and how many bits a device's answer has in common with
the CPU's: all, if a schedule means one value.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import torch

from .accumulate import accumulate
from .schedule import Schedule

# (schedule, dtype of both operands, group of a scale or 0, with a zero point)
SPEEDS: tuple[tuple[str, torch.dtype, int, bool], ...] = (
    ("wgmma.k16.sm90/t64", torch.bfloat16, 0, False),
    ("mma.m16n8k16.sm90", torch.float16, 0, False),
    ("mma.m16n8k8.sm80", torch.bfloat16, 0, False),
    ("wgmma.k16.sm90/s4/join=pairwise", torch.bfloat16, 0, False),
    ("wgmma.k16.sm90/t32/bits1.2.16.4.8/fused/p8", torch.bfloat16, 32, False),
    ("fma", torch.bfloat16, 0, False),
    ("fma", torch.float32, 0, False),
    ("mul_add/t64/pairwise/combine=halves", torch.float32, 0, False),
    ("fma/t256/tree2-sequential.32-halves.4-halves/combine=sequential", torch.bfloat16, 0, False),
    ("fma/t512/tree32-sequential.4-halves.4-halves/held1", torch.float32, 0, False),
    ("fma/lanes32x8/fused", torch.bfloat16, 32, False),
    ("fma/t32/fused/zerofused", torch.float32, 32, True),
    ("fma.rz", torch.bfloat16, 0, False),
)


def speeds(
    device: str = "cpu", sizes: tuple[int, int, int] = (64, 256, 2048), times: int = 3
) -> Iterator[tuple[str, float, float]]:
    """Yield (what, million products a second, share of bits that are the CPU's) for each of SPEEDS.

    Args:
        device: where.  sizes: M, N, K, of a K that 512 divides.  times: runs, of which the fastest counts.
    """
    M, N, K = sizes
    for text, dtype, group, zero in SPEEDS:
        g = torch.Generator().manual_seed(1)
        a, w = (torch.randn(n, K, generator=g).to(dtype) for n in (M, N))
        scale = torch.rand(N, K // group, generator=g) if group else None
        offset = torch.full((N, K // group), 136.0) if zero else None
        given = [None if x is None else x.to(device) for x in (a, w, scale, offset)]
        schedule, least, out = Schedule.parse(text), float("inf"), torch.empty(0)
        for _ in range(times):
            start = time.perf_counter()
            out = accumulate(given[0], given[1], schedule, scale=given[2], zero=given[3]).cpu()  # type: ignore[arg-type]
            least = min(least, time.perf_counter() - start)
        rows = min(M, 16)
        here = out if device == "cpu" else accumulate(a[:rows], w, schedule, scale=scale, zero=offset)
        same = here.view(torch.int32) == out[: len(here)].view(torch.int32)
        said = f"{text} {str(dtype).removeprefix('torch.')}" + (f" G{group}" if group else "")
        yield said, M * N * K / least / 1e6, float(same.double().mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m moeracle.ref.bitmodels.speed", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="torch's, on the CPU (1)")
    options = parser.parse_args(argv)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device: got {options.device}, but torch finds no CUDA device here")
    torch.set_num_threads(max(options.threads, 1))
    print("M products/s  bits as on a CPU  schedule")
    for said, rate, same in speeds(options.device):
        print(f"{rate:12,.0f}  {same:15.2%}  {said}", flush=True)


if __name__ == "__main__":
    main()
