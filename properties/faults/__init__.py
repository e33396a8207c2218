"""The register of faults: every known bug by its id, ready to be planted in a correct simulation.

    find_fault("F29").kernel("moe_w4a16")      a kernel that takes each scale from the next group and is right otherwise

A fault is a defect of this suite, not of a kernel, if `moeracle faults` cannot see it. Each file of this folder is a
family, found by listing it: weights (nibbles and zero points), scales, gemm (the sum over K), tiles (launches and
stores), dispatch, moe (activation, router weights, sum over slots), routing (router, quantizer, lm_head), shared, words
(act-order, biases and what else a weight may be).
"""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import unknown

from .base import REGISTERED, Fault

__all__ = ["FAULTS", "Fault", "faults_of", "find_fault"]


for family in pkgutil.iter_modules(__path__):
    import_module(f".{family.name}", __name__)  # which registers its faults


def _in_order(id: str) -> tuple[int, str]:
    number, letter = re.fullmatch(r"F(\d+)([a-z]?)", id).groups()  # type: ignore[union-attr]
    return int(number), letter


FAULTS: dict[str, Fault] = {id: REGISTERED[id] for id in sorted(REGISTERED, key=_in_order)}


def find_fault(id: str) -> Fault:
    """Return the fault of that id.

    Args:
        id: such as "F29".
    Returns:
        Fault.
    Raises:
        ValueError: there is none; the nearest id is suggested.
    """
    if id not in FAULTS:
        raise unknown("fault", id, FAULTS)
    return FAULTS[id]


def faults_of(op: str, contract: Contract | str | None = None) -> list[Fault]:
    """Return the faults that can be planted in an op under a contract (None: each fault's own, or the op's default).

    Args:
        op: one of OPS.
        contract: a Contract, a preset's name with overrides, or None.
    Returns:
        The faults, in the order of the catalogue.
    Raises:
        ValueError: an unknown op or contract.
    """
    return [fault for fault in FAULTS.values() if fault.why_not(op, contract) is None]
