"""Verifying what was found: random cases, run and judged with the contract as any other kernel is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from moeracle.ref.contract import Contract

from ..case import Case
from ..trial import KernelLike, run_trial
from ..verdict import Verdict
from .calls import PHASES, Calls
from .found import UNDECIDED, Inference, contract_text

DATA = ("normal", "outliers", "cancelling", "wide")
SIZES = ({"T": 24, "E": 4, "k": 2}, {"T": 8, "E": 8, "k": 3}, {"T": 1, "E": 2, "k": 2})


def verify(kernel: KernelLike, calls: Calls, result: Inference) -> None:
    """Judge random cases with the contract found; verdicts, and why_not if one is illegal, are put into the result.

    A schedule that fails where the same contract without it holds is dropped: the order depends on the sizes.
    """
    verdicts = _judged(kernel, calls, result, result.contract)
    wrong = [v for v in verdicts if v.status == "illegal"]
    if wrong and result.contract.schedule is not None:
        plain = dataclasses.replace(result.contract, schedule=None)
        again = _judged(kernel, calls, result, plain)
        if not any(v.status == "illegal" for v in again):
            result.notes.append(
                f"schedule: {result.schedule} predicts every bit of the probes, but not of {wrong[0].case}; "
                "the order depends on the sizes, so the contract has none"
            )
            found = result.finding("schedule")
            if found is not None:
                found.value, found.status, found.evidence = None, UNDECIDED, result.notes[-1]
            result.contract = dataclasses.replace(plain, name=contract_text(plain, result.nearest))
            verdicts, wrong = again, []
    result.verdicts = verdicts
    if wrong and not result.why_not:
        result.why_not = f"{wrong[0].case}: {' '.join((wrong[0].reason or wrong[0].tier or 'illegal').split())}"


def _judged(kernel: KernelLike, calls: Calls, result: Inference, rules: Contract) -> list[Verdict]:
    if not dataclasses.is_dataclass(kernel):
        raise TypeError("kernel: must be a dataclass record, so that its contract can be replaced")
    held: dict[str, Any] = {"contract": rules}
    if hasattr(kernel, "scheduled_zeros"):
        held["scheduled_zeros"] = (Case.parse(result.site).zero,)
    if hasattr(kernel, "schedule"):
        held["schedule"] = None  # what was found is all that is judged by
    record: Any = dataclasses.replace(kernel, **held)
    verdicts = []
    for at, case in enumerate(verify_cases(kernel, Case.parse(result.site))):
        calls.tick(f"verifying, case {at + 1}", len(PHASES), len(PHASES))
        verdicts.append(run_trial(record, case, explain=False))
    return [v for v in verdicts if v.status != "skipped"]


def verify_cases(kernel: KernelLike, site: Case) -> Iterator[Case]:
    """Yield cases of the probed sizes and of others, in several recipes."""
    other = [d for d in getattr(kernel, "dtypes", ()) if d in ("bf16", "fp16") and d != site.dtype]
    for at, sizes in enumerate(SIZES):
        dims = {letter: size for letter, size in sizes.items() if letter in site.sizes}
        if at == 1:  # another length, and a tail
            letter = "H" if "H" in site.sizes else "K"
            dims[letter] = max(site.sizes[letter] // 2, 32)
            G = site.sizes["G"]
            dims["G"] = G if G > 0 and dims[letter] % G == 0 else -1
            if "I" in site.sizes and (dims["G"] == -1 or site.sizes["I"] % dims["G"]):
                dims["G"] = site.sizes["G"]
        for seed, data in enumerate(DATA):
            try:
                case = site.replace(**dims, data=data, seed=seed + 1)
                if other and at == 1 and seed % 2:  # one contract holds for both
                    case = case.replace(dtype=other[0])
            except ValueError:
                continue
            if kernel.why_not(case) is None:
                yield case
