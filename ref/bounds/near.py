"""Products formed by the fastest unit of a machine whose own error the contract allows.

Whether a stored element is the rounding of a value in its Band can be asked of any value there. The unit's error obeys
the same formula as the Band's radius, with the unit's own constants: where those are smaller, for every y and T at
once, what the unit returns lies in the Band. Ends are still worked out around the exact sum, in fp64, wherever somebody
asks for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..contracts.contract import Contract
from ..weights.dense import DenseWeight
from ..weights.weight import Int4Weight
from .dot import dot_radius, formed_weights, magnitudes
from .scheduled import zeros_read

__all__ = ["near_products", "near_unit", "near_values", "products_of_elements", "products_of_rows"]

LESS = 1 - 2.0**-20  # a unit's error is at most so much of the Band's radius
LEAST = 2.0**-60  # of smaller sums, what a unit flushed could be more than the rest
EXTRA = 64  # steps of a matrix unit beyond K's own: what a library may cut K into, and add up again
BLOCK = 1 << 18  # weights in fp64 at once on a CPU: they should stay in the cache
FEW_ROWS = 16
GATHERED, GATHERED_ON_A_GPU = 1 << 22, 1 << 26  # products of single elements that are formed at once


def near_unit(w: Int4Weight | DenseWeight, contract: Contract, dtype: torch.dtype) -> str | None:
    """Return which unit's products lie in the Bands of dot products with w, "fp32" or "hopper"; None: nobody's do.

    Args:
        w: [E, N, K].
        contract: what is allowed.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
    """
    plain = contract.parts is None and contract.schedule is None and not contract.ftz and w.bias is None
    if not plain or contract.weight == "hoisted" or (contract.one_group != "as_weight" and w.G == w.K):
        return None
    if isinstance(w, DenseWeight):
        if contract.weight != "cast":
            return None
    elif contract.weight != "cast" and (w.scale.dtype == torch.float32 or w.bits != 4):  # more bits than fp32 holds
        return None
    unit = machine_unit(w.device)
    if unit is None or (unit == "hopper" and contract.weight != "cast"):  # its operands are of D
        return None
    return unit if _within(unit, w.K, contract, dtype) else None


def machine_unit(device: torch.device) -> str | None:
    """Return whose near products a device forms: a CPU's fp32, or a tensor core whose bit model was measured."""
    if device.type == "cpu":
        return "fp32"
    known = device.type == "cuda" and torch.version.cuda is not None and hasattr(torch.ops.aten.mm, "dtype_out")
    return "hopper" if known and torch.cuda.get_device_capability(device) == (9, 0) else None


@functools.lru_cache(maxsize=256)
def _within(unit: str, K: int, contract: Contract, dtype: torch.dtype) -> bool:
    """Say whether the unit's radius is below the contract's: both are linear, or concave, in |y| and T >= |y|."""
    own = Contract("near", weight="cast" if contract.weight == "cast" else "exact", accumulator=unit)
    steps = K if unit == "fp32" else K + EXTRA * own.adder.block
    one = torch.ones((), dtype=torch.float64)
    for y in (0 * one, one):
        theirs = float(dot_radius(y, one, K, contract, dtype))
        if not float(dot_radius(y, one, steps, own, dtype)) <= LESS * theirs < math.inf:
            return False
    return True


def near_values(
    w: Int4Weight | DenseWeight, contract: Contract, dtype: torch.dtype, unit: str, into: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weights as the contract forms them [..., N, K]: in D for a matrix unit, else in fp32; exact.

    Args:
        w, contract, dtype: as near_unit takes them.
        unit: what near_unit returned.
        into: a buffer of the right shape and dtype to fill, or None.
    """
    if unit == "fp32":
        return formed_weights(w, contract, dtype, into)
    if isinstance(w, DenseWeight):
        return w.values.to(dtype) if contract.weight_rounding == "rne" else formed_weights(w, contract, dtype).to(dtype)
    if contract.scale_cast and w.scale.dtype != dtype:
        w = replace(w, scale=w.scale.to(dtype))
    if not w.regular or w.bits != 4 or w.scale.dtype != dtype or contract.weight_rounding != "rne":
        return formed_weights(w, contract, dtype).to(dtype)
    # u-z fits a byte and D; the product is formed in fp32, exactly, and rounded once.
    steps, zeros = w.codes().view(torch.int8).unflatten(-1, (-1, w.G)), zeros_read(w, contract)
    steps.sub_(8 if zeros is None else zeros.to(torch.int8).unsqueeze(-1))
    return (steps * w.scale.unsqueeze(-1)).flatten(-2)


@contextmanager
def _in_fp32() -> Iterator[None]:
    """Keep a GPU's library from adding products of fp16 in fp16."""
    switch = torch.backends.cuda.matmul
    before = getattr(switch, "allow_fp16_accumulation", False)
    if before:
        switch.allow_fp16_accumulation = False
    try:
        yield
    finally:
        if before:
            switch.allow_fp16_accumulation = True


def near_products(a: torch.Tensor, values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return float32 [M, N]: a values^T, each within the unit's error, NaN where that may not be so.

    Args:
        a: D [M, K].
        values: [n, N, K], from near_values; the i-th matrix is for the next counts[i] rows of a.
    """
    y = torch.empty(a.shape[0], values.shape[1], device=a.device)
    with _in_fp32():
        start = 0
        for i, count in enumerate(counts):
            if count:
                _multiply(a[start : start + count], values[i], y[start : start + count])
            start += count
    size = y.abs()
    unsure = (size > LEAST).logical_and_(size < torch.inf).logical_not_()
    if bool(unsure.any()):
        unsure &= (a != 0).any(1, keepdim=True)  # NaN is not 0
        y.masked_fill_(unsure, torch.nan)
    return y


def _multiply(a: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> None:
    if w.dtype == torch.float32:
        torch.mm(a.float(), w.T, out=out)
    else:
        torch.ops.aten.mm.dtype_out(a, w.T, torch.float32, out=out)


def products_of_rows(
    a: torch.Tensor, values: torch.Tensor, counts: Sequence[int], narrow: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y = a values^T and T = |a| |values|^T, float64 [M, N]; T is an upper bound, as `magnitudes` says.

    Args:
        a, values, counts: as near_products takes them.
        narrow: as `magnitudes` takes it.
    """
    N, K = values.shape[1:]
    y = torch.empty(a.shape[0], N, dtype=torch.float64, device=a.device)
    t, start, block = torch.empty_like(y), 0, max(1, BLOCK // K) if a.device.type == "cpu" else N
    for i, count in enumerate(counts):
        rows = a[start : start + count].double()
        for n in range(0, N if count else 0, block):
            w = values[i, n : n + block]
            here = slice(start, start + count), slice(n, n + block)
            if count <= FEW_ROWS:  # one copy of the weights is most of the work
                w64 = w.to(torch.float64, copy=True)
                y[here] = rows @ w64.T
                t[here] = (rows.abs() @ w64.abs_().T).mul_(1 + K * 2.0**-52)
            else:
                y[here] = rows @ w.double().T
                t[here] = magnitudes(rows, w.float().abs(), narrow=narrow)
        start += count
    return y, t


def products_of_elements(
    a: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and T of single elements, float64 [p]; arguments as near_products', and int64 [p] which elements."""
    K, on_cpu = values.shape[-1], a.device.type == "cpu"
    at_once = max(1, (GATHERED if on_cpu else GATHERED_ON_A_GPU) // K)
    y, t = (torch.empty(len(rows), dtype=torch.float64, device=a.device) for _ in range(2))
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        products = a[rows[some]].double().mul_(values[matrices[some], columns[some]])
        y[some], t[some] = products.sum(1), products.abs_().sum(1)
    return y, t
