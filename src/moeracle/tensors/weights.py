"""Weights as tests have them: packed ones, (packed, scale, zero) and a layout's name, or dequantized values."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.properties.cases.optable import words_of_bits, zero_forms
from moeracle.ref.weights.dense import DenseWeight
from moeracle.ref.weights.layouts import PACKINGS_OF, Packing
from moeracle.ref.weights.marlin import unpack_marlin, unpack_marlin_scales, unpack_marlin_zeros
from moeracle.ref.weights.weight import OF_BITS, Int4Weight, zero_layouts_that_fit

from .errors import NotJudged

Weight = Int4Weight | DenseWeight


def as_weight(name: str, given: Any, layout: str | None, zero_layout: str | None, bits: int = 4) -> Weight:
    """Return a weight argument in the one form that the judge reads.

    Args:
        name: the argument's.
        given: an Int4Weight or Int8Weight; (packed, scale) or (packed, scale, zero); or a float tensor, the
            dequantized weight.
        layout, zero_layout: of packed and zero. None for zero_layout takes the only form that fits.
        bits: of a packed code, 4 or 8.
    Raises:
        NotJudged: in one line: what was given and what fits.
    """
    if isinstance(given, (Int4Weight, DenseWeight)):
        return given
    if isinstance(given, torch.Tensor):
        if not given.is_floating_point():
            forms = "an Int4Weight, (packed, scale, zero) with layout=…, or the dequantized weight"
            raise NotJudged(f"{name}: got a tensor of {given.dtype}, must be {forms}")
        return DenseWeight(given)
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        got = f"{len(given)} values" if isinstance(given, (tuple, list)) else type(given).__name__
        raise NotJudged(f"{name}: got {got}, must be an Int4Weight, (packed, scale, zero) or a dequantized tensor")
    packed, scale, zero = (*given, None)[:3]
    for part, value in (("packed", packed), ("scale", scale), ("zero", zero)):
        if not isinstance(value, torch.Tensor) and not (part == "zero" and value is None):
            raise NotJudged(f"{name}: got {part} as {type(value).__name__}, must be a tensor")
    if bits not in PACKINGS_OF:
        raise NotJudged(f"bits: got {bits!r} for {name}, must be {' or '.join(map(str, PACKINGS_OF))}")
    if layout == "marlin":
        return _of_marlin(name, packed, scale, zero, bits)
    known = PACKINGS_OF[bits]
    if layout not in known:
        fitting = [one for one, packing in known.items() if _holds(packing.dtype, packed.dtype)]
        names = ", ".join(fitting) or f"{', '.join(known)}, none of which holds {packed.dtype}"
        wide = "" if bits == 4 else " with codes of 8 bits"
        others = [width for width, table in PACKINGS_OF.items() if layout in table]
        hint = f" (it holds codes of {others[0]} bits: bits={others[0]})" if others else ""
        raise NotJudged(f"layout: got {layout!r} for {name}{wide}, must be one of {names}{hint}")
    return _packed(name, packed, scale, zero, layout, zero_layout, bits)


def _packed(
    name: str,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    layout: str,
    zero_layout: str | None,
    bits: int,
) -> Int4Weight:
    packing = PACKINGS_OF[bits][layout]
    if packed.dtype == torch.uint32 and packing.dtype == torch.int32:
        packed = packed.view(torch.int32)
    if packed.ndim < 2 or not _holds(packing.dtype, packed.dtype):
        must = f"must be {packing.dtype} of at least two dimensions in layout {layout!r}"
        bytewise = packed.dtype in (torch.uint8, torch.int8)
        hint = " (words given as bytes fit as .view(torch.int32), codes must be packed)" if bytewise else ""
        raise NotJudged(f"{name}: got packed as {packed.dtype} {list(packed.shape)}, {must}{hint}")
    *lead, N, K = packing.logical_shape(tuple(packed.shape))
    rows = (*lead, N)
    groups = _groups(scale, rows, K) or _groups(scale.mT if scale.ndim > 1 else scale, rows, K)
    if groups is None:
        hint = "; it fits as scale[..., None]" if tuple(scale.shape) == rows else ""
        others = [other for other, known in PACKINGS_OF[bits].items() if _fit(packed, scale, known)]
        hint = hint or (f"; they fit layout {' or '.join(map(repr, others))}" if others else "")
        must = f"must be [{', '.join(map(str, rows))}, K/G] with K = {K} in layout {layout!r}"
        raise NotJudged(f"{name}: got scale {list(scale.shape)}, {must}{hint}")
    form = "unpacked" if zero is None else _zero_form(name, zero, (*rows, groups), layout, zero_layout, bits)
    if zero is not None and (form, zero.dtype, bits) == ("unpacked", torch.uint8, 4) and zero.numel():
        most = int(zero.max())
        if most > 15:
            raise NotJudged(f"{name}: got a zero point of {most}, must be 0..15 (zero_layout 'unpacked': one a byte)")
    try:
        return OF_BITS[bits](packed, scale, zero, layout, -1 if groups == 1 else K // groups, form)
    except ValueError as error:
        raise NotJudged(f"{name}: {error}") from None


def _fit(packed: torch.Tensor, scale: torch.Tensor, packing: Packing) -> bool:
    """Say whether packed and scale agree in a layout."""
    if not _holds(packing.dtype, packed.dtype):
        return False
    *lead, N, K = packing.logical_shape(tuple(packed.shape))
    return _groups(scale, (*lead, N), K) is not None


def _of_marlin(name: str, words: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, bits: int) -> Int4Weight:
    """Return the weight that Marlin's words, scales and zero points hold, as `gptq` has it."""
    if bits == 8 and zero is not None:
        raise NotJudged(f"{name}: got zero points in Marlin's tiles of 8-bit codes, must be none (uint8b128)")
    try:
        codes, read = unpack_marlin(words, bits), unpack_marlin_scales(scale)
        zeros = None if zero is None else unpack_marlin_zeros(zero)
        return OF_BITS[bits].from_codes(codes, read, zeros, layout="gptq")
    except ValueError as error:
        raise NotJudged(f"{name}: {error}") from None


def _groups(scale: torch.Tensor, rows: tuple[int, ...], K: int) -> int | None:
    """Return K/G if a scale fits [rows…, K/G], else None."""
    fits = scale.ndim == len(rows) + 1 and tuple(scale.shape[:-1]) == rows and scale.shape[-1] > 0
    return scale.shape[-1] if fits and K % scale.shape[-1] == 0 else None


def _zero_form(name: str, zero: torch.Tensor, shape: tuple[int, ...], layout: str, asked: str | None, bits: int) -> str:
    """Return the form that a zero point is stored in: the one asked for, or the only one that fits this layout."""
    if asked is not None:
        return asked
    # Of forms that look alike, only those that the layout is found with.
    known = zero_forms(words_of_bits(bits))[layout].values()
    fitting = [form for form in zero_layouts_that_fit(zero, shape, bits) if form in known]
    if len(fitting) < 2:
        return fitting[0] if fitting else "unpacked"
    v1 = " (gptq_v1 stores z-1)" if "gptq_v1" in fitting else ""
    got = f"{name}: got zero as {zero.dtype} {list(zero.shape)}"
    raise NotJudged(f"{got}, which fits {' and '.join(fitting)}{v1}; must be said by zero_layout=…")


def _holds(stored: torch.dtype, got: torch.dtype) -> bool:
    """Say whether words of a dtype may be stored as another: bytes may be signed."""
    return got == stored or (stored == torch.uint8 and got == torch.int8)
