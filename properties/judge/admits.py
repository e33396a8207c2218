"""Whether a contract declares so many roundings that nothing can be judged by it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract

from ..cases.case import Case
from ..cases.optable import OPS
from ..cases.record import record_of
from . import judge

__all__ = ["admits_zeros"]

# A plain case whose sums have few products: there a contract is at its narrowest.
SMALLEST = {"T": 9, "E": 5, "k": 2, "N": 40, "K": 32, "H": 32, "I": 32, "G": 32, "B": 16, "V": 40}


def admits_zeros(rules: Contract, case: Case) -> bool:
    """Say whether a contract lets zeros pass even on the plainest small case, in every dtype of the op.

    Such a contract tells nothing from anything: who declares it cannot be judged. Sums rounded to bf16 alone are no
    such contract: in fp16 they can be judged.

    Args:
        rules: a kernel's contract on `case`.
        case: one that is vacuous under them; its op, layout and zero point are asked.
    """
    fields = OPS[case.op]
    sizes = {**SMALLEST, **fields.plain_sizes}
    dims: dict[str, Any] = {letter: sizes[letter] for letter in fields.dims}
    narrow = [dtype for dtype in fields.dtypes if dtype != "fp32"]
    try:
        plain = [Case.of(case.op, dtype=dtype, layout=case.layout, zero=case.zero, **dims) for dtype in narrow]
    except ValueError:  # a layout that has no such sizes
        return False
    return bool(plain) and all(_passes(rules, one) for one in plain)


@cache
def _passes(rules: Contract, case: Case) -> bool:
    """Say whether zeros are not illegal on a case."""
    problem, record = case.build(), record_of(case.op)
    shapes = record.shapes(problem)
    if "out" not in shapes:
        return False
    zeros = torch.zeros(shapes["out"], dtype=record.result_dtype("out", case))
    return judge(problem, zeros, rules, explain=False).status == "vacuous"
