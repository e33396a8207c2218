"""Whether a token's bits depend on its batch, and in which orders two batch sizes are added."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..cases.case import Case
from ..cases.kernel_like import KernelLike
from ..cases.optable import OPS
from ..cases.record import record_of
from ..common.torch_state import our_arithmetic
from ..laws.batch import law_batch_invariance
from .calls import Calls
from .drive import Dots
from .fit import ask_noise
from .found import MEASURED, Inference
from .gemm import find_gemm, first_dots
from .report import note
from .site import find_site, site_of

FEW, ASKED = (1, 2, 5), 8  # rows a call, and rows asked for
LONGEST = 512  # inputs of a dot product whose order is asked; more take long, one row a call
PROMISE = "batch_invariant=true"


def find_batch_invariance(kernel: KernelLike, result: Inference, cases: list[Case]) -> None:
    """Put into the result whether tokens kept their bits: shuffled, cut in two, alone, twice. A contract promises it.

    Args:
        kernel: a dataclass record.
        result: with the contract found.
        cases: on which it is asked.
    """
    law: Any = law_batch_invariance
    if law not in OPS[kernel.op].laws or not result.contract.deterministic:  # type: ignore[attr-defined]
        return
    held: Any = {"contract": dataclasses.replace(result.contract.unscheduled, batch_invariant=True)}
    if hasattr(kernel, "schedule"):
        held["schedule"] = None
    promised: Any = dataclasses.replace(kernel, **held)  # type: ignore[type-var]
    verdicts = [(case, law(promised, case)) for case in cases]
    asked = [(case, verdict) for case, verdict in verdicts if verdict is not None]
    broken = next(((case, verdict) for case, verdict in asked if not verdict.ok), None)
    if not asked:
        return
    said = f"{broken[0]}: {' '.join(broken[1].reason.split())}" if broken else _other_bits(kernel, result)
    if not said:
        said = f"{len(asked)} cases shuffled, cut in two, alone and twice: the same bits; add {PROMISE} to promise it"
        note(result, "batch_invariant", True, said, MEASURED)
        return
    note(result, "batch_invariant", False, f"{said}; --rows shows the order of another batch size", MEASURED)


def _other_bits(kernel: KernelLike, result: Inference) -> str:
    """Say at how many rows a call sums of nothing but rounding error have other bits than at the probed; "" if none."""
    case, record = Case.parse(result.site), record_of(kernel.op)
    if "weight" not in record.inferred:
        return ""
    calls = Calls(kernel)
    with our_arithmetic():
        dots = Dots(calls, site_of(case), "h" if record.layer else "out")
        if record.layer and "h" not in dots.answers():
            return ""
        noise = ask_noise(dots, 9, spread=6)
        for rows in FEW:
            other = case.replace(T=rows)
            if rows >= case.T or kernel.why_not(other) is not None:
                continue
            got = dots.at(site_of(other))(noise.x[:ASKED], noise.q, noise.s)
            wrong = int((got != noise.got[:ASKED]).sum())
            if wrong:
                of = f"{wrong} of {got.numel()} sums of rounding errors alone"
                return f"{of} have other bits at {rows} rows a call than at {case.T}"
    return ""


def orders_of_batches(kernel: KernelLike, case: Case) -> list[str]:
    """Return one line on the order of sums for as many rows as a case has, and one for a single row.

    Args:
        kernel: what broke batch invariance.
        case: where.
    """
    T, lines = case.sizes.get("T", 0), []
    if not record_of(kernel.op).sums_products or "weight" not in record_of(kernel.op).inferred or not T:
        return []
    K = min(case.sizes.get("K", case.sizes.get("H", LONGEST)), LONGEST)
    for rows in dict.fromkeys((T, 1)):
        try:
            found = order_at(kernel, case, rows, K)
            shown = found.schedule or found.order or "not known"
            shown = f"{shown} ({found.order})" if found.schedule and found.order else shown
        except ValueError as error:
            shown = f"not known ({error})"
        lines.append(f"order of sums at T = {rows}: {shown}")
    if len({line.partition(": ")[2] for line in lines}) == 1 and len(lines) > 1:
        lines.append("the orders are the same: what differs is not the order of a GEMM's sums")
    return lines


def order_at(kernel: KernelLike, case: Case, rows: int, K: int) -> Inference:
    """Return what is found about a kernel's first GEMM with so many rows a call.

    Raises:
        ValueError: the kernel takes no such sizes.
    """
    G = case.sizes.get("G", -1)
    group = G if G >= 8 and K % G == 0 else None
    site = find_site(kernel, dtype=case.dtype, k=max(K // 8 * 8, 32), zero=case.zero, rows=rows, group=group)
    calls, record = Calls(kernel), record_of(kernel.op)
    result = Inference(kernel.name, kernel.op, str(site.case), kernel.device)
    with our_arithmetic():
        direct = Dots(calls, site, "h" if record.layer else "out")
        dots = first_dots(site, direct.answers(), direct) if record.layer else direct
        if dots is not None:
            find_gemm(dots, result)
    return result
