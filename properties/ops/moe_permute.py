"""moe_permute: tokens in the order of their experts."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.moe_permute import local_expert_ids, moe_permute

from ..bisect.suspects import ROUTING
from ..cases.build import rows_of_values
from ..cases.case import Case, Problem
from ..cases.changes import local_slots
from ..cases.inputs import as_given, expert_map, rows_of
from ..cases.optable import IDS, PLACEMENTS, ROUTINGS, Argument, Result
from ..cases.record import Tensors
from ..cases.routings import draw_topk
from ..common.verdict import Verdict
from ..compare.index_parts import same
from ..laws.batch import law_dispatch_counts_add_up, law_permuting_tokens, law_splitting_batches
from ..laws.experts import law_relabelling_experts
from ..laws.routing import law_rows_keep_their_contents
from .families import TOPK_IDS, TupleOp


class MoePermute(TupleOp):
    """What the harness knows of moe_permute."""

    name = "moe_permute"
    summary = "rows of x repeated for each slot, sorted by expert, stable."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        TOPK_IDS,
        Argument("num_experts", "int", "E, all ranks together.", size="E"),
        Argument(
            "expert_map",
            "int32 [num_experts]",
            "The local number of each expert, -1 for experts on another rank.",
            True,
        ),
    )
    results = (
        Result(
            "x_permuted",
            "D [R, K]",
            "Rows by local expert; rows of ignored slots and of experts elsewhere come last and may hold anything.",
            ("row", "n"),
        ),
        Result(
            "expert_offsets",
            "int64 [E+1]",
            "Where each local expert's rows begin; the last entry is their number.",
            ("expert",),
        ),
        Result("inv", "int32 [R]", "The row of each slot t*k+j.", ("slot",)),
    )
    dims = ("T", "E", "k", "K")
    routings = ROUTINGS
    data = ("normal", "wide", "subnormal", "integers")
    routing_flags = (*PLACEMENTS, *IDS)
    data_flags = ("strided",)
    starter = "return ref.moe_permute(x, topk_ids, num_experts, expert_map)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """moe_permute: x [T, K], topk_ids [T, k], num_experts, expert_map or None."""
        ids, _ = as_given(case, *draw_topk(case.routing, case.T, case.E, case.k, case.seed))
        x = rows_of(rows_of_values(case, case.T), case)
        args = {"x": x, "topk_ids": ids, "num_experts": case.E, "expert_map": expert_map(case)}
        return Problem(case, args, exact=True)

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        x, topk_ids, E, expert_map = problem.args.values()
        R = topk_ids.numel()
        _, local = local_expert_ids(topk_ids, E, expert_map)
        return {"x_permuted": (R, x.shape[1]), "expert_offsets": (local + 1,), "inv": (R,)}

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """Bit for bit; what ignored slots' rows hold is open."""
        want_x, want_offsets, want_inv = moe_permute(*problem.args.values())
        got_x, offsets, inv = parts
        if not same(verdict, "expert_offsets", offsets, want_offsets):
            return
        used = int(want_offsets[-1])
        local = want_inv < used
        stable = "rows of one expert must keep the order of their slots (FAULTS F48)"
        if not same(verdict, "inv", torch.where(local, inv, want_inv), want_inv, stable):
            return
        everyone = torch.arange(inv.numel(), dtype=torch.int32)
        if not same(verdict, "inv", inv.sort().values, everyone, "sorted; inv must be a permutation of 0..T*k-1"):
            return
        same(verdict, "x_permuted", got_x[:used], want_x[:used])

    def settled(self, problem: Problem, output: Any) -> Any:
        """Rows of ignored slots and of experts elsewhere may hold anything."""
        x, offsets, inv = output
        _, topk_ids, E, expert_map = problem.args.values()
        mine = (local_expert_ids(topk_ids, E, expert_map)[0] >= 0).flatten()
        return x[: int(mine.sum())], offsets, torch.where(mine, inv, -1)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return self.named(moe_permute(*problem.args.values()))

    def compared(self, output: Any) -> torch.Tensor:
        """The rows of experts."""
        rows: torch.Tensor = output[0][: int(output[1][-1])]
        return rows

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """The reference's, in slot order."""
        return self.named(moe_permute(*problem.args.values()))

    # ---- Laws and diagnosis ----

    laws = (
        law_rows_keep_their_contents,
        law_permuting_tokens,
        law_splitting_batches,
        law_relabelling_experts,
        law_dispatch_counts_add_up,
    )

    token_args = ("x", "topk_ids")

    def by_token(self, problem: Problem, results: Tensors) -> Tensors:
        case, rows = problem.case, results["x_permuted"]
        rows = rows[results["inv"].long().clamp(0, max(0, case.R - 1))].reshape(case.T, case.k, rows.shape[1])
        return {"x_permuted": torch.where(local_slots(problem)[:, :, None], rows, torch.zeros((), dtype=rows.dtype))}

    # ---- Inference, bisection and the bench ----

    one_stage = ROUTING
    step_of_layer = True
