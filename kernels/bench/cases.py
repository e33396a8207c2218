"""What the benchmark measures: layer sizes, routing archetypes, token counts, and the work in one launch.

    floor = max(bytes of the active experts / bandwidth, useful FLOPs / matmul rate)

An expert is active if it has rows. Useful FLOPs are 2 * R * N * K over routed rows; padded FLOPs count every row of
every block that is launched, sum_e ceil(count_e / BM) * BM. After the benchmark of github.com/ROCm/vllm/pull/1020.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

ARCHETYPES = ("balanced", "uniform", "zipf1", "zipf2", "hot16")
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
GEMMS = ("gemm1", "gemm2")
WITH_PARTS = ("moe_w4a16_hopper",)  # functions of the registry whose parts layer_problem can time


@dataclass(frozen=True)
class Shape:
    """One layer: E experts of [2I, H] and [H, I], k of them a token, groups of G (-1: one a row); V rows of a head."""

    E: int
    H: int
    I: int
    k: int
    G: int
    V: int = 0


SHAPES: dict[str, Shape] = {
    "qwen3.5-35b": Shape(256, 2048, 512, 8, 128, 248320),
    "qwen3-omni-30b": Shape(128, 2048, 768, 8, 32, 151936),
}


# More layers by name, for whoever asks; sizes as their configurations say, groups as their int4 checkpoints have them.
MODELS: dict[str, Shape] = {
    "mixtral-8x7b": Shape(8, 4096, 14336, 2, 128, 32000),
    "deepseek-v3": Shape(256, 7168, 2048, 8, 128, 129280),
    "qwen3-235b": Shape(128, 4096, 1536, 8, 128, 151936),
    "glm-4.5-air": Shape(128, 4096, 1408, 8, 128, 151552),
    "gpt-oss-120b": Shape(128, 2880, 2880, 4, 32, 201088),
    "llama-4-scout": Shape(16, 5120, 8192, 1, 128, 202048),
    "qwen3-next-80b": Shape(512, 2048, 512, 10, 128, 151936),
}


EXAMPLE = "E8-H256-I128-k2-G32"


def shape_named(text: str) -> Shape:
    """Return a shape of SHAPES or MODELS, or one written out: E8-H256-I128-k2-G32.

    Raises:
        ValueError: neither; or a size is 0 or (but for G) negative, or H or I is no multiple of G, or k is above E.
    """
    if text in SHAPES | MODELS:
        return (SHAPES | MODELS)[text]
    said = re.findall(r"([A-Za-z])(-?\d+)", text)
    sizes = {letter: int(size) for letter, size in said}
    whole = {"E", "H", "I", "k", "G"} <= set(sizes) and len(sizes) == len(said)  # each once
    if not re.fullmatch(r"([EHIkGV]-?\d+)(-[EHIkGV]-?\d+)*", text) or not whole:
        raise ValueError(
            f"shape: got {text!r}, must be {', '.join(SHAPES | MODELS)} or all of E, H, I, k, G: {EXAMPLE}"
        )
    for letter, size in sizes.items():
        if size < 1 and (letter, size) != ("G", -1):
            raise ValueError(f"shape: got {letter}={size}, must be at least 1")
    for letter in "HI":
        if sizes[letter] % sizes["G"]:
            raise ValueError(f"shape: got G={sizes['G']}, must divide {letter}={sizes[letter]}")
    if not 1 <= sizes["k"] <= sizes["E"]:
        raise ValueError(f"shape: got k={sizes['k']}, must be 1..E = {sizes['E']}")
    return Shape(**sizes)


def block_for(shape: Shape, T: int) -> int:
    """Return B of an alignment for T tokens: about two blocks an expert at most, as a layer would choose for itself.

    16 up to 10 routed rows an expert, 32 up to 24, 64 beyond: about the Hopper layer's own, but at
    least 16, which every kernel's tile has. The same on every device, so that figures can be compared.
    """
    each = T * shape.k / shape.E
    return 16 if each <= 10 else 32 if each <= 24 else 64


def dimensions(op: str, shape: Shape, T: int, gemm: str, block: int | None) -> dict[str, int]:
    """Return the value of every dimension letter that a case of this op may ask for.

    Args:
        op: the op.
        shape: of the layer.
        T: tokens.
        gemm: "gemm1", "gemm2" or "layer".
        block: B of the alignment; None: block_for.
    """
    sizes = {**asdict(shape), "T": T, "N": 2 * shape.I, "K": shape.H, "B": block or block_for(shape, T)}
    if gemm == "gemm2":
        sizes |= {"N": shape.H, "K": shape.I}
        if op == "padded_gemm":  # its x has a row a slot, and one expert each
            sizes |= {"T": T * shape.k, "k": 1}
    if op == "silu_and_mul":
        sizes["T"] = T * shape.k
    return sizes


@dataclass(frozen=True)
class Work:
    """How much one launch has to do.

    Args:
        active: experts with rows (1 for an op without experts).
        rows: routed rows.
        weight_bytes: of the active experts.
        other_bytes: of every other argument and of the output.
        flops: useful ones, 0 for an op without a matrix product.
        counts: rows of each active expert.
    """

    active: int
    rows: int
    weight_bytes: int
    other_bytes: int
    flops: int
    counts: tuple[int, ...] = ()

    def floor_us(self, gbs: float, tflops: float) -> float:
        """Return the time below which no launch can be: max of the two quotients, in microseconds.

        Args:
            gbs: bandwidth, GB/s.
            tflops: matrix product rate, TFLOP/s.
        """
        nbytes = self.weight_bytes or self.other_bytes
        return max(nbytes / gbs / 1e3, self.flops / tflops / 1e6)

    def padded_rows(self, block_m: int) -> int:
        """Return the rows of all blocks of block_m that the active experts fill."""
        return sum(-(-count // block_m) * block_m for count in self.counts) if self.counts else self.rows


def mean_work(works: Sequence[Work]) -> Work:
    """Return the mean of several routings' work, as one launch of the rotation does it; counts are the first's."""
    numbers = {}
    for name in ("active", "rows", "weight_bytes", "other_bytes", "flops"):
        numbers[name] = round(sum(getattr(work, name) for work in works) / max(len(works), 1))
    return Work(**numbers, counts=works[0].counts)


def rotations(weight_bytes: int, cache_bytes: int, most: int = 16, others: int = 0) -> int:
    """Return how many routings to rotate over so that weights come from memory: four caches full of what calls touch.

    Args:
        weight_bytes: of one routing's active experts.
        cache_bytes: of the last-level cache; 0 where it is not known (then one).
        most: at most this many.
        others: bytes of everything else that a call reads or writes, which drives weights out as well.
    """
    if not weight_bytes or not cache_bytes:
        return 1
    return max(1, min(most, -(-4 * cache_bytes // (weight_bytes + others))))
