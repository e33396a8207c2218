"""moe_w4a16: the whole Mixture-of-Experts layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.interval_moe import layer_bands
from moeracle.ref.moe import moe_w4a16, rows_by_expert

from ..case import Case
from ..cases.record import Piece, Rows, Tensors
from ..golden.derive import activated, int4_values, rows_of_floats, slot_sum, store, to_fp32, weighed
from ..golden.rational import as_tensor, dots, scaled
from ..judge.rivals import slot_rivals
from ..optable import GEMM_DATA, ROUTINGS, Argument, Result
from ..problem import Problem
from ..statistics import Errors, errors_of_sum
from .families import Layer, rounded, stored_before


class MoeW4A16(Layer):
    """What the harness knows of moe_w4a16."""

    name = "moe_w4a16"
    summary = (
        "y[s] = (silu(x[t] @ w13[e][:I]^T) * (x[t] @ w13[e][I:]^T)) @ w2[e]^T for each slot s of token t; "
        "out[t] = sum of topk_weights * y."
    )
    arguments = (
        Argument("x", "D [T, H]", "Activations."),
        Argument("w13", "Int4Weight [E, 2I, H]", "First weights: gate rows, then up rows."),
        Argument("w2", "Int4Weight [E, H, I]", "Second weights."),
        Argument("topk_weights", "float32 [T, k]", "Router weights."),
        Argument(
            "topk_ids", "int32 [T, k]", "The chosen experts of each token, 0..E-1; -1 marks a slot that does nothing."
        ),
    )
    results = (
        Result("h", "D [T*k, 2I]", "After GEMM1; a kernel may leave it out.", ("row", "n")),
        Result("a", "D [T*k, I]", "After silu and product; a kernel may leave it out.", ("row", "n")),
        Result("y", "D [T*k, H]", "After GEMM2; a kernel may leave it out.", ("row", "n")),
        Result("out", "D [T, H]", "The layer's output.", ("token", "n")),
    )
    dims = ("T", "E", "k", "H", "I", "G")
    weight = True
    routings = ROUTINGS
    data = (*GEMM_DATA, "sweep", "onehot2")
    data_flags = ("strided",)

    def weight_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        return {"w13": (2 * sizes["I"], sizes["H"]), "w2": (sizes["H"], sizes["I"])}

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    sums: Mapping[str, str] = {"schedule": "H", "gemm2_schedule": "I", "sum_schedule": "k"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        T, k = problem.args["topk_ids"].shape
        H, I = problem.args["w2"].N, problem.args["w2"].K
        return {"h": (T * k, 2 * I), "a": (T * k, I), "y": (T * k, H), "out": (T, H)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        x, w13, w2, weights, ids = problem.args.values()
        before = stored_before(given)
        for stage, rows, band in layer_bands(x, w13, w2, weights, ids, rules, given=before, exact=exact):
            yield stage, rows, 0, band

    def settled(self, problem: Problem, output: Any) -> Any:
        if not isinstance(output, dict):
            return output
        mine = (problem.args["topk_ids"] >= 0).reshape(-1, 1)
        return {name: t if name == "out" else torch.where(mine, t, 0) for name, t in output.items()}

    def rivals(self, problem: Problem, stage: str = "out") -> torch.Tensor | None:
        return None if stage == "out" else slot_rivals(problem.args["topk_ids"], None)

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        return errors_of_sum(case.k, rules) if stage == "out" else super().errors(case, rules, stage)

    def rows(self, problem: Problem, stage: str) -> Rows:
        if stage == "out":
            return Rows("token")
        ids = problem.args["topk_ids"]
        return Rows("row", ids.flatten().cpu(), line="token", slots=ids.shape[1])

    def place(self, problem: Problem, stage: str, row: int, column: int) -> str:
        if stage == "out":
            return super().place(problem, stage, row, column)
        k = problem.args["topk_ids"].shape[1]
        return f"token {row // k}, slot {row % k}, n {column}"

    def operand_rows(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows [R, H] that w13 is multiplied by, and the expert [R] of each."""
        ids = problem.args["topk_ids"].long()
        return problem.args["x"].repeat_interleave(ids.shape[1], 0), ids.flatten()

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        stages: Tensors = {}
        moe_w4a16(*problem.args.values(), dtype=dtype, stages=stages)
        return rounded(stages, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Each stage from the one before as it is stored; only the stages that the contract stores are returned."""
        x, w13, w2, topk_weights, topk_ids = problem.args.values()
        dtype, (T, k), H, I = x.dtype, topk_ids.shape, w2.N, w2.K
        R, keep = T * k, store(contract, dtype)
        factor = [Fraction(f) for f in topk_weights.double().flatten().tolist()]
        h, a = torch.zeros(R, 2 * I, dtype=dtype), torch.zeros(R, I, dtype=dtype)
        y_rows: list[list[Fraction]] = [[Fraction(0)] * H] * R
        mine = [Fraction(0)] * R
        for e, rows in rows_by_expert(topk_ids):
            slots = rows.tolist()
            sums = dots(scaled(x[rows // k]), int4_values(w13.expert(e), contract, dtype)).fractions()
            if contract.router_weight == "input":
                sums = [[Fraction(to_fp32(v * factor[r])) for v in row] for r, row in zip(slots, sums, strict=True)]
            h_rounding, h_dtype = (keep, dtype) if "h" in contract.stores else (to_fp32, torch.float32)
            h_e = as_tensor(rows_of_floats(sums, h_rounding), 2 * I, h_dtype)
            a_e = activated(h_e, contract, dtype, "a" in contract.stores)
            h[rows], a[rows] = h_e.to(dtype), a_e.to(dtype)
            y_e = dots(scaled(a_e), int4_values(w2.expert(e), contract, dtype)).fractions()
            for r, row in zip(slots, y_e, strict=True):
                y_rows[r], mine[r] = _finished(row, factor[r], contract, dtype), Fraction(1)
        y = as_tensor(rows_of_floats(y_rows, keep), H, dtype)
        multiplied = contract.router_weight == "unpermute"
        factors = [f * m for f, m in zip(factor, mine, strict=True)] if multiplied else mine
        out = [
            slot_sum(y_rows[t * k : t * k + k], factors[t * k : t * k + k], H, contract, dtype, multiplied)
            for t in range(T)
        ]
        stages = {"h": h, "a": a, "y": y, "out": as_tensor(out, H, dtype)}
        return {name: stage for name, stage in stages.items() if name in contract.stores}

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----


def _finished(row: list[Fraction], factor: Fraction, contract: Contract, dtype: torch.dtype) -> list[Fraction]:
    """Return one row of y as the top-k sum reads it: weighed where GEMM2 does that, rounded where it is stored."""
    in_gemm2 = contract.router_weight in ("gemm2", "gemm2_dtype")
    if "y" in contract.stores:
        stored = weighed([row], [float(factor)] if in_gemm2 else None, contract, dtype)[0]
        return [Fraction(v) for v in stored]
    return [Fraction(to_fp32(v * factor)) for v in row] if in_gemm2 else row
