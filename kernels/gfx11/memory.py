"""Global memory and LDS; every access is checked against what was allocated.

Global addresses are real 64-bit numbers: buffers lie in one arena with gaps between them, so that an access past an end
is an error with its instruction, wave and lane, not somebody else's data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import Instruction
from .registers import Group

Array = NDArray[Any]
BASE, GAP = 0x7F0000000000, 4096


class Memory:
    """Global buffers in one arena, and the LDS of each workgroup in another."""

    def __init__(self, buffers: list[Array], groups: int, lds: int) -> None:
        self.starts, at = [], GAP
        for buffer in buffers:
            self.starts.append(at)
            at += (buffer.nbytes + GAP + 255) // 256 * 256
        self.sizes = [b.nbytes for b in buffers]
        self.arena = np.zeros(at + GAP, np.uint8)
        for start, buffer in zip(self.starts, buffers, strict=True):
            self.arena[start : start + buffer.nbytes] = np.ascontiguousarray(buffer).reshape(-1).view(np.uint8)
        self.lds_size = lds
        self.lds = np.zeros(max(groups * lds, 4), np.uint8)
        self.group_of = np.zeros(0, np.int64)  # workgroup of each wave, set by the machine

    def address(self, buffer: int) -> int:
        """Return the address of a buffer's first byte."""
        return BASE + self.starts[buffer]

    def contents(self, buffer: int) -> Array:
        """Return a buffer's bytes as they are now."""
        return self.arena[self.starts[buffer] : self.starts[buffer] + self.sizes[buffer]]

    def places(self, addresses: Array, size: int, active: Array, one: Instruction) -> Array:
        """Turn global addresses (uint64) into arena indices; inactive lanes get 0.

        Raises:
            IndexError: an active lane reaches outside every buffer.
        """
        at = np.where(active, addresses - np.uint64(BASE), np.uint64(0)).astype(np.int64)
        starts, ends = np.array(self.starts), np.array(self.starts) + np.array(self.sizes)
        which = np.searchsorted(starts, at, "right") - 1
        good = (which >= 0) & (at + size <= ends[which])
        if not np.all(good | ~active):
            where = np.argwhere(active & ~good)[0]
            reached = f"{size} bytes at {int(addresses[tuple(where)]):#x}"
            raise IndexError(f"{one}: lane {where[-1]} of wave {where[0]}: {reached} lie outside every buffer")
        return at

    def lds_places(self, offsets: Array, size: int, active: Array, group: Group, one: Instruction) -> Array:
        """Turn LDS offsets (uint32 [waves, 32]) into indices of the LDS arena.

        Raises:
            IndexError: an active lane reaches outside its workgroup's LDS.
        """
        wide = offsets.astype(np.int64)
        bad = active & (wide + size > self.lds_size)
        if bad.any():
            where = np.argwhere(bad)[0]
            reached = f"{size} bytes at LDS offset {wide[tuple(where)]}, of {self.lds_size}"
            raise IndexError(f"{one}: lane {where[1]} of wave {where[0]}: {reached}")
        return np.where(active, wide + self.group_of[group][:, None] * self.lds_size, 0)


def load_words(arena: Array, places: Array, size: int) -> list[Array]:
    """Read `size` bytes at each place, as uint32 words (the last one zero-extended)."""
    if size % 4 == 0 and not np.any(places & 3):
        words, first = arena[: arena.size // 4 * 4].view(np.uint32), places >> 2
        return [words[first + i] for i in range(size // 4)]
    taken = arena[places[..., None] + np.arange(size)].astype(np.uint32)
    return [
        sum((taken[..., i + j] << np.uint32(8 * j) for j in range(min(4, size - i))), np.zeros(places.shape, np.uint32))
        for i in range(0, size, 4)
    ]


def save_words(arena: Array, places: Array, active: Array, words: list[Array], size: int) -> None:
    """Write `size` bytes at each active place; where two lanes hit the same bytes the higher lane's value stays."""
    at = places[active]
    for i in range(size):
        arena[at + i] = ((words[i // 4][active] >> np.uint32(8 * (i % 4))) & np.uint32(0xFF)).astype(np.uint8)
