"""Verifying what was found: random cases, run and judged with the contract as any other kernel is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from moeracle.ref.contracts.contract import SCHEDULES, Contract

from ..cases.case import Case
from ..cases.kernel_like import KernelLike, words_read
from ..cases.optable import OPS
from ..cases.record import record_of
from ..common.verdict import Verdict
from ..trial.trial import run_trial
from .batches import find_batch_invariance
from .calls import PHASES, Calls
from .found import UNDECIDED, Inference, contract_text

DATA = ("normal", "outliers", "cancelling", "wide")
DROPPED = (("sum_schedule",), ("schedule", "gemm2_schedule"), SCHEDULES)  # what a wrong case may cost, least first
BATCHES = 3  # cases on which batch invariance is asked
SIZES = ({"T": 24, "E": 4, "k": 2}, {"T": 8, "E": 8, "k": 3}, {"T": 1, "E": 2, "k": 2})


def verify(kernel: KernelLike, calls: Calls, result: Inference) -> None:
    """Judge random cases with the contract found; verdicts, and why_not if one is illegal, are put into the result.

    A schedule that fails where the same contract without it holds is dropped: the order depends on the sizes.
    """
    verdicts = _judged(kernel, calls, result, result.contract)
    wrong = [v for v in verdicts if v.status == "illegal"]
    for fields in DROPPED if wrong else ():
        lost = {name: getattr(result.contract, name) for name in fields}
        none: dict[str, Any] = dict.fromkeys(fields)
        if not any(lost.values()):
            continue
        plain = dataclasses.replace(result.contract, **none)
        again = _judged(kernel, calls, result, plain)
        if not any(v.status == "illegal" for v in again):
            _drop(result, {name: value for name, value in lost.items() if value}, wrong[0].case)
            result.contract = dataclasses.replace(plain, name=contract_text(plain, result.nearest))
            verdicts, wrong = again, []
            break
    result.verdicts = verdicts
    if not wrong:
        legal = [Case.parse(v.case) for v in verdicts if v.ok]
        find_batch_invariance(kernel, result, [case for case in legal if case.sizes.get("T", 0) > 1][:BATCHES])
    if wrong and not result.why_not:
        result.why_not = f"{wrong[0].case}: {' '.join((wrong[0].reason or wrong[0].tier or 'illegal').split())}"


def _drop(result: Inference, lost: dict[str, Any], case: str) -> None:
    for name, value in lost.items():
        text = (
            f"{name}: {value} predicts every bit of the probes, but not of {case}; "
            "the order depends on the sizes, so the contract has none"
        )
        result.notes.append(text)
        found = result.finding(name)
        if found is not None:
            found.value, found.status, found.evidence = None, UNDECIDED, text


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
    other = [d for d in kernel.dtypes if d in ("bf16", "fp16") and d != site.dtype]
    for at, sizes in enumerate(SIZES):
        dims = {letter: size for letter, size in sizes.items() if letter in site.sizes}
        dims |= _lengths(site, at)
        for seed, data in enumerate(DATA):
            try:
                case = site.replace(**dims, data=data, seed=seed + 1)
                if seed % 2:
                    biases = {"bias"} & {*words_read(kernel)}
                    case = case.replace(flags={*case.flags, *record_of(site.op).probe_flags, *biases})
                if other and at == 1 and seed % 2:  # one contract holds for both
                    case = case.replace(dtype=other[0])
            except ValueError:
                continue
            if kernel.why_not(case) is not None and "k" in case.sizes:
                case = case.replace(k=1)  # a kernel for top-1 layers
            if kernel.why_not(case) is None:
                yield case


def _lengths(site: Case, at: int) -> dict[str, int]:
    """Return dimensions of another length, and a tail; of a layer also a second GEMM as long as the first."""
    sizes = site.sizes
    letter = next(letter for letter in "HKI" if letter in sizes)
    if at == 2 and OPS[site.op].layer and (sizes["G"] == -1 or sizes["H"] % sizes["G"] == 0):
        return {"I": sizes["H"]}
    if at != 1:
        return {}
    dims = {letter: max(sizes[letter] // 2, 32)}
    if "G" in sizes:
        G = sizes["G"]
        dims["G"] = G if G > 0 and dims[letter] % G == 0 else -1
        if "I" in sizes and (dims["G"] == -1 or sizes["I"] % dims["G"]):
            dims["G"] = G
    return dims
