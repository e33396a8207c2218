"""Orders of accumulation: fp32 products added up in many ways, each of which some kernel uses."""

from __future__ import annotations

import torch

from moeracle.ref.rounding import round_in_fp64


def sequential(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add [..., K] over K, one after another."""
    sum_ = torch.zeros(terms.shape[:-1])
    for k in range(terms.shape[-1]):
        sum_ = sum_ + terms[..., k]
    return sum_


def pairwise(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add neighbours, then neighbours of the sums."""
    while terms.shape[-1] > 1:
        terms = torch.nn.functional.pad(terms, (0, terms.shape[-1] % 2))
        terms = terms[..., 0::2] + terms[..., 1::2]
    return terms[..., 0]


def tiled(terms: torch.Tensor, dtype: torch.dtype, size: int = 32) -> torch.Tensor:
    """Add tiles of 32, each from its last term on, one after another."""
    return sequential(torch.stack([sequential(t.flip(-1), dtype) for t in terms.split(size, -1)], -1), dtype)


def split_k(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add every fourth term on its own, then the four."""
    return pairwise(torch.stack([sequential(terms[..., i::4], dtype) for i in range(4)], -1), dtype)


def truncating(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add one after another, each sum rounded toward zero to fp32."""
    sum_ = torch.zeros(terms.shape[:-1], dtype=torch.float64)
    for k in range(terms.shape[-1]):
        sum_ = round_in_fp64(sum_ + terms[..., k].double(), torch.float32, "rtz")
    return sum_.float()


def blocks(terms: torch.Tensor, dtype: torch.dtype, size: int = 16, bits: int = 25) -> torch.Tensor:
    """Add blocks of 16 and the sum so far, each cut to 25 bits below the largest: what a Hopper tensor core does."""
    sum_ = torch.zeros(terms.shape[:-1], dtype=torch.float64)
    for piece in terms.double().split(size, -1):
        every = torch.cat([piece, sum_[..., None]], -1)
        largest = torch.frexp(every.abs().amax(-1, keepdim=True)).exponent
        unit = torch.ldexp(torch.ones_like(every[..., :1]), (largest - 1 - bits).clamp(min=-200))
        sum_ = round_in_fp64(((every / unit).trunc() * unit).sum(-1), torch.float32, "rtz")
    return sum_.float()


def eights(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add eights in D, then those sums in D: 16-bit partial sums and atomics."""
    rounded = lambda t: t.to(dtype).float()
    sum_ = torch.zeros(terms.shape[:-1])
    for eight in terms.split(8, -1):
        part = torch.zeros_like(sum_)
        for k in range(eight.shape[-1]):
            part = rounded(part + eight[..., k])
        sum_ = rounded(sum_ + part)
    return sum_


def chains(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Add fours in D, each product fused with its addition, then those sums in fp32."""
    sums = []
    for four in terms.double().split(4, -1):
        chain = torch.zeros(terms.shape[:-1], dtype=torch.float64)
        for k in range(four.shape[-1]):
            chain = round_in_fp64(chain + four[..., k], dtype)
        sums.append(chain.float())
    return sequential(torch.stack(sums, -1), dtype) if sums else torch.zeros(terms.shape[:-1])


ORDERS = {
    "sequential": sequential,
    "reversed": lambda terms, dtype: sequential(terms.flip(-1), dtype),
    "pairwise": pairwise,
    "tiled": tiled,
    "split_k": split_k,
    "truncating": truncating,
    "blocks": blocks,
    "eights": eights,
    "chains": chains,
}
NEAREST = ("sequential", "reversed", "pairwise", "tiled", "split_k")  # legal wherever fp32 sums are
TENSOR_CORE = (*NEAREST, "truncating", "blocks")


def total(terms: torch.Tensor, order: str, dtype: torch.dtype) -> torch.Tensor:
    """Add [..., K] over K in an order."""
    return ORDERS[order](terms, dtype)


def dot(a: torch.Tensor, w: torch.Tensor, order: str, dtype: torch.dtype) -> torch.Tensor:
    """Return a [M, K] times w [N, K] transposed: products rounded to fp32, added in an order."""
    if order == "matmul":
        return a @ w.T
    return total(a[:, None, :] * w[None], order, dtype)
