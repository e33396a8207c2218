"""Across lanes: DPP patterns, permlanex16, readlane, and the LDS unit's bpermute and swizzle, on uint32 [waves, 32]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import Dpp

Array = NDArray[Any]
LANE = np.arange(32)
ROW = LANE & 16


def dpp_source(control: int) -> tuple[Array, Array]:
    """Return for each lane the lane that a DPP control word reads, and whether that lane exists in the row.

    Args:
        control: dpp_ctrl of DPP16: 0..255 quad_perm, 0x101.. row_shl, 0x111.. row_shr, 0x121.. row_ror, 0x140
            row_mirror, 0x141 row_half_mirror, 0x150.. row_share, 0x160.. row_xmask.
    Raises:
        ValueError: a control word that gfx11 does not have.
    Source: AMD, "RDNA3 Instruction Set Architecture", data parallel primitives.
    """
    inside, n = LANE & 15, control & 15
    exists = np.ones(32, np.bool_)
    if control < 0x100:
        place = (LANE & ~3 & 15) | ((control >> 2 * (LANE & 3)) & 3)
    elif 0x101 <= control <= 0x10F:
        place, exists = inside + n, inside + n < 16
    elif 0x111 <= control <= 0x11F:
        place, exists = inside - n, inside >= n
    elif 0x121 <= control <= 0x12F:
        place = (inside - n) & 15
    elif control == 0x140:
        place = 15 - inside
    elif control == 0x141:
        place = (inside & 8) | (7 - (inside & 7))
    elif 0x150 <= control <= 0x15F:
        place = np.full(32, n)
    elif 0x160 <= control <= 0x16F:
        place = inside ^ n
    else:
        raise ValueError(f"dpp_ctrl: got {control:#x}, which gfx11 does not have")
    return np.where(exists, ROW | (place & 15), LANE), exists


def apply_dpp(dpp: Dpp, bits: Array, active: Array) -> tuple[Array, Array]:
    """Return source 0 as DPP rearranges it, and which lanes write a result.

    A lane whose source lane does not exist or is inactive reads 0 if bound_ctrl is set, and else keeps its destination.

    Args:
        bits: uint32 [waves, 32].
        active: bool [waves, 32], the exec mask.
    """
    source, exists = dpp_source(dpp.control)
    valid = exists & (active[:, source] | dpp.inactive)
    moved = np.where(valid, bits[:, source], np.uint32(0))
    rows = (dpp.row_mask >> (LANE >> 4)) & 1
    banks = (dpp.bank_mask >> ((LANE >> 2) & 3)) & 1
    enabled = (rows & banks).astype(np.bool_)
    return moved, active & enabled & (valid | dpp.bound)


def permlanex16(bits: Array, low: Array, high: Array) -> Array:
    """Return V_PERMLANEX16_B32: lane i of a row reads, in the other row, the lane that the i-th nibble names.

    Args:
        bits: uint32 [waves, 32].
        low, high: uint32 [waves, 1]: nibbles of lanes 0..7 and 8..15.
    """
    select = np.concatenate(
        [(low >> np.uint32(4 * i)) & 15 for i in range(8)] + [(high >> np.uint32(4 * i)) & 15 for i in range(8)], 1
    )
    both = np.concatenate([select, select], 1).astype(np.int64)
    return np.take_along_axis(bits, (ROW ^ 16) | both, 1)


def permlane16(bits: Array, low: Array, high: Array) -> Array:
    """Return V_PERMLANE16_B32: as permlanex16, in the lane's own row."""
    swapped = permlanex16(bits, low, high)
    return np.concatenate([swapped[:, 16:], swapped[:, :16]], 1)


def first_active(bits: Array, active: Array) -> Array:
    """Return V_READFIRSTLANE_B32: the lowest active lane's value, lane 0's where none is active, as [waves]."""
    return np.take_along_axis(bits, active.argmax(1)[:, None], 1)[:, 0]


def bpermute(address: Array, data: Array, active: Array) -> Array:
    """Return DS_BPERMUTE_B32: each lane reads data of lane (address / 4) % 32; an inactive lane's data reads as 0."""
    lane = ((address >> np.uint32(2)) & np.uint32(31)).astype(np.int64)
    return np.take_along_axis(np.where(active, data, np.uint32(0)), lane, 1)


def swizzle(offset: int, data: Array, active: Array) -> Array:
    """Return DS_SWIZZLE_B32 in bit-mask mode (offset < 0x8000) or quad mode."""
    if offset & 0x8000:
        if offset & 0x7F00:
            raise ValueError(f"ds_swizzle_b32: offset {offset:#x} is not modelled")
        lane = (LANE & ~3) | ((offset >> 2 * (LANE & 3)) & 3)
    else:
        lane = (LANE & offset & 31 | offset >> 5 & 31) ^ (offset >> 10 & 31)
    return np.where(active[:, lane], data[:, lane], np.uint32(0))
