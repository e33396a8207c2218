"""Infer every preset from its simulation at K = 2048: python -m moeracle.properties.infer.presets [PRESET ...]

Prints one line a preset: the CPU time of this process, the kernel's own included, the contract that was found, and the
fields of a GEMM in which it differs from the preset's.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import replace

import torch

from moeracle.ref.contracts.contract import Contract, contract

from ..cases.optable import OPS
from ..cases.record import record_of
from ..simulate import simulated_kernel
from . import infer
from .found import OF_GEMM

LENGTH = 2048
# An order that each accumulator allows, and the accumulator that adds so.
ORDERS = {"rdna": "lanes", "chains": "chains", "fp32": "sequential", "tensor_core": "hopper"}
ADDS = {"lanes": "fp32", "chains": "chains", "sequential": "fp32", "hopper": "hopper"}


def differences(found: Contract, wanted: Contract, fields: tuple[str, ...]) -> list[str]:
    """Return "field: found, wanted" of fields that are not as wanted, or as the simulation of the preset has them.

    Args:
        found: what was inferred.
        wanted: the preset.
        fields: those that the op shows.
    """
    other = [field for field in fields if getattr(found, field) != getattr(wanted, field)]
    if "accumulator" in other and found.accumulator == ADDS[ORDERS[wanted.accumulator]]:
        other.remove("accumulator")
    if "zero_offset" in other and found.zero_offset == wanted.code_offset(torch.bfloat16):
        other.remove("zero_offset")  # bf16 holds no 1024 + u
    parts, allowed = found.parts, wanted.parts
    if "parts" in other and parts and allowed and allowed.longer and parts == replace(allowed, longer=False):
        other.remove("parts")  # the shortest that it allows is what is simulated
    return [f"{field}: {getattr(found, field)}, {getattr(wanted, field)}" for field in other]


def cpu_seconds() -> float:
    """Return this process's CPU time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(*names: str) -> int:
    """Print a line a preset; return 1 if one was not recovered."""
    torch.set_num_threads(1)
    lost = 0
    of_gemm = (op for op in OPS if not OPS[op].layer and "router_weight" in record_of(op).inferred)
    op = next(of_gemm)  # the GEMM that shows most of a preset's fields
    for name in names or record_of(op).presets:
        rules = contract(name)
        words = {"weights": ("scale16",)} if rules.scale_cast else {}
        order = ORDERS[rules.accumulator]
        kernel = simulated_kernel(op, rules, order, layout="exllama", zeros=("sym",), **words)
        start = cpu_seconds()
        result = infer(kernel, k=LENGTH)
        shown = tuple(field for field in OF_GEMM if result.finding(field) is not None)
        other = differences(result.contract, rules, shown)
        lost += bool(other) or not result.explained
        said = "; ".join(other) or ("recovered" if result.explained else f"UNKNOWN: {result.why_not}")
        print(f"{name}, {order}: {cpu_seconds() - start:.1f} s, {result.text}: {said}", flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
