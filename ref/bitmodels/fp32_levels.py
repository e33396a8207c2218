"""fp32 sums joined level by level, as a thread's registers, a warp's lanes and a block's warps do, bit for bit."""

from __future__ import annotations

import torch

from ..rounding import round_to
from .fp32_trees import add32, mul32, multiply_add, odd_sum, reduce32


def tree32(
    a: torch.Tensor,
    w: torch.Tensor,
    levels: tuple[tuple[int, str], ...],
    *,
    fused: bool = False,
    rounding: str = "rne",
    narrow: torch.dtype | None = None,
) -> torch.Tensor:
    """Return sum_k a[m,k] w[n,k], joined level by level: each run of n neighbours becomes one sum.

    Args:
        a: float32 [M, K].  w: float32 [N, K].
        levels: (n, one of ORDERS) from the inside out, the product of all n being K.
        fused: the innermost level, if a chain, multiplies and adds with one rounding.  rounding: "rne" or "rtz".
        narrow: the innermost level is a chain of fused multiply-adds in this dtype, from +0; None: it is in fp32.
    """
    if narrow is not None:
        return _join(_narrow_chains(a, w, levels[0][0], narrow), levels[1:], rounding)[0]
    return _join(_products(a, w, levels[0], fused, rounding), levels[1:], rounding)[0]


def held32(
    a: torch.Tensor,
    w: torch.Tensor,
    levels: tuple[tuple[int, str], ...],
    held: int,
    fused: bool = False,
    scale: torch.Tensor | None = None,
    scale_fused: bool = False,
    rounding: str = "rne",
) -> torch.Tensor:
    """Return the tiles' sum when each sum of `held` neighbours is held over the tiles, and joined with others last.

    acc[i] += (sum of inputs i*held .. (i+1)*held - 1 of the tile) * scale[tile, i], from +0; then acc by its levels

    Args:
        a: float32 [tiles, M, t].  w: float32 [tiles, N, t], in the order of the levels.
        levels: as tree32's; the first ones join `held` inputs, none of them if it is 1.
        held: inputs of one accumulator.
        fused: products are added with one rounding.  scale: float32 [tiles, t / held, N], or None.
        scale_fused: it enters by fused multiply-add.  rounding: "rne" or "rtz".
    """
    tiles, M, t = a.shape
    acc, first, reach = a.new_zeros(t // held, M, w.shape[1]), 0, 1
    while reach < held:
        reach, first = reach * levels[first][0], first + 1
    for i in range(tiles):
        if first == 0 and scale is None:
            acc = multiply_add(a[i].T[:, :, None], w[i].T[:, None, :], acc, fused, rounding)
            continue
        part = _products(a[i], w[i], levels[0] if first else (1, "sequential"), fused, rounding)
        part = _join(part, levels[1:first], rounding)
        if scale is None:
            acc = add32(acc, part, rounding)
        else:
            acc = multiply_add(part, scale[i][:, None, :].expand_as(part), acc, scale_fused, rounding)
    return _join(acc, levels[first:], rounding)[0]


def _narrow_chains(a: torch.Tensor, w: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return [K / size, M, N]: runs of products added one after another, each step one rounding to `dtype`."""
    x, y = (t.double().reshape(t.shape[0], -1, size).permute(2, 1, 0) for t in (a, w))  # [size, runs, rows]
    sums = torch.zeros(x.shape[1], a.shape[0], w.shape[0], dtype=torch.float64, device=a.device)
    for j in range(size):
        sums = round_to(odd_sum(x[j][:, :, None] * y[j][:, None, :], sums), dtype).double()
    return sums.float()


def _products(a: torch.Tensor, w: torch.Tensor, level: tuple[int, str], fused: bool, rounding: str) -> torch.Tensor:
    """Return [K / n, M, N]: each run of n neighbouring products of a [M, K] and w [N, K] as one sum."""
    size, order = level
    inner = [x.reshape(x.shape[0], -1, size).transpose(0, 1) for x in (a, w)]  # [runs, rows, size]
    if order not in ("sequential", "reversed"):
        x, y = inner[0][:, :, None, :], inner[1][:, None, :, :]
        if order == "pairwise" and fused and size % 2 == 0:  # p0 + p1 is contracted to fma(p0, round(p1)), as below
            pairs = multiply_add(x[..., ::2], y[..., ::2], mul32(x[..., 1::2], y[..., 1::2], rounding), True, rounding)
            return reduce32(pairs.movedim(-1, 0), order, rounding)
        return reduce32(mul32(x, y, rounding).movedim(-1, 0), order, rounding)
    first, *steps = range(size) if order == "sequential" else range(size - 1, -1, -1)
    x, y = inner[0].permute(2, 0, 1)[..., None], inner[1].permute(2, 0, 1)[:, :, None, :]
    if not steps:
        return mul32(x[first], y[first], rounding)
    # p0 + p1 is contracted to fma(p0, round(p1)), as compilers do, then p2 enters, and so on.
    sums = multiply_add(x[first], y[first], mul32(x[steps[0]], y[steps[0]], rounding), fused, rounding)
    for j in steps[1:]:
        sums = multiply_add(x[j], y[j], sums, fused, rounding)
    return sums


def _join(sums: torch.Tensor, levels: tuple[tuple[int, str], ...], rounding: str) -> torch.Tensor:
    """Join runs of [n, ...] level by level."""
    for size, order in levels:
        sums = reduce32(sums.unflatten(0, (-1, size)).transpose(0, 1), order, rounding)
    return sums
