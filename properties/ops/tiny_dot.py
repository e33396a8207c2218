"""tiny_dot: one dot product a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bounds.shared_expert import TINY_DOT, tiny_dot_band
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.tiny_dot import tiny_dot

from ..cases import data
from ..cases.build import gemm_plan, variant_of
from ..cases.case import Case, Problem
from ..cases.changes import multiplied
from ..cases.data import activations, bell, tiny
from ..cases.inputs import rows_of
from ..cases.optable import GEMM_DATA, Argument, Result
from ..cases.record import Piece, Tensors
from ..common.drift import Errors
from ..common.generator import FORMATS, Stream, integer_bits, to_tensor
from ..compare.floats import all_rows, pieces
from ..compare.statistics import errors_of_dot
from ..golden.derive import store, tiny_sums
from ..golden.rational import as_tensor
from ..golden.transcendental import sigmoid_fp32
from ..infer.drive import Dots, plain_weight
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_linearity, law_scaling_by_powers_of_two
from ..laws.shared import law_sigmoids_of_both_signs_add_up
from .families import FloatOp, rounded


class TinyDot(FloatOp):
    """What the harness knows of tiny_dot."""

    name = "tiny_dot"
    summary = "out[t] = x[t] . w, through a sigmoid where asked."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument("w", "D [K]", "The other vector."),
        Argument("sigmoid", "bool", "Whether the result goes through a sigmoid in fp32.", flag="sigmoid", plain=False),
    )
    results = (Result("out", "D [T, 1]", "The dot products.", ("token", "n")),)
    dims = ("T", "K")
    data = tuple(name for name in GEMM_DATA if name != "codes16")
    data_flags = ("sigmoid", "strided")
    also_run = ({"T": 600, "flags": ("sigmoid",), "dtype": "bf16"},)  # a token has one output
    default_contract = TINY_DOT
    starter = "return ref.tiny_dot(x, w, sigmoid=sigmoid).to(x.dtype)"
    starter_contract = "grouped,accumulator=fp32"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """tiny_dot: x [T, K], w [K], sigmoid."""
        fmt, plan, variant = FORMATS[case.dtype], gemm_plan(case), variant_of(case)
        variant = data.X_TINY if variant == data.SCALES_TINY else variant  # there are no scales
        x = activations(case.data, fmt, case.T, case.K, case.seed, plan=plan, variant=variant)
        stream = Stream(case.seed, "w")
        if plan is not None:
            low = 0 if case.data == "samesign" else -15
            w = integer_bits(low + stream.below((case.K,), 16 - low), plan.exponent, fmt)
        elif case.data == "stagnation":
            w = np.broadcast_to(data.power_bits(0, fmt), (case.K,)).copy()
        elif case.data == "cancelling":  # as x: neighbours cancel, or the halves do
            half = case.K // 2
            w = bell(stream, fmt, (case.K,))
            first, second = (
                (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if case.K % 16 else (slice(half), slice(half, None))
            )
            w[second] = w[first]
        elif variant == data.OUTPUTS_TINY:
            w = tiny(stream, fmt, (case.K,), bits=3)
        else:
            w = bell(stream, fmt, (case.K,), -(case.K.bit_length() // 2))
        args = {"x": rows_of(x, case), "w": to_tensor(w, fmt), "sigmoid": "sigmoid" in case.flags}
        return Problem(case, args, exact=(plan is not None and plan.exact) or case.data == "onehot")

    # ---- Judging: shapes, bands, references, derivations ----

    sums: Mapping[str, str] = {"schedule": "K"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0], 1)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        x, w, sigmoid = problem.args.values()
        for rows in pieces(all_rows(x)):
            yield "out", rows, 0, tiny_dot_band(x[rows], w, rules, sigmoid=sigmoid, exact=exact)

    def saturates(self, case: Case, stage: str) -> bool:
        return "sigmoid" in case.flags

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        return None if "sigmoid" in case.flags else errors_of_dot(case.K, rules)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        x, w, sigmoid = problem.args.values()
        return rounded({"out": tiny_dot(x, w, sigmoid=sigmoid, dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """One dot product a token, rounded to fp32, through the sigmoid if asked, stored."""
        x, w, sigmoid = problem.args.values()
        keep = store(contract, x.dtype)
        rows = [[keep(sigmoid_fp32(s) if sigmoid else s)] for s in tiny_sums(x, w)]
        return {"out": as_tensor(rows, 1, x.dtype)}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_scaling_by_powers_of_two,
        law_linearity,
        law_sigmoids_of_both_signs_add_up,
    )

    sums_products = True
    has_exact_data = True
    token_args = ("x",)

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        if problem.args["sigmoid"]:
            return []
        return [(name, {name: multiplied(problem.args[name])}) for name in ("x", "w")]

    # ---- Inference, bisection and the bench ----

    inferred = ("accumulator", "ftz", "store_rounding", "deterministic")
    presets = ("grouped",)  # the others differ in what it does not have

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights, "sigmoid": False}

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        return {"w": plain_weight(q, s, dots.dtype)[0]}

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        assert rules.schedule is not None
        return accumulate(x, plain_weight(q, s, dots.dtype), rules.schedule).double()

    one_stage = "tiny_dot"
