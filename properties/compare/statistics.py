"""Small and systematic: errors that every element's legal set hides, seen in the mean of many.

A wide legal set says nothing about an element, but a legal kernel does not use it up in one direction. For a stage that
was judged from the kernel's own stored input, with y the exact result, r = store(y), got what was stored, all in ulp:

    D = got - r                          0 for most elements of a legal kernel, ±1 where its error crossed a tie
    z_bias = (|sum D sign(y)| - sum b) / sqrt(sum max(1/12, m))         two-sided
    z_rms  = (sum (got-y)^2 - (r-y)^2 - sum (b^2 + s^2)) / sqrt(sum max(1/180, 4 m^3))    one-sided

b is the mean error that the contract's accumulator may have, s the standard deviation that n independent roundings
within the derived bound have, m = b + s (Errors). Where y is uniform in its ulp, E[D | e] = e for an error e < 1, so
E[D^2] = E|e| <= m, and E[(got-y)^2 - (r-y)^2] = E[e^2] with a variance below 4 m^3: the numbers above.

Such tests are often written around y instead of r: mean(d sign y) sqrt(12 n), since uniform d has variance 1/12, and
(mean d^2 - 1/12) sqrt(180 n), since its kurtosis 9/5 gives d^2 the variance 1/80 - 1/144 = 1/180. Subtracting r, the
right store of the same y, leaves the means of every fault as they are, removes the noise that a legal kernel shares
with r, and makes ties, representable values, repeated rows and rtz stores (whose own mean is -1/2) harmless; 1/12 and
1/180 stay as the least variances, so that n counts for no more than it did.

Alarm beyond THRESHOLD with at least LEAST elements: for normal z, 2e-9 for z_bias and 1e-9 for z_rms.
"""

from __future__ import annotations

import math

import torch

from moeracle.ref.bounds.band import Band
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import FORMATS, round_in_fp64, ulp

from ..cases.case import Case
from ..cases.record import record_of
from ..common.drift import Drift, Errors

SMALLEST = 1e-25  # below it FTZ and underflow have other laws
NOISIEST = 0.5  # ulp: elements whose own m is larger say nothing
RANDOM = ("normal", "outliers", "wide", "codes16")  # the recipes whose results are uniform in their ulp


def errors_of(case: Case, rules: Contract, stage: str = "out") -> Errors | None:
    """Return what errors a stage of a case may have under a contract; None where no test applies.

    None for recipes whose results are not uniform in their ulp, and where the result is the product of a value that
    was rounded to D: there the legal set is one value, or two that lie a whole ulp apart.

    Args:
        case: of one of the float ops.
        rules: the contract.
        stage: h, a, y or out for moe_w4a16, else out.
    """
    return record_of(case.op).errors(case, rules, stage) if case.data in RANDOM else None


def errors_of_silu(rules: Contract) -> Errors | None:
    """Return what errors silu and its product may have."""
    # One implementation of exp may lean to one side everywhere: the whole bound is its own.
    return Errors(1.0, 0.0) if rules.silu == "fp32" else None


def errors_of_sum(k: int, rules: Contract) -> Errors | None:
    """Return what errors a sum over k slots may have; None where each addition is rounded to D."""
    if rules.sum_in_dtype(k):
        return None
    if rules.adder.sums_nearest:
        return Errors(0.0, _independent(k))
    return Errors(0.5, _independent(k), k * rules.adder.mean_loss)


def errors_of_dot(K: int, rules: Contract) -> Errors:
    """Return what errors a dot product of K terms may have."""
    hoisted = rules.weight == "hoisted"
    terms = 2 * K if hoisted else K
    spread = _independent(min(terms - 1, rules.depth or terms))
    if rules.adder.nearest:
        return Errors(0.0, spread)
    loss = math.inf if hoisted else terms * rules.adder.mean_loss  # a hoisted sum is larger than its result
    return Errors(0.5, spread, loss)


def errors_of_gemm(case: Case, K: int, rules: Contract) -> Errors | None:
    """Return what errors an int4 GEMM of K inputs may have; None where a value that was rounded to D goes on."""
    late = rules.after_store(1 if case.G in (-1, K) else 2) or (rules.bias != "sum" and "bias" in case.flags)
    return None if late or rules.parts is not None else errors_of_dot(K, rules)


def _independent(n: int) -> float:
    """n independent errors, each uniform within 1/n of the bound, have this share of it as standard deviation."""
    return 1 / math.sqrt(3 * max(1, n))


def measure(errors: Errors, band: Band, got: torch.Tensor, rules: Contract, dtype: torch.dtype) -> Drift:
    """Return the Drift of some stored elements.

    Args:
        errors: the stage's.
        band: [n, m] before the store.  got: fp64 [n, m].
        rules, dtype: of the store.
    """
    mid, unit = band.mid, ulp(band.mid, dtype)
    bound = band.radius / unit
    size = mid.abs()
    mean = bound * errors.systematic
    if errors.systematic and errors.loss < math.inf:
        partial = (size + mid.square().mean(1, keepdim=True).sqrt()) / 2
        mean = torch.minimum(mean, errors.loss * partial / unit)
    reach = mean + errors.spread * bound
    use = (bound > 0) & (reach <= NOISIEST) & (size > SMALLEST) & (size < FORMATS[dtype][2] / 2) & got.isfinite()
    if not bool(use.any()):
        return Drift()
    mid, unit, got, bound, mean, reach = (t[use] for t in (mid, unit, got, bound, mean, reach))
    right = round_in_fp64(mid, dtype, rules.store_rounding)
    spread = mean.square() + (errors.spread * bound).square()
    excess = ((got - mid) / unit).square() - ((right - mid) / unit).square()
    if rules.store_rounding != "rne":  # there the square of one flip is not small, and means are what matters
        excess = torch.zeros_like(excess)
    sums = (
        (got - right) / unit * mid.sign(),
        mean,
        reach.clamp(min=1 / 12),
        excess,
        spread,
        reach.pow(3).mul(4).clamp(min=1 / 180),
    )
    return Drift(len(mid), *torch.stack(sums).sum(1).tolist())
