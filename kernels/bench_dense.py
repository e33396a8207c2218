"""Time the dense Hopper kernels, int4_linear.hopper and shared_expert.hopper, against torch on the GPU that is here.

    python -m moeracle.kernels.bench_dense [--json F]

Measured as bench_ops measures: CUDA graphs over weights that together are larger than the L2 cache, medians of replays,
each result compared with torch's first. Weights are prepared before, as they are when a model is loaded.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from moeracle.kernels.bench_ops import Row, driver, time_linear, time_shared
from moeracle.kernels.hopper_cases import on_hopper

TOKENS = (1, 4, 16, 32, 64, 128, 256, 1024)


def measured() -> list[Row]:
    """Time int4_linear_hopper, with a bias, and shared_expert_hopper, with its gate."""
    from moeracle.kernels.hopper_linear import int4_linear_hopper, shared_expert_hopper

    return time_linear(int4_linear_hopper, TOKENS) + time_shared(shared_expert_hopper, TOKENS, counted=False)


def main(arguments: list[str]) -> int:
    """Run both benches; return the exit code."""
    path = arguments[1] if arguments[:1] == ["--json"] and len(arguments) == 2 else None
    if (arguments and path is None) or not on_hopper():
        wrong = f"got {' '.join(arguments)!r}, must be --json FILE" if on_hopper() else "needs compute capability 9.0"
        print(f"bench: {wrong}", file=sys.stderr)
        return 2
    import triton

    where = {"gpu": torch.cuda.get_device_name(), "driver": driver(), "torch": torch.__version__}
    where |= {"triton": triton.__version__, "command": "python -m moeracle.kernels.bench_dense " + " ".join(arguments)}
    print(f"{'what':22}{'T':>6}{'us':>9}{'torch us':>9}{'ratio':>8}{'TB/s':>9}")
    rows = measured()
    for row in rows:
        print(row.text())
    if path:
        with open(f"{path}.part", "w") as file:
            json.dump({**where, "rows": [row._asdict() for row in rows]}, file, indent=1)
        os.replace(f"{path}.part", path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
