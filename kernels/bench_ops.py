"""Time the lm_head, routing, the dense W4A16 linear and the shared expert on the GPU that is here.

    python -m moeracle.kernels.bench_ops [lm_head routing linear shared] [--json F]

Each call is captured into a CUDA graph several times over and the graph replayed; a row gives the median of replays.
Weights of one graph are different tensors, together larger than the L2 cache, so that they come from memory. Before
anything is timed its result is compared with torch's. The second column is torch (cuBLAS in bf16, or the torch
operations of dispatch_torch) in the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from moeracle.kernels.bench_timing import microseconds
from moeracle.ref.weight import Int4Weight

V, H, I, E, TOP_K = 248320, 2048, 512, 256, 8  # Qwen3.5-35B-A3B
CACHE = 100 << 20  # bytes of weights in one graph: twice an H200's L2
LINEAR_SHAPES = ((4096, 2048), (2048, 4096))
DENSE_TOKENS = (1, 4, 5, 16, 64, 1024)
Call = Callable[[], Any]
Kernel = Callable[..., Any]


class Row(NamedTuple):
    """One measurement, in microseconds; bytes are what must be read and written once."""

    what: str
    T: int
    ours: float
    torch: float | None
    bytes: int
    launches: int | None = None
    torch_launches: int | None = None

    def text(self) -> str:
        """Return the row as a line of the table."""
        other = f"{self.torch:9.1f}{self.torch / self.ours:7.2f}x" if self.torch else 17 * " "
        counts = f"{self.launches:6} :{self.torch_launches:3}" if self.launches else ""
        return f"{self.what:22}{self.T:6}{self.ours:9.1f}{other}{self.bytes / self.ours / 1e6:9.3f}{counts}"


def launches(call: Call) -> int | None:
    """Return how many GPU kernels one call launches, copies and fills included; None where nothing can count them."""
    call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    count = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    return count or None


def copies(nbytes: int, least: int = 4) -> int:
    """Return how many weights of that size one graph needs."""
    return max(least, -(-CACHE // nbytes))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Raise unless got is want but for roundings of bf16 inputs and outputs."""
    error = (got.double() - want.double()).norm() / want.double().norm()
    if not float(error) < 1e-2:
        raise AssertionError(f"result is off by {float(error):.3g} (relative, 2-norm)")


def random(*shape: int) -> torch.Tensor:
    """Return normal bf16 values."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def lm_head_rows() -> list[Row]:
    """Time int8_lm_head per channel and per group against a bf16 matrix product of the same shape."""
    from moeracle.kernels.int8_lm_head_triton import int8_lm_head

    codes = torch.randint(-128, 128, (V, H), dtype=torch.int8, device="cuda")
    dense = random(V, H)
    rows = []
    for T in (1, 2, 4, 8, 16, 64):
        x = random(T, H)
        of_torch = microseconds([partial(torch.matmul, x, dense.T)] * 3)
        for G in (-1, 32, 128):
            scale = torch.rand(V, *(() if G == -1 else (H // G,)), device="cuda") * 1e-3 + 1e-3
            wide = scale[:4096].reshape(4096, -1).repeat_interleave(H if G == -1 else G, 1)
            close(int8_lm_head(x, codes, scale)[:, :4096], x.float() @ (codes[:4096].float() * wide).T)
            ours = microseconds([partial(int8_lm_head, x, codes, scale)] * 3)
            nbytes = codes.numel() + scale.numel() * 4 + x.numel() * 2 + T * V * 2
            rows.append(Row("lm_head int8" + ("" if G == -1 else f":g{G}"), T, ours, of_torch, nbytes))
    return rows


def routing_rows() -> list[Row]:
    """Time route against torch's softmax and top-k with the torch dispatch, and count launches."""
    from moeracle.kernels import dispatch_torch
    from moeracle.kernels.grouped_gemm_triton import block_table
    from moeracle.kernels.route_triton import route

    def by_torch(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights, ids = torch.softmax(logits.float(), 1).topk(TOP_K, 1)
        weights = weights / weights.sum(1, keepdim=True)
        aligned = dispatch_torch.moe_align_block_size(ids, 16, E)
        _, offsets, inv = dispatch_torch.moe_permute(logits[:, :1], ids, E)
        return weights, *aligned, offsets, inv, block_table(offsets, ids.numel(), 16)

    rows = []
    for T in (1, 4, 16, 17, 64, 256, 1024, 4096):
        logits = torch.randn(T, E, device="cuda")
        got, want = route(logits, TOP_K), by_torch(logits)
        close(got.weights, want[0])
        pairs = zip((*got[2:5], got.expert_offsets, got.inv, got.block_table), want[1:], strict=True)
        if not all(a is not None and torch.equal(a, b) for a, b in pairs):
            raise AssertionError(f"route differs from torch at T = {T}")
        ours = microseconds([partial(route, logits, TOP_K)] * 10)
        of_torch = microseconds([partial(by_torch, logits)] * 10)
        nbytes = sum(t.numel() * t.element_size() for t in (logits, *(t for t in got if t is not None)))
        counts = launches(partial(route, logits, TOP_K)), launches(partial(by_torch, logits))
        rows.append(Row("route E256 k8 B16", T, ours, of_torch, nbytes, *counts))
    return rows


def int4(N: int, K: int, G: int = 128) -> tuple[Int4Weight, torch.Tensor]:
    """Return a random symmetric int4 weight, and its values in bf16."""
    packed = torch.randint(-(2**31), 2**31, (N, K // 8), dtype=torch.int64, device="cuda").to(torch.int32)
    scale = (torch.rand(N, K // G, device="cuda") * 0.01 + 0.01).bfloat16()
    w = Int4Weight(packed, scale, None, "exllama", G)
    return w, w.dequantize().bfloat16()


def time_linear(kernel: Kernel, tokens: tuple[int, ...]) -> list[Row]:
    """Time a W4A16 linear (x, w, bias) against a bf16 matrix product; each weight has been used before it is timed."""
    rows = []
    for N, K in LINEAR_SHAPES:
        made = [int4(N, K) for _ in range(copies(N * K // 2))]
        weights, dense = [w for w, _ in made], [values for _, values in made[: copies(N * K * 2)]]
        bias = random(N)
        for T in tokens:
            x = random(T, K)
            for w in weights:
                kernel(x, w, bias)
            close(kernel(x, weights[0], bias), torch.nn.functional.linear(x, dense[0], bias))
            ours = microseconds([partial(kernel, x, w, bias) for w in weights])
            of_torch = microseconds([partial(torch.nn.functional.linear, x, w, bias) for w in dense])
            nbytes = N * K // 2 + N * K // 128 * 2 + (T * (K + N) + N) * 2
            rows.append(Row(f"linear {N}x{K} g128", T, ours, of_torch, nbytes))
    return rows


def time_shared(kernel: Kernel, tokens: tuple[int, ...], *, counted: bool) -> list[Row]:
    """Time a shared expert (x, w13, w2, gate) against torch in bf16; `counted`: with their launches."""

    def by_torch(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        g, u = (x @ up.T).chunk(2, dim=1)
        return (torch.nn.functional.silu(g) * u) @ down.T * torch.sigmoid(x @ gate[:, None])

    made = [(int4(2 * I, H), int4(H, I)) for _ in range(copies(3 * I * H // 2))]
    pairs = [(up[0], down[0]) for up, down in made]
    dense = [(up[1], down[1]) for up, down in made[: copies(6 * I * H)]]
    gate = random(H) / 32
    rows = []
    for T in tokens:
        x = random(T, H)
        for pair in pairs:
            kernel(x, *pair, gate)
        one, other = partial(kernel, x, *pairs[0], gate), partial(by_torch, x, *dense[0], gate)
        close(one(), other())
        ours = microseconds([partial(kernel, x, *p, gate) for p in pairs])
        of_torch = microseconds([partial(by_torch, x, *p, gate) for p in dense])
        nbytes = 3 * I * H // 2 + 3 * I * H // 128 * 2 + T * (2 * H + 2 * I) * 2
        counts = (launches(one), launches(other)) if counted else ()
        rows.append(Row(f"shared H{H} I{I} g128", T, ours, of_torch, nbytes, *counts))
    return rows


def linear_rows() -> list[Row]:
    """Time int4_linear against a bf16 matrix product."""
    from moeracle.kernels.int4_linear_triton import int4_linear

    return time_linear(int4_linear, DENSE_TOKENS)


def shared_rows() -> list[Row]:
    """Time the shared expert (2 launches) against torch in bf16."""
    from moeracle.kernels.shared_expert_triton import shared_expert

    return time_shared(shared_expert, DENSE_TOKENS, counted=True)


def driver() -> str:
    """Return the GPU driver's version, or "unknown"."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


BENCHES: dict[str, Callable[[], list[Row]]] = {
    "lm_head": lm_head_rows,
    "routing": routing_rows,
    "linear": linear_rows,
    "shared": shared_rows,
}


def main(arguments: list[str]) -> int:
    """Run the benches named, or all; return the exit code."""
    path = arguments[arguments.index("--json") + 1] if "--json" in arguments[:-1] else None
    names = [a for a in arguments if not a.startswith("--") and a != path] or list(BENCHES)
    wrong = [n for n in names if n not in BENCHES]
    if wrong or not torch.cuda.is_available():
        what = f"bench: got {wrong[0]!r}, must be one of {', '.join(BENCHES)}" if wrong else "bench: torch finds no GPU"
        print(what, file=sys.stderr)
        return 2
    import triton

    where = {"gpu": torch.cuda.get_device_name(), "driver": driver()}
    where |= {"torch": torch.__version__, "triton": triton.__version__}
    print(", ".join(f"{k} {v}" for k, v in where.items()))
    print(f"{'what':22}{'T':>6}{'us':>9}{'torch us':>9}{'ratio':>8}{'TB/s':>9}{'launches':>11}")
    rows = []
    for name in names:
        for row in BENCHES[name]():
            rows.append(row)
            print(row.text(), flush=True)
    if path:
        command = "python -m moeracle.kernels.bench_ops " + " ".join(arguments)
        with open(f"{path}.part", "w") as file:
            json.dump({**where, "command": command, "rows": [row._asdict() for row in rows]}, file, indent=1)
        os.replace(f"{path}.part", path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
