"""OpRecord: everything that the harness knows of one op; its facts are inherited from `Op`, its functions stand here.

Each op subclasses a family of `ops/families.py` in `properties/ops/X.py` and fills in what is its own. Whoever needs
something of an op asks `record_of(op)`; nobody compares an op's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.layouts import pack_int4
from moeracle.ref.weight import Int4Weight

from ..case import Case
from ..inputs import strided
from ..optable import OPS, Op
from ..problem import Problem
from ..verdict import Verdict
from .changes import FACTOR, like, scalable, topk_ids_of, with_args

Tensors = dict[str, torch.Tensor]
Law = Callable[[Any, Case], "Verdict | None"]  # (kernel, case)


class Comparison(NamedTuple):
    """What a law expects of one result: its values, what its dimensions are called, and which elements are meant."""

    name: str
    expected: torch.Tensor
    axes: tuple[str, ...]
    where: torch.Tensor | None = None


class Agreement(NamedTuple):
    """Where two answers agree in one result: bool `right`, both answers, axis names, and which elements are meant."""

    name: str
    right: torch.Tensor
    got: torch.Tensor
    expected: torch.Tensor
    axes: tuple[str, ...]
    where: torch.Tensor | None = None


class OpRecord(Op):
    """The facts and the functions of one op.

    Attributes:
        laws: what every right kernel of the op obeys.
        sums_products: whether it has dot products, so that the accumulator's width matters.
        elementwise: whether each result comes from a few inputs, with no sum over many.
        has_exact_data: whether it adds or rounds, and recipes exist on which every legal kernel gives the same bits.
        token_args: the arguments whose first dimension is the token.
        token_letter: the dimension that counts the tokens.
    """

    laws: tuple[Law, ...] = ()
    sums_products: bool = False
    elementwise: bool = False
    has_exact_data: bool = False
    token_args: tuple[str, ...] = ()
    token_letter: str = "T"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """Return the tensors of a case, made on the CPU: the same bits on every machine."""
        raise NotImplementedError(f"{self.name}: build")

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    def take_tokens(self, problem: Problem, index: torch.Tensor) -> Problem:
        """Return the problem of some of its tokens (rows, for the quantizer), in the order given."""
        smaller = problem.case.replace(**{self.token_letter: len(index)})
        new = {name: problem.args[name][index] for name in self.token_args}
        new |= {name: strided(new[name], smaller) for name in ("x", "h") if name in new}
        return Problem(smaller, {**problem.args, **new}, problem.truth, problem.exact)

    def by_token(self, problem: Problem, results: Tensors) -> Tensors:
        """Return results whose first dimension is the token, whatever order the op stores them in.

        Rows of slots become [T, k, ...]; what means nothing is 0.
        """
        return results

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        """Return what the dimensions of a result in token order are called."""
        return (("token", "n") if value.ndim == 2 else ("token", "slot", "n"))[: value.ndim]

    def rename_experts(
        self, problem: Problem, expected: Tensors, name: torch.Tensor, weights: dict[str, Int4Weight]
    ) -> tuple[Problem, Tensors]:
        """Return the problem in which expert e is called name[e], and what is then expected in token order.

        Args:
            problem: with experts.
            expected: its results in token order.
            name: int64 [E], a permutation.
            weights: the weight arguments with their experts already in the new order.
        """
        ids = topk_ids_of(problem)
        new = torch.where(ids < 0, ids, name[ids.long().clamp(min=0)].to(ids.dtype))
        return self.with_ids(problem, new, weights), expected

    def with_ids(self, problem: Problem, ids: torch.Tensor, weights: dict[str, Int4Weight]) -> Problem:
        """Return the problem with other topk_ids [T, k] and int4 weights."""
        return with_args(problem, topk_ids=ids, **weights)

    def experts_kept(self, problem: Problem, experts: torch.Tensor) -> list[torch.Tensor]:
        """Return bool [E] masks of experts that keep their weights while the others' change, for a law.

        Args:
            experts: int64, 0..E-1 of this rank.
        """
        return [experts % 2 == parity for parity in (0, 1)]

    def silent_slot(self, problem: Problem, silent: torch.Tensor) -> Problem | None:
        """Return the problem with another row in slots whose router weight is 0; None: their own rows are 0.

        Args:
            silent: bool [T, k].
        """
        ids = problem.args["topk_ids"]
        return with_args(problem, topk_ids=torch.where(silent & (ids >= 0), (ids + 1) % problem.case.E, ids))

    def with_block_size(self, problem: Problem, block: int) -> Problem:
        """Return the problem with another block size of the alignment."""
        raise NotImplementedError(f"{self.name} has no block size")

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        """Return (what is multiplied by FACTOR, the changed arguments) for each way in which the op is homogeneous."""
        return []

    def scaled_results(self, problem: Problem, results: Tensors) -> Iterator[Comparison]:
        """Yield what a problem with a factor FACTOR more must give: expected values, and where they are."""
        out = results["out"]
        where = scalable(out)
        used = self.rows_with_meaning(problem)
        if used is not None:
            where &= used[:, None]
        yield Comparison("out", out.double() * FACTOR, self.token_axes(out), where)

    def rows_with_meaning(self, problem: Problem) -> torch.Tensor | None:
        """Return bool [rows] of the result that are somebody's; None: all of them."""
        return None

    def change_columns(self, problem: Problem, columns: torch.Tensor) -> Problem:
        """Return the problem with other values in what some output columns, bool [N], are made of."""
        w: Int4Weight = problem.args["w"]
        codes = torch.where(columns[:, None], 15 - w.codes(), w.codes())
        packed = like(w.packed, pack_int4(codes, w.layout).view(w.packed.dtype))
        return with_args(problem, w=replace(w, packed=packed))

    def agreement(self, problem: Problem, got: Tensors, expected: Tensors, *, ties: bool) -> Iterator[Agreement]:
        """Yield where two legal answers to a problem must agree: equal bits, unless the op approximates.

        Args:
            problem: what both answer.
            got, expected: results in token order.
            ties: equal scores may be compared; False where experts have changed their names.
        """
        for name, value in expected.items():
            yield Agreement(name, got[name] == value, got[name], value, self.token_axes(value))

    def simulation_cost(self, problem: Problem) -> int:
        """Return about how many multiplications one simulation of a problem takes, weights included."""
        case = problem.case
        weights = [n * k for n, k in case.weight_shapes().values()]
        if not weights:
            return sum(v.numel() for v in problem.args.values() if isinstance(v, torch.Tensor))
        rows = max(1, case.R)
        return sum(weights) * (rows + 16 * min(case.sizes.get("E", 1), rows))

    # ---- Inference, bisection and the bench ----


def record_of(op: str) -> OpRecord:
    """Return the record of an op by its name."""
    return cast(OpRecord, OPS[op])
