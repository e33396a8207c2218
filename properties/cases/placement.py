"""Expert placement: which experts are on this rank, and which number each has there, by a word of the routing field.

    ep2      the first half, in order: what rank 0 of two holds     ep2last  the other half: rank 1 of two
    eprobin  every n-th expert, n and the rank by seed              epany    any of them, any number, in any order

Only under `ep2` is an expert's local number its global one: a kernel that takes one for the other is right there alone.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..common.generator import Stream
from .optable import PLACEMENTS


def experts_here(E: int, words: Collection[str], seed: int) -> list[int] | None:
    """Return the experts of this rank, by local number; None where no word of the case places any: all are here.

    Args:
        E: experts of all ranks, at least 1.
        words: a case's modifiers.
        seed: the case's.
    """
    word = next((word for word in PLACEMENTS if word in words), None)
    half = (E + 1) // 2
    if word is None:
        return None
    if word == "ep2":
        return list(range(half))
    if word == "ep2last":
        return list(range(half, E)) or [0]
    stream = Stream(seed, "experts here")
    if word == "eprobin":
        ranks = min(E, 2 + int(stream.below((1,), 3)[0]))
        return list(range(int(stream.below((1,), ranks)[0]), E, ranks))
    count = 1 + int(stream.below((1,), E)[0])
    order = stream.permutation(E)
    if bool((order[:count] == np.arange(count)).all()):  # as if there were no map
        order = np.roll(order, 1)
    return [int(e) for e in order[:count]]
