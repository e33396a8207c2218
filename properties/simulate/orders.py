"""Orders of accumulation: the ways in which real kernels add up K products, each as one function.

Every function takes a [M, K] and w [N, K] in fp32 and the activation dtype D, and returns [M, N] in fp32. All of them
are legal under some contract; which one is said by `ACCUMULATOR`.

    matmul      whatever the BLAS does                sequential, reversed    one fp32 chain over k
    pairwise    a binary tree                         tiles32, 64, 128        a tile's sum, then tile after tile
    split_k     four parts, then their sum            random                  a random binary tree, by seed
    lanes       docs/formats.md section 4: 32 lanes, 8 k      hopper, ampere          blocks truncated to 25 or 24 bits
    ftz         subnormals are zero at every step     truncating              every addition rounds toward zero
    eights      partial sums of eight in D, then atomics in D in no fixed order
    chains      chains of four in D, fused, two such sums and then those of each eight products in fp32
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from moeracle.ref.contracts.accumulators import ACCUMULATORS
from moeracle.ref.rounding import round_in_fp64

Order = Callable[[torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]
ELEMENTS_AT_ONCE = 1 << 22  # products held at once by the orders that hold them all
CHAINED_AT_ONCE = 1 << 18  # and by the order that rounds each partial sum: they stay in a core's cache
LANES, LANE_CHUNK = 32, 8
_FP32_BITS = -(1 << 29)  # of an fp64's 52 mantissa bits, the 23 leading ones
CORES = {name: adder.core for name, adder in ACCUMULATORS.items() if adder.core is not None}
# Of atomics: no run repeats another's order.
_seeds: ContextVar[Iterator[int]] = ContextVar("seeds_of_atomics", default=itertools.count())  # noqa: B039 - shared


def matmul(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add in the BLAS's own order."""
    return a @ w.T


def sequential(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add k = 0, 1, 2, … to one fp32 sum."""
    total = a.new_zeros(a.shape[0], w.shape[0])
    for a_k, w_k in zip(a.T.unsqueeze(2), w.T.contiguous(), strict=True):
        total += a_k * w_k
    return total


def reversed_(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add k = K-1, K-2, … to one fp32 sum."""
    return sequential(a.flip(1), w.flip(1), dtype)


def tiles(size: int) -> Order:
    """Return the order that sums each tile of `size` columns and adds tile after tile."""

    def tiled(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        total = a.new_zeros(a.shape[0], w.shape[0])
        for a_tile, w_tile in zip(a.split(size, 1), w.split(size, 1), strict=True):
            total += a_tile @ w_tile.T
        return total

    return tiled


def split_k(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sum four contiguous parts of K on their own, then add the four."""
    parts = [a_part @ w_part.T for a_part, w_part in zip(a.chunk(4, 1), w.chunk(4, 1), strict=True)]
    return _fold(torch.stack(parts)) if parts else a.new_zeros(a.shape[0], w.shape[0])


def pairwise(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add neighbours, then neighbours of those sums, and so on."""
    return _over_products(a, w, _fold)


def random_tree(seed: int) -> Order:
    """Return the order that again and again adds two random partial sums."""

    def tree(products: torch.Tensor) -> torch.Tensor:
        draw = random.Random(seed)
        sums = list(products)
        while len(sums) > 1:
            i, j = sorted(draw.sample(range(len(sums)), 2))
            sums[i] = sums[i] + sums.pop(j)
        return sums[0]

    return lambda a, w, dtype: _over_products(a, w, tree)


def lanes(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Let 32 lanes own runs of 8 columns, then add the lanes by row shifts 8, 4, 2, 1 and one exchange of rows."""

    def tree(products: torch.Tensor) -> torch.Tensor:
        K = products.shape[0]
        stride = LANES * LANE_CHUNK
        whole = -(-K // stride) * stride
        padded = torch.cat([products, products.new_zeros(whole - K, *products.shape[1:])])
        own = padded.unflatten(0, (-1, LANES, LANE_CHUNK)).transpose(1, 2).flatten(0, 1)  # [steps, lane, M, N]
        lane = own[0]
        for step in own[1:]:
            lane = lane + step
        rows = []
        for row in lane.unflatten(0, (2, 16)):
            for shift in (8, 4, 2, 1):
                row = torch.cat([row[:shift], row[shift:] + row[:-shift]])  # from the lane below; 15 ends with all
            rows.append(row[15])
        return rows[1] + rows[0]

    return _over_products(a, w, tree)


def tensor_core(block: int, bits: int) -> Order:
    """Return the model of a tensor core: `block` products and the sum, truncated to `bits` bits below the largest.

    Source: docs/bit-models.md.
    """

    def add(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pieces = w.split(max(1, ELEMENTS_AT_ONCE // max(1, a.shape[0] * block)))
        return torch.cat([_blocks(a.double(), piece.double(), block, bits) for piece in pieces], 1)

    return add


def _blocks(a: torch.Tensor, w: torch.Tensor, block: int, bits: int) -> torch.Tensor:
    total = a.new_zeros(a.shape[0], w.shape[0])
    for a_part, w_part in zip(a.split(block, 1), w.split(block, 1), strict=True):
        product = a_part[:, None, :] * w_part[None, :, :]
        # A product's exponent is the sum of its operands', not its normalized one.
        exponent = (torch.frexp(a_part).exponent[:, None, :] + torch.frexp(w_part).exponent[None, :, :]).double() - 2
        terms = torch.cat([product, total[:, :, None]], 2)
        of_terms = torch.cat([exponent, torch.frexp(total).exponent.double()[:, :, None] - 1], 2)
        largest = torch.where(terms == 0, -torch.inf, of_terms).amax(2, keepdim=True).clamp(min=-1000)
        grain = torch.exp2(largest - bits)
        total = truncate((torch.trunc(terms / grain) * grain).sum(2)).double()
    return total.float()


def ftz(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add in sequence with subnormal operands, products and sums taken as zero."""
    total = a.new_zeros(a.shape[0], w.shape[0])
    for a_k, w_k in zip(flush(a).T.unsqueeze(2), flush(w).T.contiguous(), strict=True):
        total = flush(total + flush(a_k * w_k))
    return total


def truncating(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add in sequence, every addition rounded toward zero."""
    total = a.new_zeros(a.shape[0], w.shape[0])
    for a_k, w_k in zip(a.double().T.unsqueeze(2), w.double().T.contiguous(), strict=True):
        total = truncate(total.double() + truncate(a_k * w_k).double())
    return total


def eights(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add eight products in D, one after another, and those sums in D in an order that no two runs share."""
    total = a.new_zeros(())
    for a_k, w_k in zip(_in_runs(a)[..., None], _in_runs(w)[..., None, :], strict=True):
        total = (total + (a_k * w_k).to(dtype).float()).to(dtype).float()
    parts = list(total)
    shuffle(parts)
    total = a.new_zeros(a.shape[0], w.shape[0])
    for part in parts:
        total = (total + part).to(dtype).float()
    return total


def chains(a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add each four products in D, fused, from +0; two such sums in fp32, and eight products after eight in fp32."""
    rows, at_once = _in_runs(a.double()).chunk(2), max(1, CHAINED_AT_ONCE // max(1, a.numel()))
    sums = []
    for columns in w.split(at_once):
        both = []
        for a_chain, w_chain in zip(rows, _in_runs(columns.double()).chunk(2), strict=True):
            chain = a_chain.new_zeros(())
            for a_k, w_k in zip(a_chain[..., None], w_chain[..., None, :], strict=True):
                chain = round_in_fp64(chain + a_k * w_k, dtype)
            both.append(chain.float())
        total = a.new_zeros(a.shape[0], len(columns))
        for run in both[0] + both[1]:
            total = total + run
        sums.append(total)
    return torch.cat(sums, 1)


def _in_runs(x: torch.Tensor) -> torch.Tensor:
    """Cut x [M, K] into runs of eight k, the last filled up with zeros: [8, runs, M], by place in the run."""
    filled = torch.nn.functional.pad(x, (0, -x.shape[1] % 8))
    return filled.unflatten(1, (-1, 8)).permute(2, 1, 0).contiguous()


def shuffle(parts: list[torch.Tensor]) -> None:
    """Put partial sums in an order that no two calls share, as atomics do."""
    random.Random(next_seed()).shuffle(parts)


def next_seed() -> int:
    """Return a seed that no two calls share."""
    return next(_seeds.get())


@contextmanager
def same_atomics(seed: int) -> Iterator[None]:
    """Let `shuffle` and `next_seed` inside follow from a seed, whatever this process shuffled before."""
    token = _seeds.set(itertools.count(seed << 32))
    try:
        yield
    finally:
        _seeds.reset(token)


def joined(terms: list[torch.Tensor], order: str, add: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Add partial sums one after another ("any", sequential, reversed), or as a tree of neighbours or of halves."""
    if order in ("any", "sequential", "reversed"):
        return functools.reduce(add, terms[::-1] if order == "reversed" else terms)
    while len(terms) > 1:
        half, odd = len(terms) // 2, len(terms) % 2
        if order == "pairwise":
            terms = [add(terms[2 * i], terms[2 * i + 1]) for i in range(half)] + terms[2 * half :]
        else:
            terms = [add(terms[i], terms[half + odd + i]) for i in range(half)] + terms[half : half + odd]
    return terms[0]


def flush(x: torch.Tensor) -> torch.Tensor:
    """Take fp32 subnormals as zero."""
    return torch.where(x.abs() < 2.0**-126, 0.0, x)


def truncate(x: torch.Tensor) -> torch.Tensor:
    """Round fp64 to fp32 toward zero, by clearing the bits that fp32 lacks (subnormals are rounded to nearest)."""
    return (x.view(torch.int64) & _FP32_BITS).view(torch.float64).float()


def _over_products(a: torch.Tensor, w: torch.Tensor, tree: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Give the products [K, M, n] to `tree`, some columns n at a time."""
    at_once = max(1, ELEMENTS_AT_ONCE // max(1, a.numel()))
    sums = [tree(a.T[:, :, None] * columns.T[:, None, :]) for columns in w.split(at_once)]
    return torch.cat(sums, 1)


def _fold(sums: torch.Tensor) -> torch.Tensor:
    while len(sums) > 1:
        odd = sums[-1:] if len(sums) % 2 else sums[:0]
        even = sums[: len(sums) // 2 * 2]
        sums = torch.cat([even[0::2] + even[1::2], odd])
    return sums[0]


ORDERS: dict[str, Order] = {
    "matmul": matmul,
    "sequential": sequential,
    "reversed": reversed_,
    "pairwise": pairwise,
    "tiles32": tiles(32),
    "tiles64": tiles(64),
    "tiles128": tiles(128),
    "split_k": split_k,
    "random1": random_tree(1),
    "random2": random_tree(2),
    "lanes": lanes,
    **{name: tensor_core(core.products, core.bits) for name, core in CORES.items()},
    "ftz": ftz,
    "truncating": truncating,
    "eights": eights,
    "chains": chains,
}
# The accumulator that a contract must declare for an order to be legal; all others keep every contract but "dtype".
ACCUMULATOR = {name: name for name in ORDERS if name in ACCUMULATORS} | {"eights": "dtype"}
