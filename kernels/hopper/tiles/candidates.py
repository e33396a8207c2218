"""Tiles of the Hopper layer that tuning tries, by rows an expert; what was never near the best is not among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from moeracle.kernels.hopper.tiles.layers import Direct, Duo, Few, Ring, Stream, Tile


def candidates(rows_per_expert: float) -> Iterator[Tile]:
    """Yield the tiles worth trying at this many rows an expert, before they are fitted to a weight."""
    each = min(rows_per_expert, 512.0)  # beyond, the largest tiles
    for m in (8, 16, 32):
        if m / 8 <= max(1.0, each) and each <= 24:
            splits = (1, 2, 4) if each <= 0.5 else (1,)
            for n, split, depth in itertools.product((64, 128), splits, (2, 4, 8)):
                if n * split <= 256:
                    yield Few(m, n, split, depth)
            if m == 8:
                yield from (Few(8, 64, 4, 2, 64), Few(8, 64, 4, 4, 64))  # more programs fit
                yield from (Few(8, 64, 2, 6), Few(8, 64, 1, 6))  # steps of a K of 768
    for m in (8, 16, 32, 64, 128):
        if not each / 4 <= m <= max(3 * each, 8):
            continue
        if m <= 64:
            yield from (Stream(m, 64, 4, 4), Stream(m, 64, 8, 4), Stream(m, 128, 4, 2), Stream(m, 128, 8, 2))
            yield Stream(m, 128, 2, 2, 128)
        if m <= 16:
            yield from (Direct(m, 128, 256, 2, 8, 8, 64), Direct(m, 128, 256, 3, 8, 8, 64))
            yield from (
                Direct(m, 128, 256, 3, 8, 8, 80),
                Direct(m, 64, 256, 3, 4, 8, 64),
                Direct(m, 64, 256, 3, 4, 8, 80),
            )
            yield from (Direct(m, 64, 256, 3, 4, 8, 96), Ring(m, 128, 128, 4, 4, 8))
        elif m == 32:
            yield from (Direct(32, 128, 256, 2, 8, 16, 80), Direct(32, 128, 256, 2, 8, 8, 80))
            yield from (Direct(32, 64, 256, 2, 4, 16, 96), Direct(32, 128, 256, 3, 8, 16))
            yield from (Ring(32, 128, 128, 4, 4, 16), Ring(32, 128, 128, 3, 8, 16), Duo(32, 256, 128, 5, 16))
        elif m == 64:
            yield from (Direct(64, 128, 256, 2, 8, 16), Direct(64, 128, 256, 2, 8, 32), Direct(64, 128, 256, 3, 8, 32))
            yield from (Direct(64, 128, 128, 3, 8, 32), Ring(64, 128, 128, 3, 8, 32), Ring(64, 128, 64, 5, 4, 32))
            yield from (Ring(64, 256, 64, 4, 8, 32, 128), Ring(64, 256, 64, 5, 8, 32, 128))
            yield from (Duo(64, 256, 128, 4, 32), Duo(64, 256, 128, 6, 32), Duo(64, 256, 128, 4, 16))
        else:
            yield from (Direct(128, 128, 128, 3, 8, 32, 128), Direct(128, 128, 128, 2, 8, 32, 128))
            yield from (Direct(128, 128, 64, 4, 8, 32, 128), Direct(128, 128, 64, 4, 8, 64, 128))
            yield from (Duo(128, 256, 64, 8, 32), Duo(128, 256, 64, 8, 16), Duo(128, 256, 64, 6, 64))
            yield from (Ring(128, 128, 64, 4, 8, 64), Ring(128, 128, 64, 5, 8, 32), Ring(128, 128, 64, 5, 4, 32))
