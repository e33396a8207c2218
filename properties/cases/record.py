"""OpRecord: everything that the harness knows of one op; its facts are inherited from `Op`, its functions stand here.

Each op subclasses a family of `ops/families.py` in `properties/ops/X.py` and fills in what is its own. Whoever needs
something of an op asks `record_of(op)`; nobody compares an op's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from moeracle.ref.band import Band
from moeracle.ref.contract import Contract

from ..case import Case
from ..optable import OPS, Op, Result
from ..problem import Problem

if TYPE_CHECKING:
    from ..statistics import Errors
    from ..verdict import Verdict

Tensors = dict[str, torch.Tensor]
# A stage, which of its rows, the first of the columns, and what is legal there before the store rounding.
Piece = tuple[str, torch.Tensor, int, Band]

# What every op has, or says in `without` why it has none.
PARTS = ("shapes", "bands", "judge_parts", "reference", "compared", "derive")


class Rows(NamedTuple):
    """What a report calls the rows of a stage.

    Args:
        name: of one row: "row" or "token".
        experts: int [rows] on the CPU, each row's expert, -1 for none; None where rows have no expert.
        group: columns a group, where whole groups of columns may be wrong; else 0.
        line: what a line of the error map is called, and
        slots: how many rows share one.
    """

    name: str
    experts: torch.Tensor | None = None
    group: int = 0
    line: str = ""
    slots: int = 1


class OpRecord(Op):
    """The facts and the functions of one op.

    Attributes:
        without: parts of PARTS that the op does not have, and why.
        sums: of the op's sums, a contract's schedule to the dimension that the sum runs over.
        no_rounding_to_choose: whether no contract changes what is right, so that the reference gives it on any data.
    """

    without: Mapping[str, str] = {}
    sums: Mapping[str, str] = {}
    no_rounding_to_choose: bool = False

    def has(self, part: str) -> bool:
        """Say whether the op has a part of PARTS."""
        return getattr(type(self), part) is not getattr(OpRecord, part)

    def missing(self, part: str) -> NotImplementedError:
        """Return the error of asking for a part that the op does not have."""
        return NotImplementedError(f"{self.name} has no {part}: {self.without.get(part, 'nobody wrote it')}")

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """Return the tensors of a case, made on the CPU: the same bits on every machine."""
        raise NotImplementedError(f"{self.name}: build")

    # ---- Judging: shapes, bands, references, derivations ----

    def result(self, name: str) -> Result:
        """Return the facts of a result, or of a stage."""
        return next(result for result in self.results if result.name == name)

    def result_dtype(self, name: str, case: Case) -> torch.dtype:
        """Return the dtype of a result, which is the first word of its form; D is the case's."""
        word = self.result(name).form.partition(" ")[0]
        dtype = case.torch_dtype if word == "D" else getattr(torch, word)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def by_name(self, output: Any) -> dict[str, Any] | None:
        """Return what a kernel returned by the names of the op's results, or None if it does not have their form."""
        raise NotImplementedError(f"{self.name}: by_name")

    def as_output(self, results: Tensors) -> Any:
        """Return results in the form in which a kernel returns them: a tensor, a tuple, or a dict of stages."""
        raise NotImplementedError(f"{self.name}: as_output")

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        """Return the shape of each result, or stage, that a kernel may return."""
        raise self.missing("shapes")

    def as_judged(self, rules: Contract) -> Contract:
        """Return the contract by whose roundings the op's result is judged."""
        return rules

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Walk the op's result in pieces and yield what is legal there, before the store rounding.

        A result of more than two dimensions is walked as a matrix of its last one; rows that are not yielded may hold
        anything.

        Args:
            problem: on any device.
            rules: what as_judged returned.
            given: what the kernel stored; of a layer, a stage is judged from the one stored before it.
            exact: the data promise exact sums; each element is still checked.
        """
        raise self.missing("bands")

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """Judge the tensors of a tuple, whose shapes and dtypes are right, and fill in the verdict."""
        raise self.missing("judge_parts")

    def settled(self, problem: Problem, output: Any) -> Any:
        """Return a legal-shaped output with what the op leaves open made equal: what two runs must agree on."""
        return output

    def rivals(self, problem: Problem, stage: str = "out") -> torch.Tensor | None:
        """Return int64 [R], for each row of a routed stage the row that holds another expert's answer to its token.

        -1 where there is none; None where rows are not routed, or nobody says which token they belong to.
        """
        return None

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        """Return what errors a stage of a random case may have; None where no statistical test applies."""
        return None

    def operand_rows(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows [R, K] that a GEMM's (first) weight is multiplied by, and the expert [R] of each."""
        raise self.missing("operand_rows")

    def largest_code(self, rules: Contract) -> int:
        """Return a bound on a code, zero point included, in a dot product that is scaled only afterwards."""
        return 2 * (15 + rules.zero_offset)

    def rows(self, problem: Problem, stage: str) -> Rows:
        """Return what a report calls the rows of a stage."""
        return Rows(self.result(stage).axes[0])

    def place(self, problem: Problem, stage: str, row: int, column: int) -> str:
        """Return one element's place in words."""
        axes = self.result(stage).axes
        return f"{axes[0]} {row}, {axes[-1]} {column}"

    def open_zero_sign(self, case: Case, stage: str) -> bool:
        """Say whether silu or a sigmoid made a stage, so that a Band does not know the sign of its zeros."""
        return False

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        """Return the reference op's results by name, computed in a dtype and then rounded once.

        Args:
            problem: on any device.
            dtype: torch.float32 or torch.float64.
        """
        raise self.missing("reference")

    def compared(self, output: Any) -> torch.Tensor:
        """Return the float tensor of an output that a tolerance can be put on."""
        raise self.missing("compared")

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Return the correctly rounded results by name; see golden/derive.py."""
        raise self.missing("derive")

    def cost(self, case: Case) -> int:
        """Return about how many products, or elements where there are none, a derivation works out one by one."""
        sizes = case.sizes
        wide = sizes.get("N", 1) * sizes.get("V", 1) * sizes.get("I", 1)
        return max(1, case.R) * wide * sizes.get("K", 1)

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----


def record_of(op: str) -> OpRecord:
    """Return the record of an op by its name."""
    return cast(OpRecord, OPS[op])
