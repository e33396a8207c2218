"""Vector instructions that move data across lanes, or to and from scalar registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import numbers as n
from .decode import VGPR, Instruction
from .lanes import first_active, permlane16, permlanex16
from .registers import EXEC, LANE_BITS, Group, Registers

Array = NDArray[Any]
Step = Callable[[Registers, Group], None]


def to_scalar(one: Instruction) -> Step:
    def run(regs: Registers, group: Group) -> None:
        bits = regs.read(one.sources[0], group, "b32")
        if bits.shape[1] == 1:
            bits = np.broadcast_to(bits, (bits.shape[0], 32))
        if one.name == "V_READLANE_B32":
            lane = regs.read_scalar(one.sources[1], group).astype(np.int64) & 31
            picked = np.take_along_axis(bits, lane[:, None], 1)[:, 0]
        else:
            picked = first_active(bits, regs.mask(EXEC, group))
        regs.write_scalar(one.destination, group, picked)

    return run


def _writelane(one: Instruction) -> Step:
    def run(regs: Registers, group: Group) -> None:
        lane = regs.read_scalar(one.sources[1], group) & np.uint32(31)
        only = (np.uint32(1) << lane)[:, None] & LANE_BITS != 0
        regs.write(
            one.destination - VGPR, group, np.broadcast_to(regs.read(one.sources[0], group, "b32"), only.shape), only
        )

    return run


def _permute(one: Instruction) -> Step:
    across = permlanex16 if one.name == "V_PERMLANEX16_B32" else permlane16

    def run(regs: Registers, group: Group) -> None:
        low, high = (regs.read(s, group, "b32")[:, :1] for s in one.sources[1:3])
        moved = across(regs.read(one.sources[0], group, "b32"), low, high)
        regs.write(one.destination - VGPR, group, moved, regs.mask(EXEC, group))

    return run


def _mbcnt(one: Instruction) -> Step:
    below = LANE_BITS - np.uint32(1) if "_LO_" in one.name else np.zeros(32, np.uint32)

    def run(regs: Registers, group: Group) -> None:
        mask, base = (regs.read(s, group, "b32") for s in one.sources[:2])
        active, count = regs.mask(EXEC, group), n.popcount(np.ascontiguousarray(mask & below))
        regs.write(one.destination - VGPR, group, np.broadcast_to(count + base, active.shape), active)

    return run


def _nothing(one: Instruction) -> Step:
    return lambda regs, group: None


ACROSS: dict[str, Callable[[Instruction], Step]] = {
    "V_READFIRSTLANE_B32": to_scalar,
    "V_READLANE_B32": to_scalar,
    "V_WRITELANE_B32": _writelane,
    "V_PERMLANEX16_B32": _permute,
    "V_PERMLANE16_B32": _permute,
    "V_MBCNT_LO_U32_B32": _mbcnt,
    "V_MBCNT_HI_U32_B32": _mbcnt,
    "V_NOP": _nothing,
}
