"""OpRecord: everything that the harness knows of one op; its facts are inherited from `Op`, its functions stand here.

Each op subclasses a family of `ops/families.py` in `properties/ops/X.py` and fills in what is its own. Whoever needs
something of an op asks `record_of(op)`; nobody compares an op's name.
"""

from __future__ import annotations

from typing import cast

from ..case import Case
from ..optable import OPS, Op
from ..problem import Problem


class OpRecord(Op):
    """The facts and the functions of one op."""

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """Return the tensors of a case, made on the CPU: the same bits on every machine."""
        raise NotImplementedError(f"{self.name}: build")

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----


def record_of(op: str) -> OpRecord:
    """Return the record of an op by its name."""
    return cast(OpRecord, OPS[op])
