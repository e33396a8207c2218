"""K in parts: where it is cut, found from sums whose last bits a store in D takes away.

1 and 2^-(p+2) beside each other, -1 elsewhere: in one part fp32 keeps 2^-(p+2); where parts are stored in D, a part
that holds the first two is 1, and nothing is left. So each input tells whether it shares the part of another. What adds
in D throughout loses it everywhere, and has no parts. Then everything else is asked of inputs of one part alone.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations

import torch

from moeracle.ref.contracts.parts import Parts
from moeracle.ref.rounding import FORMATS

from .drive import Dots
from .facts import left_of
from .found import MEASURED, UNDECIDED, Inference
from .report import note
from .reveal import Counter, NotRevealedError, reveal
from .site import site_of
from .tree import clades, order_clades

STEP = 8  # parts are whole multiples of so many inputs
NEAR = (1, 4)  # where 2^-(p+2) stands beside 1: in another chain of a kernel that adds a few products in D
UNITS = (1, 8, 16, 32, 64, 128, 256)
ORDERS = ("sequential", "reversed", "pairwise", "halves")
POWERS = range(4, 24)


class PartDots(Dots):
    """One part of a GEMM's K, as if it were all of it: the other inputs are zeros.

    Args:
        whole: the GEMM.
        inputs: of its first part, in runs of `run` neighbours.
        run: how many.
    """

    def __init__(self, whole: Dots, inputs: list[int], run: int) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole, self.inputs, self.K, self.G = whole, inputs, len(inputs), min(whole.G, run)
        if len(self.groups) > len(set(self.groups)):  # runs that share a scale
            self.G = self.K
        self.gaps = tuple(gap for gap in whole.gaps if gap < run) if max(whole.gaps, default=0) < run else ()

    @property
    def groups(self) -> list[int]:
        """Which of the whole row's groups each group of this part is."""
        return [k // self.whole.G for k in self.inputs[:: self.G]]

    def __call__(
        self, x: torch.Tensor, q: torch.Tensor | None = None, s: torch.Tensor | None = None, *, times: int = 0
    ) -> torch.Tensor:
        """Return the stored values [P, N] as Dots does; x, q and s are of this part."""
        whole, N = self.whole, self.N
        wide, codes, scales = torch.zeros(len(x), whole.K), torch.ones(N, whole.K), torch.ones(N, whole.K // whole.G)
        wide = wide.to(self.dtype)
        wide[:, self.inputs] = x.to(self.dtype)
        if q is not None:
            codes[:, self.inputs] = q.to(codes.dtype)
        if s is not None:
            touched = self.groups if self.G < self.K else sorted({k // whole.G for k in self.inputs})
            scales[:, touched] = s.to(scales.dtype).expand(N, len(touched))
        return whole(wide, codes, scales, times=times)

    @property
    def one_scale(self) -> bool:
        """Whether each row has one scale, not only each row of this part."""
        return self.whole.one_scale

    def others(self) -> list[tuple[str, Dots]]:
        """Return none: at another K the parts may be others."""
        return []

    def fitting(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole.fitting(x)

    def stored(self, sums: torch.Tensor, way: str) -> list[torch.Tensor]:
        return self.whole.stored(sums, way)


def find_parts(dots: Dots, result: Inference) -> tuple[Parts | None, Dots]:
    """Return how K is cut into parts that are stored in D, and how the first is driven; None, dots if it is not.

    Args:
        dots: the whole GEMM.
        result: findings are put in.
    """
    if not dots.calls.asks_parts or "weight" not in dots.record.inferred or dots.K < 4 * STEP:
        return None, dots
    shared = _with_first(dots)
    if all(shared) or not any(shared[1:]) or not shared[1]:
        return None, dots
    run = shared.index(False) * STEP
    form, said = _count_or_length(dots, shared)
    parts = [list(range(dots.K)[at]) if isinstance(at, slice) else at for at in form.inputs(dots.K)]
    regular = _pattern(form, dots.K) == shared and all(
        _alike(dots, a[0], a[-1] + 1 - STEP) and not _alike(dots, a[0], b[0]) for a, b in pairwise(parts)
    )
    if not regular:
        note(result, "parts", None, f"the first {run} inputs share a part, but others do not likewise", UNDECIDED)
        return None, dots
    starts = [part[0] for part in parts]
    add, why = _added_in(dots, starts)
    join = "any" if not dots.calls.repeats else _order(dots, starts)
    found = replace(form, kept="dtype", add=add, join=join)
    of = f"runs of {run}" if form.deal == 0 else f"parts in turn, {run} at a time,"
    seen = f"inputs of {len(starts)} {of} share a part that is stored in D; {said}; {why}"
    note(result, "parts", str(found), seen, MEASURED)
    return found, PartDots(dots, parts[0], run)


def _survives(dots: Dots, asked: list[tuple[int, int]]) -> list[bool]:
    """Say of each (pivot, j) whether fp32 held 1 + 2^-(p+2) until -1 came."""
    small = 2.0 ** -(FORMATS[dots.dtype][0] + 2)
    x = torch.zeros(len(asked) * len(NEAR), dots.K, dtype=dots.dtype)
    for row, (pivot, j) in enumerate(asked):
        for at, near in enumerate(NEAR):
            x[row * len(NEAR) + at, [pivot, pivot + near, j]] = torch.tensor([1.0, small, -1.0], dtype=dots.dtype)
    got = (dots(x) != 0).all(1).reshape(-1, len(NEAR))
    return [bool(kept) for kept in got.any(1)]


def _alike(dots: Dots, pivot: int, j: int) -> bool:
    return _survives(dots, [(pivot, j)])[0]


def _with_first(dots: Dots) -> list[bool]:
    """Say of each STEP-th input whether it shares the first one's part."""
    return [True, *_survives(dots, [(0, j) for j in range(STEP, dots.K, STEP)])]


def _pattern(form: Parts, K: int) -> list[bool]:
    """Say of each STEP-th of K inputs whether it would share the first one's part."""
    at = form.inputs(K)[0]
    first = set(range(K)[at] if isinstance(at, slice) else at)
    return [j in first for j in range(0, K, STEP)]


def _count_or_length(dots: Dots, shared: list[bool]) -> tuple[Parts, str]:
    """Return the parts by number or by length: what also holds at other K, where the kernel takes them."""
    known = [(dots.K, shared)]
    K, G, length = dots.K, max(dots.G, STEP), shared.index(False) * STEP
    for other in (K // 2, K // 2 + G, K // 2 + 3 * G, 2 * K, 4 * K):  # eight parts of 32 are parts of 64 at twice K
        try:
            case = dots.site.case.replace(**{dots.site.letter: other})
        except ValueError:
            continue
        if other % G == 0 and dots.site.gemm == 1 and dots.calls.takes(case):
            known.append((other, _with_first(dots.at(site_of(case)))))
    by_length = Parts(length=length)
    forms = [by_length, *(Parts(count=-(-K // length), unit=unit) for unit in UNITS)]
    again = next((i for i in range(length // STEP, len(shared)) if shared[i]), len(shared)) * STEP
    forms.append(Parts(count=-(-again // length), deal=length))
    fits = [form for form in forms if all(_pattern(form, k) == there for k, there in known)]
    if not fits:
        return by_length, f"neither their number nor their length is the same at {', '.join(str(k) for k, _ in known)}"
    of_first = "; ".join(f"K = {k}: {sum(there) * STEP}" for k, there in known)
    return fits[0], of_first


def _added_in(dots: Dots, starts: list[int]) -> tuple[str, str]:
    """Return whether the total is rounded to D after each part: "dtype", or "fp32"."""
    if len(starts) < 3:
        return "fp32", "two parts: outputs cannot tell whether their sum is made in fp32 or in D"
    rows = [(order, e, 1.0) for e in POWERS for order in permutations(starts[:3], 3)]
    left = left_of(dots, rows)
    lost = [e for (_, e, _), value in zip(rows, left, strict=True) if value != 1]
    if lost and min(lost) <= FORMATS[dots.dtype][0] + 2:
        return "dtype", f"2^{min(lost)} + 1 - 2^{min(lost)} over three parts lost the 1: the total is rounded to D"
    return "fp32", "2^20 + 1 - 2^20 over three parts kept the 1: they are added in fp32"


def _order(dots: Dots, starts: list[int]) -> str:
    """Return the order in which parts are joined, "any" where it has no name here."""
    if len(starts) < 3:
        return "any"
    try:
        counter = Counter(dots, dots.K, dots.dtype, dots.gaps)
        root = reveal(counter, starts, min(counter.size.most, len(starts)))
    except NotRevealedError:
        return "any"
    return next((order for order in ORDERS if order_clades(starts, order) == clades(root)), "any")
