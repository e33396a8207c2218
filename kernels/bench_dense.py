"""Time the dense Hopper kernels, int4_linear.hopper and shared_expert.hopper, against torch on the GPU that is here.

    python -m moeracle.kernels.bench_dense [--json F]

Measured as bench_ops measures: CUDA graphs over weights that together are larger than the L2 cache, medians of replays,
each result compared with torch's first. Weights are prepared before, as they are when a model is loaded.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial

import torch

from moeracle.kernels.bench_ops import H, I, Row, close, copies, driver, int4, microseconds, random
from moeracle.kernels.hopper_cases import on_hopper

TOKENS = (1, 4, 16, 32, 64, 128, 256, 1024)
SHAPES = ((4096, 2048), (2048, 4096))


def linear_rows() -> list[Row]:
    """Time int4_linear_hopper against a bf16 matrix product, both with a bias."""
    from moeracle.kernels.hopper_linear import int4_linear_hopper

    rows = []
    for N, K in SHAPES:
        made = [int4(N, K) for _ in range(copies(N * K // 2))]
        weights, dense, bias = [w for w, _ in made], [v for _, v in made[: copies(N * K * 2)]], random(N)
        for T in TOKENS:
            x = random(T, K)
            for w in weights:
                y = int4_linear_hopper(x, w, bias)
            close(int4_linear_hopper(x, weights[0], bias), torch.nn.functional.linear(x, dense[0], bias))
            ours = microseconds([partial(int4_linear_hopper, x, w, bias) for w in weights])
            of_torch = microseconds([partial(torch.nn.functional.linear, x, w, bias) for w in dense])
            nbytes = N * K // 2 + N * K // 128 * 2 + (x.numel() + y.numel() + N) * 2
            rows.append(Row(f"linear {N}x{K} g128", T, ours, of_torch, nbytes))
    return rows


def shared_rows() -> list[Row]:
    """Time shared_expert_hopper, with its gate, against torch in bf16."""
    from moeracle.kernels.hopper_linear import shared_expert_hopper

    def by_torch(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        g, u = (x @ up.T).chunk(2, dim=1)
        return (torch.nn.functional.silu(g) * u) @ down.T * torch.sigmoid(x @ gate[:, None])

    made = [(int4(2 * I, H), int4(H, I)) for _ in range(copies(3 * I * H // 2))]
    pairs = [(up[0], down[0]) for up, down in made]
    dense, gate = [(up[1], down[1]) for up, down in made[: copies(6 * I * H)]], random(H) / 32
    rows = []
    for T in TOKENS:
        x = random(T, H)
        for pair in pairs:
            got = shared_expert_hopper(x, *pair, gate)
        got = shared_expert_hopper(x, *pairs[0], gate)
        assert isinstance(got, torch.Tensor)
        close(got, by_torch(x, *dense[0], gate))
        ours = microseconds([partial(shared_expert_hopper, x, *p, gate) for p in pairs])
        of_torch = microseconds([partial(by_torch, x, *p, gate) for p in dense])
        nbytes = 3 * I * H // 2 + 3 * I * H // 128 * 2 + T * (2 * H + 2 * I) * 2
        rows.append(Row(f"shared H{H} I{I} g128", T, ours, of_torch, nbytes))
    return rows


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
    rows = linear_rows() + shared_rows()
    for row in rows:
        print(row.text())
    if path:
        with open(f"{path}.part", "w") as file:
            json.dump({**where, "rows": [row._asdict() for row in rows]}, file, indent=1)
        os.replace(f"{path}.part", path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
