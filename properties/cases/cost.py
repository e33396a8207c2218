"""How much computing a case takes, estimated from its text: what bounds a search, alike on every machine."""

from __future__ import annotations

from math import prod

from moeracle.ref.errors import require

from .case import Case
from .optable import OPS

PER_EXPERT = 1 << 21  # multiplications that take as long as the calls for one expert's weight, however small it is
PER_ELEMENT = 32  # multiplications that take as long as one element of an op without a matrix product
SMALL = 1 << 24  # operations that take as long as judging the smallest case, about 30 ms

MOST_NUMBERS = 1 << 25  # of a case that a file names, unless the file holds as many


def multiplications(case: Case) -> int:
    """Return about how many multiplications one simulation takes, reading the weights included; 0 without weights."""
    sizes = case.sizes
    rows = max(1, case.R)
    weights = [n * k for n, k in OPS[case.op].matrix_shapes(sizes).values()]
    return sum(weights) * (rows + 16 * min(sizes.get("E", 1), rows))


def operations(case: Case) -> int:
    """Return about how long one simulation takes, in multiplications of a matrix product."""
    sizes = case.sizes
    experts = sizes.get("E", 1)
    used = min(experts, case.R) if "T" in sizes else experts
    if "T" in sizes and multiplications(case):
        return multiplications(case) + PER_EXPERT * used
    uncounted = "GB" if case.routing == "-" else "GBE"  # an op that is given routes touches each row once
    elements = prod(size for letter, size in sizes.items() if letter not in uncounted)
    return PER_ELEMENT * elements + PER_EXPERT * used


def numbers(case: Case) -> int:
    """Return about how many numbers the tensors of a case hold, its weights unpacked: what bounds its memory."""
    sizes, rows = case.sizes, max(1, case.R)
    shapes = OPS[case.op].matrix_shapes(sizes).values()
    if not shapes:
        return prod(size for size in sizes.values() if size > 0)
    return sizes.get("E", 1) * sum(n * k for n, k in shapes) + rows * sum(n + k for n, k in shapes)


def require_numbers(case: Case, where: str, most: int = MOST_NUMBERS) -> None:
    """Raise ValueError, in one line, if a case that a file names would take more memory than a file may ask for."""
    asked = numbers(case)
    require(asked <= most, f"{where}: {case} has about {asked:,} numbers, must have at most {most:,}")


class Allowance:
    """What a search may still cost.

    Args:
        left: in smallest cases; a larger one counts as several.
    """

    def __init__(self, left: int) -> None:
        self.left = left

    def covers(self, case: Case) -> bool:
        """Say whether a case can still be judged, and take its cost off if so."""
        price = 1 + operations(case) // SMALL
        if price > self.left:
            return False
        self.left -= price
        return True
