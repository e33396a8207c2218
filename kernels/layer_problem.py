"""One MoE layer to be timed on the GPU that is here: weights, rotating routings with their alignments, and a floor.

    floor = max(bytes of the active experts / 4.4 TB/s, useful FLOPs / 709 TFLOP/s)

Alignment and routing are made beforehand and in no figure. Every call takes another routing, so that weights come from
memory. Random softmax routing; the bandwidth and the rate are what a read and a bf16 matmul reached on one H200.
"""

from __future__ import annotations

import torch

from moeracle.kernels.bench_cases import Shape, Work, mean_work, rotations
from moeracle.kernels.dispatch_torch import moe_align_block_size
from moeracle.kernels.hopper_launch import Blocks
from moeracle.kernels.prepared_weight import PreparedWeight, prepare_weight
from moeracle.ref.weight import Int4Weight

GBS, TFLOPS = 4400.0, 709.0
CACHE = 60 << 20
CALLS = 12  # at least, in one graph: what starting a graph takes, 5 to 10 us, is shared by its calls


def random_weight(E: int, N: int, K: int, G: int, dtype: torch.dtype, seed: int) -> Int4Weight:
    """Return an exllama weight of random codes and scales in 0.01..0.03, made on the GPU."""
    g = torch.Generator(device="cuda").manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (E, N, K // 8), generator=g, device="cuda", dtype=torch.int64)
    scale = (torch.rand(E, N, K // G, generator=g, device="cuda") * 0.02 + 0.01).to(dtype)
    return Int4Weight(words.to(torch.int32), scale, None, "exllama", G)


class Problem:
    """A layer at one token count.

    Args:
        w13, w2: exllama weights. up, down: the same, prepared.
        x: [T, H]. routes: (weights, ids) of each call. work: what one call must do, on average.
    """

    def __init__(self, shape: Shape, T: int, weights: LayerWeights) -> None:
        self.shape, self.T, self.weights = shape, T, weights
        g = torch.Generator(device="cuda").manual_seed(T)
        self.x = torch.randn(T, shape.H, generator=g, device="cuda").to(weights.dtype)
        one = self._route(g)
        calls = max(CALLS, rotations(self._work(one[1]).weight_bytes, CACHE, most=48))
        self.routes = [one, *(self._route(g) for _ in range(calls - 1))]
        self.work = mean_work([self._work(ids) for _, ids in self.routes])
        self._blocks: dict[int, list[Blocks]] = {}

    @property
    def rows(self) -> int:
        """R = T * k."""
        return self.T * self.shape.k

    @property
    def floor_us(self) -> float:
        """The time below which no call can be."""
        return self.work.floor_us(GBS, TFLOPS)

    def blocks(self, B: int) -> list[Blocks]:
        """Return each routing's alignment to blocks of B."""
        if B not in self._blocks:
            self._blocks[B] = [moe_align_block_size(ids, B, self.shape.E) for _, ids in self.routes]
        return self._blocks[B]

    def _route(self, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.randn(self.T, self.shape.E, generator=g, device="cuda")
        weights, ids = torch.softmax(logits, -1).topk(self.shape.k, -1)
        return (weights / weights.sum(-1, keepdim=True)).contiguous(), ids.to(torch.int32)

    def _work(self, ids: torch.Tensor) -> Work:
        E, H, I, G = self.shape.E, self.shape.H, self.shape.I, self.shape.G
        counts = torch.bincount(ids.flatten().long(), minlength=E)
        active, each = int((counts > 0).sum()), 3 * H * I
        nbytes = active * (each // 2 + each // G * 2)
        return Work(active, self.rows, nbytes, 0, 2 * self.rows * each, tuple(c for c in counts.tolist() if c))


class LayerWeights:
    """Both weights of a layer, as loaded and prepared."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
        E, H, I, G = shape.E, shape.H, shape.I, shape.G
        self.dtype = dtype
        self.w13, self.w2 = random_weight(E, 2 * I, H, G, dtype, 1), random_weight(E, H, I, G, dtype, 2)
        self.up: PreparedWeight = prepare_weight(self.w13, gated=True, fold=True)
        self.down: PreparedWeight = prepare_weight(self.w2, fold=True)
