"""Registers of many waves at once: every array's leading axes are [register, wave], vectors have 32 lanes behind.

Waves that stand at the same instruction execute it together, as one numpy operation over [waves, 32].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import LITERAL, VGPR, Operand

LANES = 32
VCC, NULL, M0, EXEC, SCC = 106, 124, 125, 126, 253
SCALARS = 128
Array = NDArray[Any]
Group = Any  # an index array of waves, or slice(None)
FLOATS = {240: 0.5, 241: -0.5, 242: 1.0, 243: -1.0, 244: 2.0, 245: -2.0, 246: 4.0, 247: -4.0, 248: 0.15915494}
LANE_BITS = np.uint32(1) << np.arange(LANES, dtype=np.uint32)
# How a float constant is written for an operand type; all else takes fp32's bits.
HALF_TYPES = ("f16", "pk16")
HALVES = ("f16", "u16", "i16", "b16")
UPPER = 128


class Registers:
    """The registers of W waves.

    Args:
        waves: W.
        vgprs: vector registers a lane.
    """

    def __init__(self, waves: int, vgprs: int) -> None:
        self.waves = waves
        self.vector = np.zeros((vgprs, waves, LANES), np.uint32)
        self.scalar = np.zeros((SCALARS, waves), np.uint32)
        self.scc = np.zeros(waves, np.bool_)

    # ---- masks ----
    def mask(self, register: int, group: Group) -> Array:
        """Return a scalar register as a lane mask [waves, 32]."""
        return (self.scalar[register, group][:, None] & LANE_BITS) != 0

    def set_mask(self, register: int, group: Group, lanes: Array) -> None:
        """Write a lane mask [waves, 32] to a scalar register."""
        if register != NULL:
            self.scalar[register, group] = (lanes * LANE_BITS).sum(-1, dtype=np.uint64).astype(np.uint32)

    # ---- scalar operands ----
    def read_scalar(self, operand: Operand, group: Group, words: int = 1) -> Array:
        """Return a scalar source as uint32 [waves], or uint64 for two words."""
        code = operand.code
        if code < SCALARS and words == 1:
            return self.scalar[code, group] if code != NULL else np.zeros_like(self.scalar[0, group])
        if code < SCALARS:
            low, high = self.scalar[code, group], self.scalar[code + 1, group]
            if code == NULL:
                low, high = np.zeros_like(low), np.zeros_like(high)
            return low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
        like = self.scalar[0, group]
        if code == SCC:
            value = self.scc[group].astype(np.uint32)
            return value if words == 1 else value.astype(np.uint64)
        return np.full(
            like.shape, constant(operand, "u32" if words == 1 else "u64"), np.uint32 if words == 1 else np.uint64
        )

    def write_scalar(self, code: int, group: Group, value: Array, words: int = 1) -> None:
        """Write uint32 [waves], or uint64 to two registers; writing to null does nothing."""
        if code == NULL:
            return
        if words == 1:
            self.scalar[code, group] = value
        else:
            self.scalar[code, group] = (value & np.uint64(0xFFFFFFFF)).astype(np.uint32)
            self.scalar[code + 1, group] = (value >> np.uint64(32)).astype(np.uint32)

    # ---- vector operands ----
    def read(self, operand: Operand, group: Group, kind: str) -> Array:
        """Return a source's bits as uint32 [waves, 32] (or [waves, 1] for scalars), uint64 for 64-bit kinds."""
        code, wide, half = operand.code, kind.endswith("64"), kind in HALVES
        if code >= VGPR:
            number, high = code - VGPR, operand.high
            if half and operand.short and number >= UPPER:
                number, high = number - UPPER, True
            if wide:
                low, high_word = self.vector[number, group], self.vector[number + 1, group]
                return low.astype(np.uint64) | (high_word.astype(np.uint64) << np.uint64(32))
            bits = self.vector[number, group]
            return bits if not half else bits >> np.uint32(16) if high else bits & np.uint32(0xFFFF)
        if code < SCALARS or code == SCC:
            bits = self.read_scalar(operand, group, 2 if wide else 1)[:, None]
            return bits if not half else bits >> np.uint32(16) if operand.high else bits & np.uint32(0xFFFF)
        count = self.scalar[0, group].shape[0]
        value = constant(operand, kind)
        return np.full((count, 1), value & 0xFFFF if half else value, np.uint64 if wide else np.uint32)

    def write(self, register: int, group: Group, value: Array, active: Array) -> None:
        """Write uint32 [waves, 32] to a vector register's active lanes; uint64 to a pair of them."""
        if value.dtype == np.uint64:
            self.write(register, group, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32), active)
            self.write(register + 1, group, (value >> np.uint64(32)).astype(np.uint32), active)
            return
        self.vector[register, group] = np.where(active, value, self.vector[register, group])

    def write_half(self, register: int, group: Group, value: Array, active: Array, high: bool) -> None:
        """Write the low 16 bits of `value` to one half of a vector register; the other half stays."""
        old = self.vector[register, group]
        low16 = np.uint32(0xFFFF)
        new = (old & low16) | (value << np.uint32(16)) if high else (old & ~low16) | (value & low16)
        self.vector[register, group] = np.where(active, new, old)


def constant(operand: Operand, kind: str) -> int:
    """Return the bits that a constant operand stands for in an operand of this kind.

    Raises:
        ValueError: a source code that is not modelled.
    """
    code = operand.code
    if code == LITERAL:
        if kind == "f64":
            return operand.literal << 32
        return (
            operand.literal - (1 << 32) & (1 << 64) - 1 if kind == "i64" and operand.literal >> 31 else operand.literal
        )
    bits = 64 if kind.endswith("64") else 32
    if 128 <= code <= 192:
        return code - 128
    if 193 <= code <= 208:
        return (192 - code) & ((1 << bits) - 1)
    if code in FLOATS:
        if kind in HALF_TYPES:
            return int(np.float16(FLOATS[code]).view(np.uint16))
        if kind == "f64":
            return int(np.float64(FLOATS[code]).view(np.uint64))
        return int(np.float32(FLOATS[code]).view(np.uint32))
    raise ValueError(f"source operand {code} is not modelled")
