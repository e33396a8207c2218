"""Where a kernel is probed: sizes and forms that it takes, for its GEMM, or for a layer's two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from moeracle.ref.errors import require, unknown

from ..cases.case import TORCH_DTYPE, Case
from ..cases.kernel_like import KernelLike, words_required
from ..cases.optable import OPS, zero_forms
from ..cases.record import record_of

ROWS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
COLUMNS = (8, 16, 32, 64, 128, 256)
GROUPS = (32, 64, 128, 16, -1)
INPUTS = (2048, 1024, 512, 256, 4096, 128, 64)
MOST_OUTPUTS = 64  # of GEMM2's H columns, how many are asked
MOST_INPUTS = 4096
MOST_APART = 128


@dataclass(frozen=True)
class Site:
    """The sizes and forms at which one GEMM of a kernel is probed.

    Args:
        case: the plainest case of that kind; its T is how many rows one call has.
        N, K, G: of the GEMM whose outputs are read; G resolved.
        gemm: 1, or 2 for a layer's second.
        stride: of a second one, how many of the first's inputs each of its own takes: G where no group may hold two.
    """

    case: Case
    N: int
    K: int
    G: int
    gemm: int = 1
    stride: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """The activations'."""
        return TORCH_DTYPE[self.case.dtype]

    @property
    def letter(self) -> str:
        """The case's letter of K."""
        return ("H" if self.gemm == 1 else "I") if OPS[self.case.op].layer else "K"


def site_of(case: Case, gemm: int = 1, apart: bool = False) -> Site:
    """Return the site of a case's GEMM, of a layer the first or the second."""
    sizes = case.sizes
    layer = OPS[case.op].layer
    K = sizes["I" if gemm == 2 else "H"] if layer else sizes["K"]
    G = sizes["G"] if sizes.get("G", -1) > 0 else K
    if layer:
        N = case.weight_shapes().get("w13", (2 * sizes["I"], K))[0] if gemm == 1 else min(sizes["H"], MOST_OUTPUTS)
        return Site(case, N, K, G, gemm, G if apart else 1)
    return Site(case, next((sizes[letter] for letter in "VN" if letter in sizes), 1), K, G)


def _shapes(op: str, k: int | None, rows: int | None, group: int | None) -> Iterator[dict[str, int]]:
    """Yield dimensions to ask for, the best first."""
    inputs = INPUTS if k is None else (k,)
    if OPS[op].layer:
        inputs = INPUTS[2:] + INPUTS[:2] if k is None else inputs
    for K in inputs:
        for G in GROUPS if group is None else (group,):
            if G > K:
                continue
            for N in COLUMNS:
                for T in ROWS if rows is None else [rows, *(T for T in ROWS if rows > T)]:
                    yield from _dims(op, T, N, K, G)


def _dims(op: str, T: int, N: int, K: int, G: int) -> Iterator[dict[str, int]]:
    record = record_of(op)
    every = {"T": T, "E": record.probe_experts, "k": record.probe_slots, "N": N, "V": N, "K": K, "G": G, "H": K}
    every["I"] = max(N, G)
    letters = record.dims
    for B in (64, 16, 32, 128) if "B" in letters else (0,):
        yield {letter: B if letter == "B" else every[letter] for letter in letters}


def find_site(
    kernel: KernelLike,
    *,
    dtype: str | None = None,
    k: int | None = None,
    zero: str | None = None,
    rows: int | None = None,
    group: int | None = None,
) -> Site:
    """Return the largest convenient sizes that the kernel takes.

    Args:
        kernel: as @moeracle.kernel makes.
        dtype: "bf16" or "fp16"; None: bf16 if the kernel takes it.
        k: the length of its dot products, or None: 2048 (512 for a layer), or what else it takes.
        zero: a zero-point form of its layout, or None: "sym" if it reads that.
        rows: rows a call, or None: 256, or fewer where the kernel takes no more.
        group: G, or None: 32, or what the kernel takes.
    Raises:
        ValueError: an op without a GEMM, a dtype or zero-point form that the kernel does not take, or no sizes at all.
    """
    op = kernel.op
    if not record_of(op).sums_products:
        raise unknown("infer op", op, [name for name in OPS if record_of(name).sums_products])
    check_sizes(k, rows, group)
    names: dict[str, Any] = {"dtype": dtype_of(kernel, dtype)}
    if OPS[op].weight:
        words = words_required(kernel)
        known = zero_forms(words)
        names["layout"] = kernel.layout or next(iter(known))
        forms = [z for z in known[names["layout"]] if z in kernel.zeros]
        if zero is not None and zero not in forms:
            raise unknown("zero", zero, forms)
        names["zero"], names["flags"] = zero or forms[0], words
    return site_of(first_taken(kernel, names, _shapes(op, k, rows, group)))


def check_sizes(k: int | None, rows: int | None = None, group: int | None = None) -> None:
    """Raise ValueError in one line for sizes that no kernel can be probed at."""
    require(k is None or k >= 32, f"k: got {k}, must be at least 32 (a dot product of fewer terms hides its order)")
    require(rows is None or rows >= 1, f"rows: got {rows}, must be at least 1")
    require(group is None or group == -1 or group >= 8, f"group: got {group}, must be 8 or more, or -1 for one a row")
    require(k is None or k % 8 == 0, f"k: got {k}, must be a multiple of 8 (packed words are whole)")


def dtype_of(kernel: KernelLike, dtype: str | None) -> str:
    """Return the dtype to probe with.

    Raises:
        ValueError: the kernel does not take it.
    """
    taken = tuple(d for d in kernel.dtypes if d in ("bf16", "fp16"))
    require(dtype is None or dtype in taken, f"dtype: got {dtype}, must be {' or '.join(taken)} for {kernel.name}")
    return dtype or ("bf16" if "bf16" in taken else taken[0])


def first_taken(kernel: KernelLike, names: dict[str, Any], shapes: Iterator[dict[str, int]]) -> Case:
    """Return the first case that the kernel takes.

    Raises:
        ValueError: it takes none; the message says what stood in the way most often.
    """
    reasons: dict[str, int] = {}
    for dims in shapes:
        try:
            case = Case.of(kernel.op, **{**names, **dims})
        except ValueError as error:
            reasons[str(error)] = reasons.get(str(error), 0) + 1
            continue
        why = kernel.why_not(case)
        if why is None:
            return case
        reasons[why] = reasons.get(why, 0) + 1
    most = max(reasons, key=lambda why: reasons[why])
    raise ValueError(f"infer: {kernel.name} takes none of the sizes that probing asks for ({most}); name one with --k")


def second_site(site: Site, takes: Callable[[Case], bool], apart: bool = False) -> Site | None:
    """Return sizes at which a layer's second GEMM is as long as its first was, or None if the kernel takes none.

    GEMM1 must hand on every input of GEMM2 and hold silu's gate open with one more of its own: H > I.

    Args:
        site: the first GEMM's.
        takes: whether the kernel takes a case; also notes what it refuses.
        apart: each input needs a scale group of its own; then GEMM2 has MOST_APART inputs at most.
    """
    for K in (site.K, site.K // 2, site.K // 4, 64, 32):
        wide = sorted({K + site.G, K + 64, K + 128, K + 256, 2 * K, 4 * K})
        for H in [site.G * (K + 1)] if apart else wide:
            try:
                case = site.case.replace(I=K, H=H)
            except ValueError:
                continue
            if 32 <= K <= (MOST_APART if apart else site.K) and takes(case):
                return site_of(case, 2, apart)
    return None


def other_sites(site: Site, takes: Callable[[Case], bool]) -> list[tuple[str, Site]]:
    """Return sites of another K and of another G, where the kernel takes them: a schedule must hold there too."""
    found, layer = [], OPS[site.case.op].layer
    lengths = [(f"K = {K}", _longer(site, K)) for K in (site.K // 2, site.K * 2) if K <= MOST_INPUTS]
    sizes = [site.K, *([site.case.H] if site.gemm == 2 and site.stride == 1 else [])]
    fits = (g for g in (site.G * 2, site.G * 4, site.G // 2) if g >= 8 and not any(size % g for size in sizes))
    group = next(fits, site.G)
    grown = {"G": group, **({"I": max(site.case.I, group)} if layer and site.gemm == 1 else {})}
    grown |= {"H": group * (site.K + 1)} if site.stride > 1 else {}
    groups = [(f"G = {group}", grown)] if site.case.sizes.get("G", -1) > 0 else []  # one a row: another way of scaling
    for name, dims in [*lengths, *groups]:
        try:
            case = site.case.replace(**dims)
        except ValueError:
            continue
        if case != site.case and takes(case):
            found.append((name, site_of(case, site.gemm, site.stride > 1)))
    return found


def _longer(site: Site, K: int) -> dict[str, int]:
    if site.stride > 1:
        return {"I": K, "H": site.G * (K + 1)} if K <= MOST_APART else {}
    return {"I": K, "H": K + site.case.H - site.case.I} if site.gemm == 2 else {site.letter: K}
