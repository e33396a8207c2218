"""The questions of `moeracle infer --probe-hardware`: the same for every machine, so answers can be read again.

A question is a row: out = acc + sum_k a_k w_k by one instruction of K products. Groups:

    order     +M and -M in two of the K+1 terms and one unit in a third, every choice: which terms share a step
    window    2^e, b and -2^e for growing e: how many bits are kept beside a larger term
    exponent  the same beside 2.25 = 1.5 * 1.5: by which exponent terms are aligned
    rounding  sums just above and below 2^24: how the result is rounded
    zeros     signs of zeros
    tiny      subnormal operands, products, accumulators
    samesign, mixedsign   small integers, of which IEEE arithmetic makes exact sums
    normal, wide          random values, by which models are distinguished
"""

from __future__ import annotations

from itertools import combinations

import torch

from ..common.generator import FORMATS, Stream, round_bits, to_tensor

VERSION = 1  # of these questions: another number wherever one of them changes
COUNT = 256
BELOW_2 = 2 - 2.0**-10
LARGE = {"bf16": (60, 0), "fp16": (15, -14)}  # exponents of M and of a unit, which a * 1 reaches in this dtype
Questions = dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # group -> a [P, K], w [P, K], acc [P]


def questions(dtype: str, K: int) -> Questions:
    """Return every group's operands.

    Args:
        dtype: "bf16" or "fp16".
        K: products of the instruction, at least 2.
    """
    groups = {"order": _order(dtype, K), "window": _window(dtype, K), "exponent": _exponent(dtype, K),
              "rounding": _rounding(dtype, K), "zeros": _zeros(dtype, K), "tiny": _tiny(dtype, K)}  # fmt: skip
    for name in ("samesign", "mixedsign", "normal", "wide"):
        groups[name] = _random(name, dtype, K)
    return groups


def order_triples(K: int) -> list[tuple[int, int, int]]:
    """Return (place of +M, place of -M, place of the unit) of each row of "order"; place K is the accumulator."""
    found = []
    for i, j in combinations(range(K + 1), 2):
        found += [(i, j, m) for m in range(K + 1) if m not in (i, j)]
    return found + [(j, i, m) for i, j, m in found]


def window_rows(dtype: str, K: int) -> list[tuple[int, int, int, int, float]]:
    """Return (place of 2^e, of b, of -2^e, e, b) of each row of "window"."""
    most = 29 if dtype == "fp16" else 34
    places = [(0, 1, K), (K, 0, 1), *([(0, 1, 2), (1, 0, 2)] if K > 2 else [])]
    return [(*place, e, b) for place in places for e in range(16, most) for b in (1.0, 1.5, -1.0)]


def _rows(dtype: str, count: int, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    form = FORMATS[dtype].torch_dtype
    return torch.zeros(count, K, dtype=form), torch.ones(count, K, dtype=form), torch.zeros(count)


def _put(rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], row: int, place: int, value: float) -> None:
    a, _, acc = rows
    if place == a.shape[1]:
        acc[row] = value
    else:
        a[row, place] = value


def _order(dtype: str, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    triples = order_triples(K)
    rows, (large, unit) = _rows(dtype, len(triples), K), LARGE[dtype]
    for row, (i, j, m) in enumerate(triples):
        for place, value in ((i, 2.0**large), (j, -(2.0**large)), (m, 2.0**unit)):
            _put(rows, row, place, value)
    return rows


def _window(dtype: str, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    asked, unit = window_rows(dtype, K), 2.0 ** LARGE[dtype][1]
    rows = _rows(dtype, len(asked), K)
    for row, (i, j, m, e, b) in enumerate(asked):
        for place, value in ((i, 2.0**e), (j, b), (m, -(2.0**e))):
            _put(rows, row, place, value * unit)
    return rows


def _exponent(dtype: str, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """2.25 * 2^e as 1.5 * 1.5, 1, and an accumulator of exponent e that leaves room for the 1 in the result."""
    unit = 2.0 ** LARGE[dtype][1]
    powers = list(range(16, 28))
    a, w, acc = _rows(dtype, len(powers), K)
    for row, e in enumerate(powers):
        a[row, 0], w[row, 0], a[row, 1], acc[row] = 1.5 * 2.0**e * unit, 1.5, unit, -BELOW_2 * 2.0**e * unit
    return a, w, acc


def _rounding(dtype: str, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """±(2^24 + b): the result itself shows what became of b."""
    unit = 2.0 ** (LARGE[dtype][1] if dtype == "fp16" else 0)
    cases = [(sign, b) for sign in (1.0, -1.0) for b in (0.5, 1.0, 1.5, 2.5, 3.0, 3.5, -0.5, -0.75)]
    a, w, acc = _rows(dtype, len(cases), K)
    for row, (sign, b) in enumerate(cases):
        acc[row], a[row, 0] = sign * 2.0**24 * unit, sign * b * unit
    return a, w, acc


def _zeros(dtype: str, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All zeros of either sign, and sums that cancel."""
    cases = [(-0.0, -0.0, -0.0, -0.0), (0.0, -0.0, -0.0, -0.0), (-0.0, 0.0, -0.0, -0.0), (-0.0, -0.0, -0.0, 0.0),
             (0.0, 1.0, -1.0, 0.0), (-0.0, -1.0, 1.0, -0.0)]  # fmt: skip
    a, w, acc = _rows(dtype, len(cases), K)
    for row, (c, first, second, rest) in enumerate(cases):
        a[row], acc[row] = rest, c
        a[row, 0], a[row, 1] = first, second
    return a, w, acc


def _tiny(dtype: str, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A subnormal operand times a large one, a subnormal product, a subnormal accumulator, and all of them negative."""
    a, w, acc = _rows(dtype, 8, K)
    small, smallest = (2.0**-130, 2.0**-100) if dtype == "bf16" else (2.0**-20, 2.0**-24)
    for row, sign in ((0, 1.0), (1, -1.0)):
        a[row, 0], w[row, 0] = sign * small, 2.0**10
    for row, sign in ((2, 1.0), (3, -1.0)):
        a[row, 0], w[row, 0] = sign * smallest, 2.0**-40 if dtype == "bf16" else 2.0**-24
    for row, sign in ((4, 1.0), (5, -1.0)):
        acc[row] = sign * 2.0**-140
    a[6, 0], w[6, 0], acc[6] = (
        2.0**-60 if dtype == "bf16" else 2.0**-10,
        2.0**-66 if dtype == "bf16" else 2.0**-10,
        2.0**-149,
    )
    a[7, 0], w[7, 0], a[7, 1], w[7, 1] = small, 1.0, -small, 1.0
    return a, w, acc


def _random(name: str, dtype: str, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    fmt, stream = FORMATS[dtype], Stream(VERSION, f"dot.{name}.{K}")
    if name in ("samesign", "mixedsign"):
        values = [torch.from_numpy(stream.below((COUNT, K), 9)).double() for _ in range(2)]
        acc = torch.from_numpy(stream.below((COUNT,), 64)).float()
        if name == "mixedsign":
            values[0] -= 4
            acc -= 32
        return values[0].to(fmt.torch_dtype), values[1].to(fmt.torch_dtype), acc
    sides = [stream.normal((COUNT, K)) for _ in range(2)]
    acc32 = stream.normal((COUNT,), fine=True)
    if name == "wide":
        sides[0] *= (2.0 ** -stream.below((COUNT, K), 12)).astype("float32")
        acc32 *= (2.0 ** (8 - stream.below((COUNT,), 16))).astype("float32")
    a, w = (to_tensor(round_bits(side, fmt), fmt) for side in sides)
    return a, w, torch.from_numpy(acc32)
