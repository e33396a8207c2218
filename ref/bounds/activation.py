"""Bands of activations: what a gate becomes in fp32, whoever computes exp, erf or tanh, and its product with up."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..activation import Activation
from ..contracts.contract import Contract
from .band import TINY, Band, rounded, to_fp32

__all__ = ["activation_band", "silu_mul_band"]

UNIT = 2.0**-23
# Where an activation turns: silu of the sigmoid's argument, the others of the gate.
MINIMUM = {"silu": -1.2784645427610738, "gelu": -0.7517915246935645, "gelu_tanh": -0.7524614220710162}
ERF_IS_ONE = 6.0  # erf(6) is 1 - 2e-17
TANH_IS_ONE = 12.0  # tanh(12) is 1 - 8e-11


def activation_band(gate: Band, contract: Contract) -> Band:
    """Return the Band of an activated gate computed in fp32, by the forms that kernels use.

    At -inf most forms multiply it by 0, so that NaN is legal beside the limit -0, but for relu2.
    silu: relative error (8 + 1.2|t| sigma(-t)) * 2^-23 with t = alpha g, 2.2 for 1.2 where alpha is not 1; none from
    t = 32 on, where 1 + exp(-t) is 1; below -87 exp(-t) may overflow, and the result may be -0. gelu and gelu_tanh:
    docs/numerics.md; 1 + erf and 1 + tanh cancel for negative gates, so that their error there is absolute. relu2: one
    product, rounded.

    Args:
        gate: Band of any shape.
        contract: its activation and its ftz are read.
    Returns:
        Band of gate's shape, limits of the activation applied.
    """
    return _or_nan(_activated(gate, contract), gate, contract)


def _or_nan(band: Band, gate: Band, contract: Contract) -> Band:
    """Let NaN be legal beside 0 where the gate is -inf."""
    at_end = gate.hi == -torch.inf
    if contract.activation.kind == "relu2" or not bool(at_end.any()):
        return band
    return Band(torch.where(at_end & (band.lo == 0), torch.nan, band.lo), band.hi)


def _activated(gate: Band, contract: Contract) -> Band:
    how = contract.activation
    gate = _of_ends(how.limited, gate)
    at_lo = _range(gate.lo, contract)
    if gate.hi is gate.lo:
        return _of_ends(how.capped, to_fp32(at_lo))
    at_hi = _range(gate.hi, contract)
    lo, hi = torch.minimum(at_lo.lo, at_hi.lo), torch.maximum(at_lo.hi, at_hi.hi)
    if how.kind in MINIMUM:
        lowest = MINIMUM[how.kind] / how.alpha
        turns = (gate.lo < lowest) & (gate.hi > lowest)
        bottom = _range(torch.full((), lowest, dtype=torch.float64, device=lo.device), contract)
        lo = torch.where(turns, torch.minimum(lo, bottom.lo), lo)
    return _of_ends(how.capped, to_fp32(Band(lo, hi)))


def _of_ends(fn: Callable[[torch.Tensor], torch.Tensor], band: Band) -> Band:
    """Return the Band of a function that never falls and rounds nothing."""
    lo = fn(band.lo)
    return Band(lo, lo if band.hi is band.lo else fn(band.hi))


def _range(gate: torch.Tensor, contract: Contract) -> Band:
    """Return the Band, not yet rounded to fp32, of what known gates become."""
    how = contract.activation
    g = gate if how.kind == "relu2" else gate.clamp(min=-800)  # -0 from here to -inf, where it is no product: inf * 0
    value = how.of_gate(g)
    radius, vanishes = {"silu": _of_silu, "gelu": _of_gelu, "gelu_tanh": _of_tanh, "relu2": _of_square}[how.kind](
        g, value, how
    )
    lo, hi = torch.where(radius.isinf(), value, value - radius), value + radius
    if contract.ftz:
        vanishes = vanishes | (value.abs() < 2.0**-125)
    return Band(
        torch.where(vanishes, torch.clamp(lo, max=0.0), lo), torch.where(vanishes, torch.clamp(hi, min=0.0), hi)
    )


Error = tuple[torch.Tensor, torch.Tensor]  # the radius, and where the result may be 0


def _of_silu(g: torch.Tensor, s: torch.Tensor, how: Activation) -> Error:
    t, grown = (g, 1.2) if how.alpha == 1 else (g * how.alpha, 2.2)
    error = torch.where(t < 32, s.abs() * ((8 + grown * t.abs() * (1 - torch.sigmoid(t))) * UNIT), 0.0)  # 0 at +inf too
    # Below 2^-152 every form gives 0: exp(-g) has overflowed, or exp(g) has underflowed.
    return error + torch.where((s.abs() < 2.0**-152) | (t >= 32), 0.0, TINY), t < -87.3


def _of_gelu(g: torch.Tensor, value: torch.Tensor, how: Activation) -> Error:
    """g/2 · s, s = 1 + erf(z) or erfc(-z): z has two roundings, either function may be 4 ulp off, then two more."""
    z = g * math.sqrt(0.5)
    s, slope = torch.special.erfc(-z), z.abs() * (2 / math.sqrt(math.pi)) * torch.exp(-z * z)
    large = z.abs() >= ERF_IS_ONE
    function = 4 * torch.where(large, s, torch.maximum(torch.erf(z).abs(), s))
    return _of_halves(g, value, 1.2 * slope + function + 1.5 * s, large)


def _of_tanh(g: torch.Tensor, value: torch.Tensor, how: Activation) -> Error:
    """g/2 · s, s = 1 + tanh(w) or 2·sigma(2w): w has up to ten roundings, tanh may be 2^-21 off, the sigmoid 8 ulp."""
    w = how.inner(g)
    s, slope = 2 * torch.sigmoid(2 * w), w.abs().clamp(max=800) / torch.cosh(w.clamp(-300, 300)).square()
    large = w.abs() >= TANH_IS_ONE
    function = torch.where(large, 8 * s, torch.clamp(8 * s, min=4.0))
    return _of_halves(g, value, 5 * slope + function + 1.5 * s, large)


def _of_halves(g: torch.Tensor, value: torch.Tensor, units: torch.Tensor, large: torch.Tensor) -> Error:
    """Return the radius |g|/2 · units · 2^-23: none where the value is g, and perhaps 0 where it is nearly that.

    From 2^127 on g·s overflows where it is halved only afterwards, as torch does on a CPU.
    """
    is_gate = large & (g > 0)
    radius = torch.where(is_gate, 0.0, g.abs() / 2 * units * UNIT)
    tiny = torch.where(is_gate | (value.abs() < 2.0**-152), 0.0, TINY)
    radius = torch.where(is_gate, 0.0, radius + tiny)
    return torch.where(g >= 2.0**127, torch.inf, radius), large & (g < 0)


def _of_square(g: torch.Tensor, value: torch.Tensor, how: Activation) -> Error:
    return torch.zeros_like(value), torch.zeros_like(value, dtype=torch.bool)


def silu_mul_band(h: Band, contract: Contract, dtype: torch.dtype) -> Band:
    """Return the Band of the activated gate times up, before a is stored: four corners of the two factors' Bands.

    Args:
        h: [R, 2I], gate columns first.
        contract: its activation is read, and its silu: whether the activated gate is rounded to D before the product.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
    Returns:
        Band [R, I].
    """
    half = h.lo.shape[1] // 2
    known = h.hi is h.lo
    gate_lo = h.lo[:, :half]
    gate = Band(gate_lo, gate_lo if known else h.hi[:, :half])
    s = _activated(gate, contract)
    way = contract.silu_rounding(dtype)
    if way is not None:
        s = rounded(s, contract, dtype, way)
    up_lo = h.lo[:, half:]
    up = _factor(Band(up_lo, up_lo if known else h.hi[:, half:]), contract.activation)
    corners = [s.lo * up.lo, s.hi * up.lo] + ([] if up.hi is up.lo else [s.lo * up.hi, s.hi * up.hi])
    lo, hi = corners[0], corners[0]
    for corner in corners[1:]:
        lo, hi = torch.minimum(lo, corner), torch.maximum(hi, corner)
    band = _or_nan(to_fp32(Band(lo, hi)), gate, contract)
    infinite = up.lo.isinf() & (up.lo == up.hi)
    return _times_infinity(band, s, gate, up.lo, infinite) if bool(infinite.any()) else band


def _times_infinity(band: Band, s: Band, gate: Band, up: torch.Tensor, infinite: torch.Tensor) -> Band:
    """Return the Band where up is infinite: an activated gate that may have vanished makes NaN, any other an infinity.

    Whether it vanishes depends on the form: at g = -88, g / (1 + exp(-g)) is a normal number, and 0 by a division that
    gives 0 past 2^126 or a reciprocal that flushes; g * exp(g) / (1 + exp(g)) ends 15 later. Its sign is the gate's:
    of a gate that may have either sign the Band stays as it is.
    """
    either = infinite & ~((gate.lo < 0) & (gate.hi > 0))
    either &= (s.lo <= 0) & (s.hi >= 0) & ((s.lo != 0) | (s.hi != 0))
    below = torch.where(gate.hi <= 0, -up, up) < 0
    lo = torch.where(either, torch.where(below, torch.nan, torch.inf), band.lo)
    return Band(lo, torch.where(either, torch.where(below, -torch.inf, torch.nan), band.hi))


def _factor(up: Band, how: Activation) -> Band:
    """Return the Band of what up becomes: up + 1 is rounded to fp32, or not at all where the product is fused."""
    up = _of_ends(how.within, up)
    if not how.up:
        return up
    exact = Band(up.lo + how.up, up.hi + how.up)
    near = to_fp32(exact)
    return Band(torch.minimum(exact.lo, near.lo), torch.maximum(exact.hi, near.hi))
