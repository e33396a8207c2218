"""Exact arithmetic on stored floats: dot products in integers, and one correct rounding of a rational number.

Every finite float is an integer times a power of two, so a dot product of floats is a sum of integers: exact, and the
same on every machine, in every order. `nearest` then rounds once. Nothing here goes through a floating-point unit but
the conversion of values that are exactly representable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moeracle.ref.errors import require
from moeracle.ref.rounding import check_format

FAR = 1 << 10  # exponents beyond any format's: what lies there is an infinity


class Scaled(NamedTuple):
    """Exact values: whole[i] * 2^exponent, whole numbers of any size."""

    whole: NDArray[Any]
    exponent: int

    def fractions(self) -> list[list[Fraction]]:
        """Return the values of a [rows, columns] array."""
        unit = Fraction(2) ** self.exponent
        return [[n * unit for n in row] for row in self.whole.tolist()]


def scaled(values: torch.Tensor) -> Scaled:
    """Return the exact values of a tensor of finite floats, whatever its dtype.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    return scaled_floats(values.detach().cpu().double().flatten().tolist(), tuple(values.shape))


def scaled_floats(values: Sequence[float], shape: tuple[int, ...]) -> Scaled:
    """Return the exact values of floats, as an array of `shape`; see `scaled`."""
    require(all(map(math.isfinite, values)), "golden: got a value that is not finite, must be finite to be summed")
    ratios = [value.as_integer_ratio() for value in values]
    denominator = max((d for _, d in ratios), default=1)
    whole = np.empty(len(ratios), dtype=object)
    whole[:] = [n * (denominator // d) for n, d in ratios]
    return Scaled(whole.reshape(shape), 1 - denominator.bit_length())


def dots(a: Scaled, w: Scaled) -> Scaled:
    """Return a w^T exactly.

    Args:
        a: [M, K].  w: [N, K].
    """
    (M, K), N = a.whole.shape, w.whole.shape[0]
    if 0 in (M, N, K):
        return Scaled(np.zeros((M, N), dtype=object), 0)
    return Scaled(np.dot(a.whole, w.whole.T), a.exponent + w.exponent)


def nearest(value: Fraction | float, dtype: torch.dtype, mode: str = "rne") -> float:
    """Round an exact value to a format, once.

    RNE: to nearest, ties to even, beyond the largest finite value infinity. RTZ: toward zero, never infinity.

    Args:
        value: a rational number, or a finite float.
        dtype: torch.bfloat16, torch.float16 or torch.float32.
        mode: "rne" or "rtz".
    Returns:
        The rounded value as a float, which holds it exactly. Zero gives +0; what underflows keeps its sign.
    """
    p, emin, largest = check_format(dtype)
    n, d = value.as_integer_ratio()
    if n == 0:
        return 0.0
    sign, n = (-1.0 if n < 0 else 1.0), abs(n)
    exponent = _floor_log2(n, d)
    if exponent > FAR:
        return sign * (math.inf if mode == "rne" else largest)
    step = max(exponent, emin) - p  # the spacing of the format here is 2^step
    above, below = (n << -step, d) if step < 0 else (n, d << step)
    whole, rest = divmod(above, below)
    if mode == "rne" and (2 * rest > below or (2 * rest == below and whole % 2)):
        whole += 1
    rounded = math.ldexp(whole, step)
    if rounded > largest:
        rounded = math.inf if mode == "rne" else largest
    return sign * rounded


def _floor_log2(n: int, d: int) -> int:
    guess = n.bit_length() - d.bit_length()
    too_much = n < d << guess if guess >= 0 else n << -guess < d
    return guess - too_much


def as_tensor(rows: Sequence[Sequence[float]], columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return rows of values that `dtype` holds exactly as a tensor [rows, columns]."""
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), columns).to(dtype)
